"""Twins of the page pool's loops: allocation, contiguous runs, batches, admission, merge."""

from __future__ import annotations

import numpy as np

from jitalloc.errors import NEGATIVE, NO_RUN, OUT_OF_PAGES, OUT_SHORT, STATUS_BITS, TOO_MANY
from jitalloc.gpu.calls import end_read, fail, fault_key, fill_null, integer, ring_place
from jitalloc.gpu.kernel import MOST_THREADS, cuda_kernel, device_helper, gpu
from jitalloc.gpu.record import CALL_KINDS, CALLS
from jitalloc.gpu.scan import (
    NOWHERE,
    SHARED_WORDS,
    any_thread,
    block_highest_before,
    block_min,
    block_scan,
    block_share,
    is_last_block,
    last_block,
    part_of,
)
from jitalloc.pool.loops.batches_cuda import (
    count_of,
    first_beyond,
    first_negative,
    part_total,
    running,
    share_indptr,
)
from jitalloc.pool.loops.merging_cuda import (
    BATCH,
    VERDICT,
    block_freelist,
    block_merge,
    end_merge,
    merge_part,
    pool_scratch,
    pool_views,
)
from jitalloc.pool.loops.pool import (
    pool_admit_cpu,
    pool_alloc_batch_cpu,
    pool_alloc_cpu,
    pool_alloc_run_cpu,
    pool_merge_cpu,
    pool_total_cpu,
)
from jitalloc.pool.state import (
    ALLOCATED,
    FIRST_PAGE,
    FREE,
    HEAD,
    NUM_PAGES,
    ORDER,
    PEAK_USED,
    RELEASED,
    SORTED,
    STEP,
)
from jitalloc.state import INT32_MAX, NULL

ALLOC = CALL_KINDS.index("alloc")
ALLOC_RUN = CALL_KINDS.index("alloc_run")
ALLOC_BATCH = CALL_KINDS.index("alloc_batch")
ADMIT = CALL_KINDS.index("admit")


@device_helper
def pool_advance(slab, head, n):
    """Book `n` pages as taken from the freelist, whose next id stands at `head`, by one thread."""
    if head >= slab[NUM_PAGES] and slab[ORDER] != SORTED:
        head -= slab[NUM_PAGES]
    slab[HEAD] = head
    slab[FREE] -= n
    slab[ALLOCATED] += n
    used = slab[NUM_PAGES] - slab[FREE] - slab[RELEASED] - slab[FIRST_PAGE]
    slab[PEAK_USED] = max(slab[PEAK_USED], used)


@device_helper
def end_call(slab, record, kind, status, value, wanted):
    """Book the end of a call, by one thread of its last block."""
    if status >= 0:
        slab[STEP] += 1
    end_read(record, kind, status, value, wanted)


@device_helper
def page_of(slot, size, shift):
    """Return the page of a slot, or the block of a position."""
    return slot >> shift if shift >= 0 else slot // size


@device_helper
def hand_out(slab, out, first, end, step):
    """Copy the ids of the places `first .. end - 1` behind HEAD to `out`, one owner each.

    Every `step`-th of them.
    """
    free_pages, refcount, _released = pool_views(slab)
    head, size = slab[HEAD], slab[NUM_PAGES]
    i = np.int64(first)
    while i < end:
        page = free_pages[ring_place(head + i, size)]
        refcount[page] = 1
        out[i] = page
        i += step


@device_helper
def hand_out_merged(slab, shared, out, n):
    """Do a part of a merge, and hand out what stands in it of the first `n` ids."""
    free_pages, refcount, _released = pool_views(slab)
    first, end = merge_part(slab, shared)
    head = slab[HEAD] - slab[RELEASED]  # once the merge is booked
    i, end = first + gpu.threadIdx.x, min(end, head + n)
    while i < end:
        page = free_pages[i]
        refcount[page] = 1
        out[i - head] = page
        i += gpu.blockDim.x


@device_helper
def take(slab, record, shared, out, n, status):
    """Hand out `n` ids, or NULL where `status` tells of a failure, by all blocks.

    Returns whether this is the last block, which has seen all of it done. A merge that is due they
    do too: the ids of a part are handed out by the block that writes it.
    """
    now, available = slab[FREE], slab[FREE] + slab[RELEASED]
    first, step = gpu.grid(1), gpu.gridsize(1)
    sound = status >= 0 and n <= available
    if sound and n > now:
        hand_out_merged(slab, shared, out, n)
    elif sound:
        hand_out(slab, out, first, n, step)
    fill_null(out, n if sound else np.int64(0), first, step)
    if not is_last_block(record, shared):
        return False
    if sound and n > now:
        end_merge(slab)
    return True


@device_helper
def end_take(slab, record, kind, n, status, value):
    """Book a call that `take` has served, by one thread."""
    available = slab[FREE] + slab[RELEASED]
    if status >= 0 and n > available:
        status = fail(OUT_OF_PAGES, available)
    if status >= 0:
        pool_advance(slab, slab[HEAD] + n, n)
    end_call(slab, record, kind, status, value, n)


@cuda_kernel("void(int64[::1], int64[::1], int32[::1])", twin=pool_alloc_cpu)
def pool_alloc_cuda(slab, record, out):
    """Mutates the pool, its record and `out`, the ids handed out, or NULL where the call fails.

    Reads nothing else, requires nothing. Any number of blocks: where a merge is due they do it.
    """
    shared = gpu.shared.array(SHARED_WORDS, np.int64)
    n = np.int64(out.size)
    if take(slab, record, shared, out, n, np.int64(0)) and gpu.threadIdx.x == 0:
        end_take(slab, record, ALLOC, n, np.int64(0), np.int64(0))


@device_helper
def block_total(shared, counts, wide, n):
    """Return the sum of `n` counts, or a status word where one is negative or the sum too large."""
    total, tile = np.int64(0), np.int64(0)
    while tile < n:
        i = np.int64(tile + gpu.threadIdx.x)
        count, mine = count_of(counts, wide, i, n)
        before, tile_total = block_scan(shared, mine)
        key = NOWHERE
        if count < 0:
            key = fault_key(NEGATIVE, i)
        elif total + before + mine > INT32_MAX:
            key = fault_key(TOO_MANY, i)
        total += tile_total
        if any_thread(key != NOWHERE):
            return -block_min(shared, key)
        tile += gpu.blockDim.x
    return total


@device_helper
def batch_status(slab, total, room):
    """Return the status word of a batch that sums up to `total`, with `room` in its buffer."""
    available = slab[FREE] + slab[RELEASED]
    if total < 0:
        return total
    if total > available:
        return fail(OUT_OF_PAGES, available)
    return fail(OUT_SHORT, room) if total > room else np.int64(0)


@cuda_kernel(
    "void(int64[::1], int64[::1], int32[::1], int64, int64)", twin=pool_total_cpu, step=False
)
def pool_total_cuda(slab, record, counts, n, wide):
    """Mutates the scratch behind the pool: the sum of the counts, or a status word, and what stands
    before the part of each block. First launch of a large batch.

    Reads the `n` counts, requires as many blocks as `pool_alloc_batch_cuda` will have.
    """
    shared = gpu.shared.array(SHARED_WORDS, np.int64)
    scratch, _places = pool_scratch(slab)
    # Each block sums up its part; the last one adds up the parts.
    total, bad = part_total(shared, counts, wide, n)
    if gpu.threadIdx.x == 0:
        scratch[BATCH + gpu.blockIdx.x] = total
    last, bad_blocks = last_block(record, shared, np.int64(bad))
    if not last:
        return
    total = running(shared, scratch, np.int64(BATCH), np.int64(gpu.gridDim.x))
    if bad_blocks > 0 or total > INT32_MAX:
        total = block_total(shared, counts, wide, n)
    if gpu.threadIdx.x == 0:
        scratch[VERDICT] = total


@cuda_kernel(
    "void(int64[::1], int64[::1], int32[::1], int32[::1], int32[::1], int64, int64)",
    twin=pool_alloc_batch_cpu,
)
def pool_alloc_batch_cuda(slab, record, counts, indptr, out, wide, summed):
    """Mutates the pool, its record, `indptr` and `out`, the ids of all sequences one behind the
    other; NULL where the call fails.

    Reads `counts`, requires `indptr` one longer, and `out` as long as they sum up to, or it fails.
    `wide`: counts of int64. `summed`: behind `pool_total_cuda` in as many blocks.
    """
    shared = gpu.shared.array(SHARED_WORDS, np.int64)
    scratch, _places = pool_scratch(slab)
    batch = np.int64(indptr.size - 1)
    total = scratch[VERDICT] if summed else block_total(shared, counts, wide, batch)
    status = batch_status(slab, total, np.int64(out.size))
    begin, end, before = np.int64(0), batch, np.int64(0)
    if summed:
        begin, end = block_share(batch)
        before = scratch[BATCH + gpu.blockIdx.x]
    # Where the pages of each sequence begin, then the pages themselves.
    if status < 0:
        fill_null(indptr, 0, gpu.grid(1), gpu.gridsize(1))
    elif summed or gpu.blockIdx.x == 0:
        share_indptr(shared, counts, wide, indptr, begin, end, before)
        if gpu.grid(1) == 0:
            indptr[batch] = total
    n = max(total, np.int64(0))
    if take(slab, record, shared, out, n, status) and gpu.threadIdx.x == 0:
        value = np.int64(0)
        if total < 0:
            value = integer(counts, wide, -total >> STATUS_BITS)
        end_take(slab, record, ALLOC_BATCH, n, status, value)


@cuda_kernel(
    "void(int64[::1], int64[::1], int32[::1], int64[::1], int64, int64)",
    twin=pool_admit_cpu,
    step=False,
)
def pool_admit_cuda(slab, record, counts, out, n, wide):
    """Mutates the record, `out[0]`, how many of the counts the pool could serve, or NULL where the
    call fails, and the scratch behind the pool.

    Reads the `n` counts and the free pages, requires nothing. `wide`: counts of int64.
    """
    shared = gpu.shared.array(SHARED_WORDS, np.int64)
    scratch, _places = pool_scratch(slab)
    # All blocks sum up their parts.
    total, bad = part_total(shared, counts, wide, n)
    if gpu.threadIdx.x == 0:
        scratch[BATCH + gpu.blockIdx.x] = total
    last, bad_blocks = last_block(record, shared, np.int64(bad))
    if not last:
        return
    # The last one looks for what is wrong, or into the part in which the pages are used up.
    if bad_blocks > 0:
        worst = first_negative(shared, counts, wide, n)
        if gpu.threadIdx.x == 0:
            value = integer(counts, wide, worst)
            out[0] = NULL
            end_call(slab, record, ADMIT, fail(NEGATIVE, worst), value, np.int64(0))
        return
    left, blocks = slab[FREE] + slab[RELEASED], np.int64(gpu.gridDim.x)
    part, before = np.int64(0), np.int64(0)
    if blocks > 1:
        total = running(shared, scratch, np.int64(BATCH), blocks)
        fits = np.int64(-1)  # the last part before which not too many stand
        i = np.int64(gpu.threadIdx.x)
        while i < blocks:
            if scratch[BATCH + i] <= left:
                fits = i
            i += gpu.blockDim.x
        part = -block_min(shared, -fits)
        before = scratch[BATCH + part]
    begin, end = part_of(n, part)
    first = first_beyond(shared, counts, wide, begin, end, left - before)
    if gpu.threadIdx.x == 0:
        out[0] = min(first, n)
        record[CALLS] += 1


@cuda_kernel("void(int64[::1], int64[::1], int64[::1])", twin=pool_merge_cpu)
def pool_merge_cuda(slab, record, out):
    """Mutates the pool, its record and `out[0]`, how many released pages have joined the freelist.

    Reads nothing else, requires nothing.
    """
    shared = gpu.shared.array(SHARED_WORDS, np.int64)
    waiting = slab[RELEASED]
    if waiting > 0:
        merge_part(slab, shared)
    if not is_last_block(record, shared):
        return
    if waiting > 0:
        end_merge(slab)
    if gpu.threadIdx.x == 0:
        out[0] = waiting
        slab[STEP] += 1
        record[CALLS] += 1


@device_helper
def block_runs(slab, shared, n):
    """Return `(first page of the lowest run of n free pages or NOWHERE, length of the longest)`."""
    _free_pages, refcount, _released = pool_views(slab)
    first, end = slab[FIRST_PAGE], slab[NUM_PAGES]
    share = (end - first + gpu.blockDim.x - 1) // gpu.blockDim.x
    begin = min(first + share * gpu.threadIdx.x, end)
    stop = min(begin + share, end)
    after_used = first
    for page in range(begin, stop):
        if refcount[page] > 0:
            after_used = np.int64(page + 1)
    run = begin - block_highest_before(shared, after_used, first)
    lowest, longest = NOWHERE, np.int64(0)
    for page in range(begin, stop):
        run = run + 1 if refcount[page] == 0 else np.int64(0)
        longest = max(longest, run)
        if run >= n and lowest == NOWHERE:
            lowest = np.int64(page + 1 - n)
    return block_min(shared, lowest), -block_min(shared, -longest)


@cuda_kernel("void(int64[::1], int64[::1], int32[::1])", twin=pool_alloc_run_cpu)
def pool_alloc_run_cuda(slab, record, out):
    """Mutates the pool, its record and `out`, the lowest run of consecutive ids that is free, or
    NULL.

    Reads nothing else, requires the order `sorted`, and one block.
    """
    shared = gpu.shared.array(MOST_THREADS, np.int64)
    n = np.int64(out.size)
    available = slab[FREE] + slab[RELEASED]
    # Where is there such a run?
    lowest, longest = slab[FIRST_PAGE], np.int64(0)
    if n > 0:
        lowest, longest = block_runs(slab, shared, n)
    me, step = gpu.threadIdx.x, gpu.blockDim.x
    if lowest == NOWHERE:
        fill_null(out, 0, me, step)
        if me == 0:
            short = n > available
            status = fail(OUT_OF_PAGES, available) if short else fail(NO_RUN, longest)
            end_call(slab, record, ALLOC_RUN, status, available, n)
        return
    # It is taken, and the freelist written anew without it.
    _free_pages, refcount, _released = pool_views(slab)
    block_merge(slab, shared)
    for i in range(me, n, step):
        out[i] = lowest + i
        refcount[lowest + i] = 1
    gpu.syncthreads()
    block_freelist(slab, shared, slab[HEAD] + n)
    if me == 0:
        pool_advance(slab, slab[HEAD] + n, n)
        end_call(slab, record, ALLOC_RUN, np.int64(0), np.int64(0), n)
