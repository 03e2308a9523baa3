"""Loops over a whole pool: check, clear, resize, defragment, copy."""

from __future__ import annotations

import numpy as np

from jitalloc._intrinsics import bit, bit_count, fail, try_lock, unlock
from jitalloc._jit import helper, kernel
from jitalloc.errors import (
    BAD_BITMAP,
    BAD_FREE_ID,
    BAD_HEADER,
    BUSY,
    FREE_OWNED,
    FREE_TWICE,
    LOST,
    MARKS_LEFT,
    NEGATIVE_COUNT,
    NOT_ASCENDING,
    NULL_PAGE_COUNT,
    PAGE_IN_USE,
    RELEASED_AND_FREE,
    RELEASED_OWNED,
)
from jitalloc.pool.loops.pool import longest_run, pool_views
from jitalloc.pool.state import (
    ALLOCATED,
    FIRST_PAGE,
    FREE,
    FREED,
    HEAD,
    MERGES,
    NUM_PAGES,
    ORDER,
    PEAK_USED,
    RELEASED,
    SORTED,
    STEP,
)
from jitalloc.state import HEADER_SLOTS, LOCK, RETIRED


@helper
def upkeep_header_fault(slab):
    """Return the header slot that contradicts the others, or -1."""
    n, first, free, waiting = slab[NUM_PAGES], slab[FIRST_PAGE], slab[FREE], slab[RELEASED]
    used = n - first - free - waiting
    if free < 0 or used < 0:
        return FREE
    if waiting < 0 or (slab[ORDER] != SORTED and waiting != 0):
        return RELEASED
    if slab[ORDER] == SORTED:
        if slab[HEAD] != n - free:
            return HEAD
    elif slab[HEAD] < 0 or slab[HEAD] >= n:
        return HEAD
    if slab[PEAK_USED] < used or slab[PEAK_USED] > max(n, slab[ALLOCATED]):
        return PEAK_USED
    if slab[FREED] < 0 or slab[ALLOCATED] - slab[FREED] != used:
        return ALLOCATED
    if slab[STEP] < 0:
        return STEP
    if slab[MERGES] < 0 or slab[MERGES] > slab[STEP]:
        return MERGES
    for unused in range(LOCK + 1, HEADER_SLOTS):
        if slab[unused] != 0:
            return unused
    return -1


@helper
def upkeep_freelist_fault(slab, seen):
    """Mark the freelist in `seen`; return the status word of its first fault, or 0."""
    free_pages, refcount, released = pool_views(slab)
    n = slab[NUM_PAGES]
    before = np.int64(-1)
    for i in range(slab[FREE]):
        at = (slab[HEAD] + i) % n
        page = np.int64(free_pages[at])
        if page < slab[FIRST_PAGE] or page >= n:
            return fail(BAD_FREE_ID, at)
        if seen[page >> 6] & bit(page) != np.uint64(0):
            return fail(FREE_TWICE, page)
        seen[page >> 6] |= bit(page)
        if released[page >> 6] & bit(page) != np.uint64(0):
            return fail(RELEASED_AND_FREE, page)
        if refcount[page] > 0:
            return fail(FREE_OWNED, page)
        if slab[ORDER] == SORTED and page <= before:
            return fail(NOT_ASCENDING, page)
        before = page
    return np.int64(0)


@helper
def upkeep_fault(slab, seen):
    """Return the status word of the first broken invariant, or 0."""
    slot = upkeep_header_fault(slab)
    if slot >= 0:
        return fail(BAD_HEADER, slot)
    status = upkeep_freelist_fault(slab, seen)
    if status < 0:
        return status
    _free_pages, refcount, released = pool_views(slab)
    n = slab[NUM_PAGES]
    marks = slab[HEADER_SLOTS + released.size : HEADER_SLOTS + 2 * released.size]
    waiting = np.int64(0)
    for w in range(released.size):
        waiting += np.int64(bit_count(released[w]))
        if marks[w] != 0:
            return fail(MARKS_LEFT, w)
    if n & 63 and released[released.size - 1] >> np.uint64(n & 63) != np.uint64(0):
        return fail(BAD_BITMAP, waiting)
    if waiting != slab[RELEASED]:
        return fail(BAD_BITMAP, waiting)
    if slab[FIRST_PAGE] == 1 and refcount[0] != 1:
        return fail(NULL_PAGE_COUNT, 0)
    for page in range(n):
        if refcount[page] < 0:
            return fail(NEGATIVE_COUNT, page)
        waits = released[page >> 6] & bit(page) != np.uint64(0)
        if waits and refcount[page] > 0:
            return fail(RELEASED_OWNED, page)
        if not waits and refcount[page] == 0 and seen[page >> 6] & bit(page) == np.uint64(0):
            return fail(LOST, page)
    return np.int64(0)


@kernel("int64(int64[::1], uint64[::1])")
def upkeep_check_cpu(slab, seen):
    """Mutates `seen`, the pages that stand in the freelist.

    Reads the whole pool, requires `seen` of zeros, one bit a page; returns the first fault.
    """
    if not try_lock(slab):
        return fail(BUSY, 0)
    status = upkeep_fault(slab, seen)
    unlock(slab)
    return status


@kernel("int64(int64[::1], int64[::1], int64)")
def upkeep_stats_cpu(slab, header, runs):
    """Mutates `header`, a copy of the pool's.

    Reads the pool, requires HEADER_SLOTS words; returns the longest run of free pages, for which it
    looks at all of them, or 0 where `runs` is.
    """
    if not try_lock(slab):
        return fail(BUSY, 0)
    for slot in range(HEADER_SLOTS):
        header[slot] = slab[slot]
    longest = longest_run(slab) if runs != 0 else np.int64(0)
    unlock(slab)
    return longest


@helper
def clear_words(words):
    """Set every word to zero."""
    for w in range(words.size):
        words[w] = np.uint64(0)


@kernel("int64(int64[::1])")
def upkeep_clear_cpu(slab):
    """Mutates the pool: all pages are free, in ascending order.

    Reads nothing else, requires that no holder uses its pages any longer.
    """
    if not try_lock(slab):
        return fail(BUSY, 0)
    free_pages, refcount, released = pool_views(slab)
    n, first = slab[NUM_PAGES], slab[FIRST_PAGE]
    slab[FREED] += n - first - slab[FREE] - slab[RELEASED]
    slab[HEAD] = first % n
    slab[FREE] = n - first
    slab[RELEASED] = 0
    if slab[ORDER] == SORTED:
        slab[HEAD] = first
    clear_words(released)
    for page in range(n):
        refcount[page] = 1 if page < first else 0
        free_pages[page] = page
    slab[STEP] += 1
    unlock(slab)
    return np.int64(0)


@kernel("int64(int64[::1], int64[::1])")
def upkeep_copy_cpu(slab, out):
    """Mutates `out`, a copy of the slab that nobody has locked.

    Reads the whole slab, requires `out` of its length.
    """
    if not try_lock(slab):
        return fail(BUSY, 0)
    for i in range(slab.size):  # a loop compiles in a tenth of the time of out[:] = slab
        out[i] = slab[i]
    out[LOCK] = 0
    unlock(slab)
    return np.int64(0)


@kernel("int64(int64[::1])")
def upkeep_retire_cpu(slab):
    """Mutates the lock of a slab: it stays taken, and whoever comes has to look for a new slab.

    Reads nothing else, requires a caller who puts another slab in its place, or gives it back by
    `upkeep_unlock_cpu`.
    """
    if not try_lock(slab):
        return fail(BUSY, 0)
    slab[LOCK] = RETIRED
    return np.int64(0)


@kernel("int64(int64[::1], int64[::1])")
def upkeep_resize_cpu(slab, new):
    """Mutates `new`, the same pool with another number of pages, and retires `slab`, whose lock
    stays taken.

    Reads `slab`, requires `new` to hold its NUM_PAGES and zeros. Where a page above the new end has
    owners it fails, and changes nothing.
    """
    if not try_lock(slab):
        return fail(BUSY, 0)
    free_pages, refcount, released = pool_views(slab)
    new_free, new_count, new_released = pool_views(new)
    n, end = slab[NUM_PAGES], new[NUM_PAGES]
    # Nobody may hold a page that goes.
    for page in range(end, n):
        if refcount[page] > 0:
            unlock(slab)
            return fail(PAGE_IN_USE, page)
    # Counts and released pages go over.
    waiting = np.int64(0)
    for page in range(min(n, end)):
        new_count[page] = refcount[page]
        if released[page >> 6] & bit(page) != np.uint64(0):
            new_released[page >> 6] |= bit(page)
            waiting += 1
    # The freelist goes over in its order, new pages behind it.
    put = np.int64(0)
    for i in range(slab[FREE]):
        page = free_pages[(slab[HEAD] + i) % n]
        if page < end:
            new_free[put] = page
            put += 1
    for page in range(n, end):
        new_free[put] = page
        put += 1
    # The header goes over, but for what has changed.
    for slot in range(HEADER_SLOTS):
        if slot != NUM_PAGES and slot != LOCK:
            new[slot] = slab[slot]
    new[FREE] = put
    new[RELEASED] = waiting
    new[HEAD] = 0
    if slab[ORDER] == SORTED:  # a sorted freelist ends at N
        new[HEAD] = end - put
        for i in range(put - 1, -1, -1):
            new_free[end - put + i] = new_free[i]
    new[STEP] += 1
    slab[LOCK] = RETIRED
    return np.int64(0)


@kernel("int64(int64[::1], int32[::1], int32[::1])")
def upkeep_defragment_cpu(slab, src, dst):
    """Mutates the pool, whose used pages come to have the lowest ids, and `src` and `dst`, which
    page has moved where. The lock stays taken, for the tables have to follow.

    Reads nothing else, requires `src` and `dst` of as many elements as pages can move, and
    `upkeep_unlock_cpu` when the tables have followed.
    """
    if not try_lock(slab):
        return fail(BUSY, 0)
    free_pages, refcount, released = pool_views(slab)
    n, first = slab[NUM_PAGES], slab[FIRST_PAGE]
    end = n - slab[FREE] - slab[RELEASED]  # used pages will fill first .. end-1
    # Each used page behind `end` moves to the lowest hole before it.
    moves = 0
    hole = first
    for page in range(end, n):
        if refcount[page] == 0:
            continue
        while refcount[hole] > 0:
            hole += 1
        src[moves] = page
        dst[moves] = hole
        moves += 1
        refcount[hole] = refcount[page]
        refcount[page] = 0
    # What lies behind is free, in ascending order.
    clear_words(released)
    for page in range(end, n):
        free_pages[page] = page
    slab[HEAD] = end if slab[ORDER] == SORTED else end % n
    slab[FREE] = n - end
    slab[RELEASED] = 0
    slab[STEP] += 1
    return np.int64(moves)


@kernel("int64(int64[::1])")
def upkeep_unlock_cpu(slab):
    """Mutates the lock of a slab, which it gives back.

    Reads nothing, requires the caller to hold it.
    """
    unlock(slab)
    return np.int64(0)


@kernel("int64(int64[::1], int64)")
def upkeep_advance_cpu(pool, steps):
    """Mutates the pool's header: its step goes on by `steps`.
    Reads nothing else, requires a pool of another device: the clock of the host follows it.
    """
    if not try_lock(pool):
        return fail(BUSY, 0)
    pool[STEP] += steps
    unlock(pool)
    return np.int64(0)
