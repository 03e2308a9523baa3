"""Loops of the page pool: the freelist, single and contiguous allocation, batches, merge."""

from __future__ import annotations

import numpy as np

from jitalloc._intrinsics import ALL_ONES, ONE, fail, trailing_zeros, try_lock, unlock
from jitalloc._jit import counting, helper, kernel
from jitalloc.errors import (
    BUSY,
    CHANGED,
    NEGATIVE,
    NO_RUN,
    OUT_OF_PAGES,
    TOO_MANY,
)
from jitalloc.pool.state import (
    ALLOCATED,
    FIRST_PAGE,
    FREE,
    HEAD,
    MERGES,
    NUM_PAGES,
    ORDER,
    PEAK_USED,
    RELEASED,
    SORTED,
    STEP,
)
from jitalloc.state import HEADER_SLOTS, INT32_MAX


@counting
def pool_views(slab):
    """Return `(free_pages, refcount, released)`, views into the slab of a pool."""
    n = slab[NUM_PAGES]
    w = (n + 63) >> 6
    h = (n >> 1) + 1
    bitmaps = HEADER_SLOTS + 2 * w
    released = slab[HEADER_SLOTS : HEADER_SLOTS + w].view(np.uint64)
    free_pages = slab[bitmaps : bitmaps + h].view(np.int32)
    refcount = slab[bitmaps + h : bitmaps + 2 * h].view(np.int32)
    return free_pages, refcount, released


@helper
def pool_merge(slab):
    """Merge the released pages into the sorted freelist; return how many.

    The freelist ends at N, so it grows towards 0: the merge runs forward from
    HEAD - RELEASED and never overtakes what it has yet to read, and it is done when the bitmap
    is used up, for what is left of the freelist lies in its place already.
    """
    n = slab[RELEASED]
    if n == 0:
        return n
    free_pages, _refcount, released = pool_views(slab)
    head = slab[HEAD]
    end = head + slab[FREE]
    put = head - n
    for w in range(released.size):
        bits = released[w]
        if bits == np.uint64(0):
            continue
        released[w] = np.uint64(0)
        base = np.int32(w << 6)
        if bits == ALL_ONES:
            while head < end and free_pages[head] < base:
                free_pages[put] = free_pages[head]
                put += 1
                head += 1
            block = free_pages[put : put + 64]
            for j in range(64):
                block[j] = base + np.int32(j)
            put += 64
        else:
            while bits != np.uint64(0):
                page = base + np.int32(trailing_zeros(bits))
                bits &= bits - ONE
                while head < end and free_pages[head] < page:
                    free_pages[put] = free_pages[head]
                    put += 1
                    head += 1
                free_pages[put] = page
                put += 1
        if put == head:  # every released page has found its place
            break
    slab[HEAD] -= n
    slab[FREE] += n
    slab[RELEASED] = 0
    slab[MERGES] += 1
    return n


@helper
def pool_reserve(slab, n):
    """Make the freelist at least `n` long, merging if need be; return 0 or a status word."""
    if n > slab[FREE]:
        available = slab[FREE] + slab[RELEASED]
        if n > available:
            return fail(OUT_OF_PAGES, available)
        pool_merge(slab)
    return np.int64(0)


@helper
def pool_advance(slab, head, n):
    """Book `n` pages as taken from the freelist, whose next id stands at `head`."""
    if head >= slab[NUM_PAGES] and slab[ORDER] != SORTED:
        head -= slab[NUM_PAGES]
    slab[HEAD] = head
    slab[FREE] -= n
    slab[ALLOCATED] += n
    used = slab[NUM_PAGES] - slab[FREE] - slab[RELEASED] - slab[FIRST_PAGE]
    slab[PEAK_USED] = max(slab[PEAK_USED], used)


@helper
def pool_take(slab, out):
    """Take `out.size` ids, one owner each; return 0 or a status word."""
    n = out.size
    status = pool_reserve(slab, n)
    if status < 0:
        return status
    free_pages, refcount, _released = pool_views(slab)
    head = slab[HEAD]
    before_wrap = min(n, slab[NUM_PAGES] - head)
    for i in range(before_wrap):
        page = free_pages[head + i]
        refcount[page] = 1
        out[i] = page
    head -= slab[NUM_PAGES]
    for i in range(before_wrap, n):
        page = free_pages[head + i]
        refcount[page] = 1
        out[i] = page
    pool_advance(slab, head + slab[NUM_PAGES] + n, n)
    return np.int64(0)


@helper
def lowest_run(slab, n):
    """Return the first page of the lowest run of `n` free pages, or -1."""
    _free_pages, refcount, _released = pool_views(slab)
    start = slab[FIRST_PAGE]
    while start + n <= slab[NUM_PAGES]:
        j = start + n - 1  # from the back: a used page rules out every start up to it
        while j >= start and refcount[j] == 0:
            j -= 1
        if j < start:
            return start
        start = j + 1
    return np.int64(-1)


@helper
def longest_run(slab):
    """Return the length of the longest run of consecutive free (or released) pages."""
    _free_pages, refcount, _released = pool_views(slab)
    longest = np.int64(0)
    run = np.int64(0)
    for page in range(slab[FIRST_PAGE], slab[NUM_PAGES]):
        run = run + 1 if refcount[page] == 0 else np.int64(0)
        longest = max(longest, run)
    return longest


@helper
def freelist_place(free_pages, low, high, page):
    """Return the place of `page` in the ascending `free_pages[low:high]`."""
    while low < high:
        middle = (low + high) >> 1
        if free_pages[middle] < page:
            low = middle + 1
        else:
            high = middle
    return low


@helper
def pool_total(counts):
    """Return the sum of `counts`, or a status word where one is negative or the sum too large."""
    total = np.int64(0)
    for i in range(counts.size):
        if counts[i] < 0:
            return fail(NEGATIVE, i)
        total += counts[i]
        if counts[i] > INT32_MAX or total > INT32_MAX:
            return fail(TOO_MANY, i)
    return total


@kernel("int64(int64[::1], int32[::1])")
def pool_alloc_cpu(slab, out):
    """Mutates the pool (freelist, owners, clock) and `out`, the ids handed out.

    Reads nothing else, requires nothing: without that many pages it fails, and changes nothing.
    """
    if not try_lock(slab):
        return fail(BUSY, 0)
    status = pool_take(slab, out)
    if status == 0:
        slab[STEP] += 1
    unlock(slab)
    return status


@kernel("int64(int64[::1], int32[::1])")
def pool_alloc_run_cpu(slab, out):
    """Mutates the pool and `out`, the lowest run of consecutive ids that is free.

    Reads nothing else, requires the order `sorted`.
    """
    if not try_lock(slab):
        return fail(BUSY, 0)
    # Where is there such a run?
    n = out.size
    available = slab[FREE] + slab[RELEASED]
    first = lowest_run(slab, n) if n <= available else np.int64(-1)
    if first < 0:
        status = (
            fail(NO_RUN, longest_run(slab)) if n <= available else fail(OUT_OF_PAGES, available)
        )
        unlock(slab)
        return status
    # The freelist closes the gap that the run leaves: what stands before it moves up.
    pool_merge(slab)
    free_pages, refcount, _released = pool_views(slab)
    head = slab[HEAD]
    at = freelist_place(free_pages, head, slab[NUM_PAGES], first)
    for i in range(at - 1, head - 1, -1):
        free_pages[i + n] = free_pages[i]
    for i in range(n):
        out[i] = first + i
        refcount[first + i] = 1
    pool_advance(slab, head + n, n)
    slab[STEP] += 1
    unlock(slab)
    return np.int64(0)


@kernel("int64(int64[:])")
def pool_total_cpu(counts):
    """Mutates nothing.

    Reads `counts`, requires nothing, and takes no lock; returns their sum.
    """
    return pool_total(counts)


@kernel("int64(int64[::1], int64[:], int32[::1], int32[::1])")
def pool_alloc_batch_cpu(slab, counts, indptr, out):
    """Mutates the pool, `indptr` and `out`, the ids of all sequences one behind the other.

    Reads `counts`, requires `indptr` one longer, and `out` as long as `pool_total_cpu` has said:
    where the counts have changed since, it fails.
    """
    total = pool_total(counts)
    if total < 0:
        return total
    if total != out.size:
        return fail(CHANGED, 0)
    if not try_lock(slab):
        return fail(BUSY, 0)
    status = pool_take(slab, out)
    if status == 0:
        end = np.int64(0)
        indptr[0] = 0
        for i in range(counts.size):
            end += counts[i]
            indptr[i + 1] = end
        slab[STEP] += 1
    unlock(slab)
    return status


@kernel("int64(int64[::1], int64[:])")
def pool_admit_cpu(slab, counts):
    """Mutates nothing.

    Reads `counts` and the free pages of the pool, requires nothing; returns how many of the counts,
    from the first on, the pool could serve.
    """
    for i in range(counts.size):
        if counts[i] < 0:
            return fail(NEGATIVE, i)
    if not try_lock(slab):
        return fail(BUSY, 0)
    left = slab[FREE] + slab[RELEASED]
    unlock(slab)
    for i in range(counts.size):
        if counts[i] > left:
            return np.int64(i)
        left -= counts[i]
    return np.int64(counts.size)


@kernel("int64(int64[::1])")
def pool_merge_cpu(slab):
    """Mutates the pool: released pages join the freelist.

    Reads nothing else, requires nothing; returns how many there were.
    """
    if not try_lock(slab):
        return fail(BUSY, 0)
    count = pool_merge(slab)
    slab[STEP] += 1
    unlock(slab)
    return count
