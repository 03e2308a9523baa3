"""How free pages become a sorted freelist: by one block, or by all blocks in two launches.

The pages without an owner are those of the freelist and the released ones, so the merged list is
made from the reference counts alone, ascending, whatever was in it before. With many pages one
launch counts those of each block's part, and the next one writes them: 8 bytes a page are read and
4 written, and no block waits for another. One block alone moves about a thousandth of that at a
time and waits for the memory each time.
"""

from __future__ import annotations

import numpy as np

from jitalloc._cuda import device_helper, gpu
from jitalloc._cuda_loops import from_cpu
from jitalloc.kernels import pool
from jitalloc.kernels.cuda.scan import (
    LANES,
    block_scan,
    block_share,
    votes_before,
    warp_votes,
    warps_scan,
)
from jitalloc.state import FREE, HEAD, MERGES, NUM_PAGES, RELEASED

SPAN = 8  # pages of a thread at a time: so many loads are under way at once

# Totals of a pool on the GPU: what the blocks of one launch leave for those of the next. First the
# free pages before each block's part, then what the batch sums up to before it, then its verdict.
MOST_BLOCKS = 512
BATCH = MOST_BLOCKS
VERDICT = 2 * MOST_BLOCKS  # sum of the batch, or a status word
TOTALS_SLOTS = 2 * MOST_BLOCKS + 1

pool_views = from_cpu(pool.pool_views)


@device_helper
def free_ids(slab, shared, begin, end, put):
    """Write the pages of `begin .. end - 1` without an owner to `free_pages[put:]`, ascending.

    Returns how many. A warp looks at `SPAN` rows of pages side by side, and writes side by side.
    """
    free_pages, refcount, _released = pool_views(slab)
    lane = gpu.threadIdx.x & (LANES - 1)
    start = put
    for tile in range(begin, end, SPAN * gpu.blockDim.x):
        first = np.int64(tile + SPAN * (gpu.threadIdx.x - lane) + lane)
        mine = np.uint32(0)
        for j in range(SPAN):
            page = first + j * LANES
            owners = refcount[min(page, end - 1)]
            mine |= np.uint32(1 if owners == 0 and page < end else 0) << np.uint32(j)
        found = np.int64(0)
        for j in range(SPAN):
            found += gpu.popc(warp_votes((mine >> np.uint32(j)) & np.uint32(1) != 0))
        before, total = warps_scan(shared, found)
        at = put + before
        for j in range(SPAN):
            free = (mine >> np.uint32(j)) & np.uint32(1) != 0
            votes = warp_votes(free)
            if free:
                free_pages[at + votes_before(votes)] = first + j * LANES
            at += gpu.popc(votes)
        put += total
    return put - start


@device_helper
def block_freelist(slab, shared, put):
    """Write the ids of all pages without an owner to `free_pages[put:]`, ascending."""
    free_ids(slab, shared, np.int64(0), slab[NUM_PAGES], put)
    gpu.syncthreads()


@device_helper
def end_merge(slab, waiting):
    """Book that `waiting` released pages were merged, by one thread."""
    slab[HEAD] -= waiting
    slab[FREE] += waiting
    slab[RELEASED] = 0
    slab[MERGES] += 1


@device_helper
def block_merge(slab, shared):
    """Merge the released pages into the sorted freelist, by one block; return how many."""
    waiting = slab[RELEASED]
    gpu.syncthreads()
    if waiting > 0:
        _free_pages, _refcount, released = pool_views(slab)
        block_freelist(slab, shared, slab[HEAD] - waiting)
        for w in range(gpu.threadIdx.x, released.size, gpu.blockDim.x):
            released[w] = np.uint64(0)
        if gpu.threadIdx.x == 0:
            end_merge(slab, waiting)
        gpu.syncthreads()
    return waiting


@device_helper
def count_free(slab, shared, totals):
    """Leave how many pages of this block's part have no owner."""
    _free_pages, refcount, _released = pool_views(slab)
    begin, end = block_share(slab[NUM_PAGES])
    mine = np.int64(0)
    for page in range(begin + gpu.threadIdx.x, end, gpu.blockDim.x):
        if refcount[page] == 0:
            mine += 1
    _before, total = block_scan(shared, mine)
    if gpu.threadIdx.x == 0:
        totals[gpu.blockIdx.x] = total


@device_helper
def running(shared, totals, start, n):
    """Make of `totals[start:start + n]` the sums before each, by one block; return the sum."""
    total = np.int64(0)
    for tile in range(0, n, gpu.blockDim.x):
        i = np.int64(tile + gpu.threadIdx.x)
        before, tile_total = block_scan(shared, totals[start + i] if i < n else np.int64(0))
        if i < n:
            totals[start + i] = total + before
        total += tile_total
    gpu.syncthreads()
    return total


@device_helper
def share_merge(slab, shared, totals):
    """Do this block's part of a merge that `count_free` has prepared; not yet booked."""
    _free_pages, _refcount, released = pool_views(slab)
    begin, end = block_share(slab[NUM_PAGES])
    put = slab[HEAD] - slab[RELEASED] + totals[gpu.blockIdx.x]
    free_ids(slab, shared, begin, end, put)
    for w in range(gpu.grid(1), released.size, gpu.gridsize(1)):
        released[w] = np.uint64(0)
