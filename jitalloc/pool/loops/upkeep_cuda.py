"""Twins of the loops over a whole pool: clear, resize, defragment."""

from __future__ import annotations

import numpy as np

from jitalloc.errors import OUT_SHORT, PAGE_IN_USE
from jitalloc.gpu.calls import bit, fail, fill_null, ring_place
from jitalloc.gpu.kernel import cuda_kernel, device_helper, gpu
from jitalloc.gpu.record import CALL_KINDS
from jitalloc.gpu.scan import NOWHERE, SHARED_WORDS, block_min, block_scan, is_last_block
from jitalloc.pool.loops.merging_cuda import pool_views
from jitalloc.pool.loops.pool_cuda import end_call
from jitalloc.pool.loops.upkeep import (
    upkeep_advance_cpu,
    upkeep_clear_cpu,
    upkeep_defragment_cpu,
    upkeep_resize_cpu,
)
from jitalloc.pool.state import (
    FIRST_PAGE,
    FREE,
    FREED,
    HEAD,
    NUM_PAGES,
    ORDER,
    RELEASED,
    SORTED,
    STEP,
)
from jitalloc.state import HEADER_SLOTS

CLEAR = CALL_KINDS.index("clear")
RESIZE = CALL_KINDS.index("resize")
DEFRAGMENT = CALL_KINDS.index("defragment")


@cuda_kernel("void(int64[::1], int64[::1])", twin=upkeep_clear_cpu)
def upkeep_clear_cuda(slab, record):
    """Mutates the pool and its record: all pages are free, in ascending order.

    Reads nothing else, requires that no holder uses its pages any longer.
    """
    shared = gpu.shared.array(SHARED_WORDS, np.int64)
    free_pages, refcount, released = pool_views(slab)
    n, first = slab[NUM_PAGES], slab[FIRST_PAGE]
    start, step = gpu.grid(1), gpu.gridsize(1)
    for page in range(start, n, step):
        refcount[page] = 1 if page < first else 0
        free_pages[page] = page
    for w in range(start, released.size, step):
        released[w] = np.uint64(0)
    if is_last_block(record, shared) and gpu.threadIdx.x == 0:
        slab[FREED] += n - first - slab[FREE] - slab[RELEASED]
        slab[HEAD] = first
        slab[FREE] = n - first
        slab[RELEASED] = 0
        end_call(slab, record, CLEAR, np.int64(0), np.int64(0), np.int64(0))


@device_helper
def block_gather(shared, refcount, begin, end, used, out):
    """Write the pages of `begin .. end - 1` with owners (or without) to `out`, by one block.

    Returns how many there are; those that `out` has no room for are left out.
    """
    count = np.int64(0)
    for tile in range(begin, end, gpu.blockDim.x):
        page = np.int64(tile + gpu.threadIdx.x)
        chosen = page < end and (refcount[page] > 0) == used
        before, total = block_scan(shared, np.int64(1) if chosen else np.int64(0))
        if chosen and count + before < out.size:
            out[count + before] = page
        count += total
    gpu.syncthreads()
    return count


@cuda_kernel(
    "void(int64[::1], int64[::1], int32[::1], int32[::1], int64[::1])", twin=upkeep_defragment_cpu
)
def upkeep_defragment_cuda(slab, record, src, dst, out):
    """Mutates the pool, whose used pages come to have the lowest ids, its record, `src` and `dst`,
    which page has moved where (NULL behind them), and `out[0]`, how many moves there are, or -1.

    Reads nothing else, requires one block; with too little room for the moves it fails.
    """
    shared = gpu.shared.array(SHARED_WORDS, np.int64)
    free_pages, refcount, released = pool_views(slab)
    me, step = gpu.threadIdx.x, gpu.blockDim.x
    n, first = slab[NUM_PAGES], slab[FIRST_PAGE]
    end = n - slab[FREE] - slab[RELEASED]  # used pages will fill first .. end-1
    # Each used page behind `end` moves to the lowest hole before it.
    moves = block_gather(shared, refcount, end, n, True, src)
    room = min(np.int64(src.size), np.int64(dst.size))
    if moves > room:
        fill_null(src, 0, me, step)
        fill_null(dst, 0, me, step)
        if me == 0:
            out[0] = -1
            end_call(slab, record, DEFRAGMENT, fail(OUT_SHORT, room), np.int64(0), moves)
        return
    block_gather(shared, refcount, first, end, False, dst)
    for i in range(me, moves, step):
        refcount[dst[i]] = refcount[src[i]]
        refcount[src[i]] = 0
    fill_null(src, moves, me, step)
    fill_null(dst, moves, me, step)
    # What lies behind is free, in ascending order.
    for w in range(me, released.size, step):
        released[w] = np.uint64(0)
    for page in range(end + me, n, step):
        free_pages[page] = page
    gpu.syncthreads()
    if me == 0:
        out[0] = moves
        slab[HEAD] = end if slab[ORDER] == SORTED else end % n
        slab[FREE] = n - end
        slab[RELEASED] = 0
        end_call(slab, record, DEFRAGMENT, np.int64(0), np.int64(0), moves)


@device_helper
def block_kept(slab, shared, new_free, end, put):
    """Write the free ids below `end` to `new_free[put:]` in their order; return how many.

    With `put` below 0 they are counted only.
    """
    free_pages, _refcount, _released = pool_views(slab)
    head, size, free = slab[HEAD], slab[NUM_PAGES], slab[FREE]
    count = np.int64(0)
    for tile in range(0, free, gpu.blockDim.x):
        i = np.int64(tile + gpu.threadIdx.x)
        page = np.int64(free_pages[ring_place(head + i, size)]) if i < free else end
        before, total = block_scan(shared, np.int64(1) if page < end else np.int64(0))
        if page < end and put >= 0:
            new_free[put + count + before] = page
        count += total
    return count


@cuda_kernel("void(int64[::1], int64[::1], int64[::1])", twin=upkeep_resize_cpu)
def upkeep_resize_cuda(slab, record, new):
    """Mutates `new`, the same pool with another number of pages, and the record.

    Reads `slab`, requires `new` to hold its NUM_PAGES and zeros, and one block; where the call
    fails `new` stays so.
    """
    shared = gpu.shared.array(SHARED_WORDS, np.int64)
    _free_pages, refcount, released = pool_views(slab)
    new_free, new_count, new_released = pool_views(new)
    me, step = gpu.threadIdx.x, gpu.blockDim.x
    n, end = slab[NUM_PAGES], new[NUM_PAGES]
    # Nobody may hold a page that goes.
    held = NOWHERE
    for page in range(end + me, n, step):
        if refcount[page] > 0:
            held = min(held, np.int64(page))
    held = block_min(shared, held)
    if held != NOWHERE:
        if me == 0:
            end_call(slab, record, RESIZE, fail(PAGE_IN_USE, held), held, end)
        return
    # Counts and released pages go over.
    waiting = np.int64(0)
    for page in range(me, min(n, end), step):
        new_count[page] = refcount[page]
        if released[page >> 6] & bit(page) != np.uint64(0):
            gpu.atomic.or_(new_released, page >> 6, bit(page))
            waiting += 1
    _before, waiting = block_scan(shared, waiting)
    # The freelist goes over in its order, new pages behind it.
    kept = block_kept(slab, shared, new_free, end, np.int64(-1))
    free = kept + max(end - n, np.int64(0))
    head = end - free if slab[ORDER] == SORTED else np.int64(0)  # a sorted freelist ends at N
    block_kept(slab, shared, new_free, end, head)
    for page in range(n + me, end, step):
        new_free[head + kept + page - n] = page
    # The header goes over, but for what has changed.
    for slot in range(me, HEADER_SLOTS, step):
        if slot != NUM_PAGES:
            new[slot] = slab[slot]
    gpu.syncthreads()
    if me == 0:
        new[FREE] = free
        new[RELEASED] = waiting
        new[HEAD] = head
        end_call(new, record, RESIZE, np.int64(0), np.int64(0), end)


@cuda_kernel("void(int64[::1], int64[::1], int64)", twin=upkeep_advance_cpu)
def upkeep_advance_cuda(slab, record, steps):
    """Mutates the clock of the pool, which becomes that of the host.

    Reads nothing else, requires `steps`, how far it is behind.
    """
    if gpu.grid(1) == 0:
        slab[STEP] += steps
