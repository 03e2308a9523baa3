"""Twins of the page pool's loops: allocation, contiguous runs, batches, admission, merge."""

from __future__ import annotations

import numpy as np

from jitalloc._cuda import MOST_THREADS, cuda_kernel, device_helper, gpu
from jitalloc._cuda_loops import from_cpu
from jitalloc.errors import NEGATIVE, NO_RUN, OUT_OF_PAGES, OUT_SHORT, STATUS_BITS, TOO_MANY
from jitalloc.kernels import pool
from jitalloc.kernels.cuda.merging import (
    BATCH,
    VERDICT,
    block_freelist,
    block_merge,
    count_free,
    end_merge,
    running,
    share_merge,
)
from jitalloc.kernels.cuda.scan import (
    NONE,
    SHARED_WORDS,
    any_thread,
    block_highest_before,
    block_min,
    block_scan,
    block_share,
    is_last_block,
    last_block,
)
from jitalloc.state import (
    CALL_KINDS,
    CALLS,
    FAULT_CALL,
    FAULT_KIND,
    FAULT_STATUS,
    FAULT_VALUE,
    FAULT_WANTED,
    FIRST_PAGE,
    FREE,
    HEAD,
    INT32_MAX,
    NULL,
    NUM_PAGES,
    RELEASED,
    STEP,
)

ALLOC = CALL_KINDS.index("alloc")
ALLOC_RUN = CALL_KINDS.index("alloc_run")
ALLOC_BATCH = CALL_KINDS.index("alloc_batch")
ADMIT = CALL_KINDS.index("admit")

pool_views = from_cpu(pool.pool_views)
pool_advance = from_cpu(pool.pool_advance)


@device_helper
def fail(code, detail):
    """Return the status word of `code` and `detail`."""
    return -((np.int64(detail) << STATUS_BITS) | code)


@device_helper
def bit(page):
    """Return the mask of `page` in its 64-bit word."""
    return np.uint64(1) << np.uint64(page & 63)


@device_helper
def fault_key(code, position):
    """Return what stands for a failure until the first is known: the lowest key is that one."""
    return (np.int64(position) << STATUS_BITS) | code


@device_helper
def end_read(record, kind, status, value, wanted):
    """Book the end of a call that changes nothing, by one thread."""
    if status < 0 and record[FAULT_STATUS] == 0:
        record[FAULT_STATUS] = status
        record[FAULT_CALL] = record[CALLS]
        record[FAULT_KIND] = kind
        record[FAULT_VALUE] = value
        record[FAULT_WANTED] = wanted
    record[CALLS] += 1


@device_helper
def end_call(slab, record, kind, status, value, wanted):
    """Book the end of a call, by one thread of its last block."""
    if status >= 0:
        slab[STEP] += 1
    end_read(record, kind, status, value, wanted)


@device_helper
def fill_null(out, start, first, step):
    """Write NULL to `out[start:]`, every `step`-th element from `first` on."""
    i = np.int64(start + first)
    while i < out.size:  # `range` would divide to know how often
        out[i] = NULL
        i += step


@device_helper
def ring_place(at, size):
    """Return the place `at` of a ring of `size`, where it is past the end but once."""
    return at - size if at >= size else at


@device_helper
def hand_out(slab, out, n, first, step):
    """Copy the next `n` ids to `out`, one owner each: every `step`-th from `first` on."""
    free_pages, refcount, _released = pool_views(slab)
    head, size = slab[HEAD], slab[NUM_PAGES]
    for i in range(first, n, step):
        page = free_pages[ring_place(head + i, size)]
        refcount[page] = 1
        out[i] = page
    fill_null(out, n, first, step)


@device_helper
def take(slab, record, shared, out, n, status):
    """Hand out `n` ids, or NULL where `status` tells of a failure, by all blocks.

    Returns whether this is the last block, which has seen all of it done.
    """
    available = slab[FREE] + slab[RELEASED]
    now = slab[FREE]
    first, step = gpu.grid(1), gpu.gridsize(1)
    if status < 0 or n > available:
        fill_null(out, 0, first, step)
    elif n <= now:
        hand_out(slab, out, n, first, step)
    if not is_last_block(record, shared):
        return False
    if status >= 0 and now < n <= available:
        block_merge(slab, shared)
        hand_out(slab, out, n, gpu.threadIdx.x, gpu.blockDim.x)
        gpu.syncthreads()
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


@cuda_kernel("void(int64[::1], int64[::1], int32[::1])")
def pool_alloc_cuda(slab, record, out):
    shared = gpu.shared.array(SHARED_WORDS, np.int64)
    n = np.int64(out.size)
    if take(slab, record, shared, out, n, np.int64(0)) and gpu.threadIdx.x == 0:
        end_take(slab, record, ALLOC, n, np.int64(0), np.int64(0))


@device_helper
def block_total(shared, counts):
    """Return the sum of `counts`, or a status word where one is negative or the sum too large."""
    total = np.int64(0)
    for tile in range(0, counts.size, gpu.blockDim.x):
        i = np.int64(tile + gpu.threadIdx.x)
        count = np.int64(counts[i]) if i < counts.size else np.int64(0)
        mine = min(max(count, np.int64(0)), np.int64(INT32_MAX + 1))
        before, tile_total = block_scan(shared, mine)
        key = NONE
        if count < 0:
            key = fault_key(NEGATIVE, i)
        elif total + before + mine > INT32_MAX:
            key = fault_key(TOO_MANY, i)
        total += tile_total
        if any_thread(key != NONE):
            return -block_min(shared, key)
    return total


@device_helper
def share_indptr(shared, counts, indptr, begin, end, total):
    """Write where the pages of the sequences `begin .. end - 1` begin; `total` come before."""
    for tile in range(begin, end, gpu.blockDim.x):
        i = np.int64(tile + gpu.threadIdx.x)
        before, tile_total = block_scan(shared, np.int64(counts[i]) if i < end else np.int64(0))
        if i < end:
            indptr[i] = total + before
        total += tile_total


@device_helper
def batch_status(slab, total, room):
    """Return the status word of a batch that sums up to `total`, with `room` in its buffer."""
    available = slab[FREE] + slab[RELEASED]
    if total < 0:
        return total
    if total > available:
        return fail(OUT_OF_PAGES, available)
    return fail(OUT_SHORT, room) if total > room else np.int64(0)


@cuda_kernel("void(int64[::1], int64[::1], int64[::1], int64[::1], int64)")
def pool_total_cuda(slab, record, counts, totals, wanted):
    """Sum up a batch, and count the free pages if `wanted` ones call for a merge: first launch."""
    shared = gpu.shared.array(SHARED_WORDS, np.int64)
    begin, end = block_share(np.int64(counts.size))
    mine, bad = np.int64(0), False
    for i in range(begin + gpu.threadIdx.x, end, gpu.blockDim.x):
        bad |= counts[i] < 0
        mine += min(max(counts[i], np.int64(0)), np.int64(INT32_MAX + 1))
    _before, total = block_scan(shared, mine)
    if gpu.threadIdx.x == 0:
        totals[BATCH + gpu.blockIdx.x] = total
    merges = slab[RELEASED] > 0 and wanted > slab[FREE]
    if merges:
        count_free(slab, shared, totals)
    last, bad_blocks = last_block(record, shared, np.int64(1) if any_thread(bad) else np.int64(0))
    if not last:
        return
    if merges:
        running(shared, totals, np.int64(0), np.int64(gpu.gridDim.x))
    total = running(shared, totals, np.int64(BATCH), np.int64(gpu.gridDim.x))
    if bad_blocks > 0 or total > INT32_MAX:
        total = block_total(shared, counts)
    if gpu.threadIdx.x == 0:
        totals[VERDICT] = total


@cuda_kernel("void(int64[::1], int64[::1], int64[::1], int32[::1], int64[::1], int64, int64)")
def pool_reserve_cuda(slab, record, counts, indptr, totals, wanted, room):
    """Merge where the `wanted` pages call for it, and write where those of each begin.

    The second launch, behind `pool_total_cuda` in as many blocks. `wanted`: -1 for the sum of
    the batch.
    """
    shared = gpu.shared.array(SHARED_WORDS, np.int64)
    total = totals[VERDICT] if wanted < 0 else wanted
    status = batch_status(slab, total, room)
    if status < 0:
        fill_null(indptr, 0, gpu.grid(1), gpu.gridsize(1))
    elif indptr.size > 0:
        begin, end = block_share(np.int64(counts.size))
        share_indptr(shared, counts, indptr, begin, end, totals[BATCH + gpu.blockIdx.x])
        if gpu.grid(1) == 0:
            indptr[counts.size] = total
    merges = status >= 0 and total > slab[FREE]
    if merges:
        share_merge(slab, shared, totals)
    if is_last_block(record, shared) and merges and gpu.threadIdx.x == 0:
        end_merge(slab, slab[RELEASED])


@cuda_kernel("void(int64[::1], int64[::1], int64[::1], int32[::1], int32[::1], int64[::1], int64)")
def pool_alloc_batch_cuda(slab, record, counts, indptr, out, totals, summed):
    """Hand out the pages of a batch; `summed`: two launches before have done all but that."""
    shared = gpu.shared.array(SHARED_WORDS, np.int64)
    total = totals[VERDICT] if summed else block_total(shared, counts)
    status = batch_status(slab, total, np.int64(out.size))
    n = max(total, np.int64(0))
    if not take(slab, record, shared, out, n, status):
        return
    if not summed:
        if status < 0:
            fill_null(indptr, 0, gpu.threadIdx.x, gpu.blockDim.x)
        else:
            share_indptr(shared, counts, indptr, np.int64(0), np.int64(counts.size), np.int64(0))
            if gpu.threadIdx.x == 0:
                indptr[counts.size] = total
    if gpu.threadIdx.x == 0:
        value = counts[-total >> STATUS_BITS] if total < 0 else np.int64(0)
        end_take(slab, record, ALLOC_BATCH, n, status, value)


@cuda_kernel("void(int64[::1], int64[::1], int64[::1], int64[::1])")
def pool_admit_cuda(slab, record, counts, out):
    shared = gpu.shared.array(SHARED_WORDS, np.int64)
    left = slab[FREE] + slab[RELEASED]
    total = np.int64(0)
    worst, most = NONE, NONE
    for tile in range(0, counts.size, gpu.blockDim.x):
        i = np.int64(tile + gpu.threadIdx.x)
        count = np.int64(counts[i]) if i < counts.size else np.int64(0)
        mine = min(max(count, np.int64(0)), np.int64(INT32_MAX + 1))
        before, tile_total = block_scan(shared, mine)
        if count < 0:
            worst = min(worst, fault_key(NEGATIVE, i))
        if total + before + mine > left:
            most = min(most, i)
        total += tile_total
    worst, most = block_min(shared, worst), block_min(shared, most)
    if gpu.threadIdx.x == 0:
        if worst != NONE:
            out[0] = NULL
            end_call(slab, record, ADMIT, -worst, counts[worst >> STATUS_BITS], np.int64(0))
        else:
            out[0] = min(most, np.int64(counts.size))
            record[CALLS] += 1


@cuda_kernel("void(int64[::1], int64[::1], int64[::1], int64[::1])")
def pool_merge_cuda(slab, record, totals, out):
    # In one block, or behind pool_total_cuda in as many.
    shared = gpu.shared.array(SHARED_WORDS, np.int64)
    waiting = slab[RELEASED]
    if gpu.gridDim.x == 1:
        block_merge(slab, shared)
    elif waiting > 0:
        share_merge(slab, shared, totals)
    if is_last_block(record, shared) and gpu.threadIdx.x == 0:
        if gpu.gridDim.x > 1 and waiting > 0:
            end_merge(slab, waiting)
        out[0] = waiting
        slab[STEP] += 1
        record[CALLS] += 1


@device_helper
def block_runs(slab, shared, n):
    """Return `(first page of the lowest run of n free pages or NONE, length of the longest)`."""
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
    lowest, longest = NONE, np.int64(0)
    for page in range(begin, stop):
        run = run + 1 if refcount[page] == 0 else np.int64(0)
        longest = max(longest, run)
        if run >= n and lowest == NONE:
            lowest = np.int64(page + 1 - n)
    return block_min(shared, lowest), -block_min(shared, -longest)


@cuda_kernel("void(int64[::1], int64[::1], int32[::1])")
def pool_alloc_run_cuda(slab, record, out):
    shared = gpu.shared.array(MOST_THREADS, np.int64)
    n = np.int64(out.size)
    available = slab[FREE] + slab[RELEASED]
    lowest, longest = slab[FIRST_PAGE], np.int64(0)
    if n > 0:
        lowest, longest = block_runs(slab, shared, n)
    me, step = gpu.threadIdx.x, gpu.blockDim.x
    if lowest == NONE:
        fill_null(out, 0, me, step)
        if me == 0:
            short = n > available
            status = fail(OUT_OF_PAGES, available) if short else fail(NO_RUN, longest)
            end_call(slab, record, ALLOC_RUN, status, available, n)
        return
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
