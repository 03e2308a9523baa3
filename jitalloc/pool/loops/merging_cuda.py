"""How free pages become a sorted freelist: by one block, or by all blocks of the call it is due in.

The pages without an owner are those of the freelist and the released ones, so the merged list is
made from the reference counts alone, ascending, whatever was in it before. Each block counts those
of its part, adds up what the parts before have found, and writes its own: 8 bytes a page are read
and 4 written, in one launch. Whether a merge is due only the GPU knows, so a call on a large pool
starts the blocks that would do it; where it is not due, they end after two loads. One block alone
moves about a thousandth of that at a time and waits for the memory each time.

Views into a pool, and the scratch behind its slab that such calls use, stand here too.
"""

from __future__ import annotations

import numpy as np

from jitalloc.gpu.kernel import device_helper, gpu
from jitalloc.gpu.scan import (
    LANES,
    block_scan,
    part_of,
    sum_before,
    take_part,
    votes_before,
    warp_votes,
    warps_scan,
)
from jitalloc.gpu.slab import MOST_BLOCKS
from jitalloc.gpu.views import int32_column, int64_column, uint64_column
from jitalloc.pool.state import FREE, HEAD, MERGES, NUM_PAGES, ORDERS, RELEASED
from jitalloc.state import HEADER_SLOTS

SPAN = 8  # pages of a thread at a time: so many loads are under way at once

PARTS = 0
SUMS = 1
VERDICT = SUMS + MOST_BLOCKS  # sum of the batch or a status word; faults; or a key
USED = VERDICT + 1
BATCH = USED + 1
SCRATCH_WORDS = BATCH + MOST_BLOCKS


def scratch_words(num_pages: int, order: str) -> int:
    """Return how many words of scratch stand behind the slab of a pool on the GPU."""
    return SCRATCH_WORDS + (0 if order == ORDERS[0] else num_pages)


@device_helper
def pool_views(slab):
    """Return `(free_pages, refcount, released)`, views into the slab of a pool."""
    n = slab[NUM_PAGES]
    w, h = (n + 63) >> 6, (n >> 1) + 1
    bitmaps = HEADER_SLOTS + 2 * w
    return (
        int32_column(slab, bitmaps, n + 1),
        int32_column(slab, bitmaps + h, n + 1),
        uint64_column(slab, HEADER_SLOTS, w),
    )


@device_helper
def pool_scratch(slab):
    """Return `(scratch, places)`, the words behind a pool's slab; `places` in a ring only."""
    n = slab[NUM_PAGES]
    start = HEADER_SLOTS + 2 * ((n + 63) >> 6) + 2 * ((n >> 1) + 1)
    return (
        int64_column(slab, start, SCRATCH_WORDS),
        int64_column(slab, start + SCRATCH_WORDS, n),
    )


@device_helper
def free_ids(slab, shared, begin, end, put):
    """Write the pages of `begin .. end - 1` without an owner to `free_pages[put:]`, ascending.

    Returns how many. A warp looks at `SPAN` rows of pages side by side, and writes side by side.
    """
    free_pages, refcount, _released = pool_views(slab)
    lane = gpu.threadIdx.x & (LANES - 1)
    start, tile = put, begin
    while tile < end:  # `range` would divide to know how often
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
        tile += SPAN * gpu.blockDim.x
    return put - start


@device_helper
def block_freelist(slab, shared, put):
    """Write the ids of all pages without an owner to `free_pages[put:]`, ascending."""
    free_ids(slab, shared, np.int64(0), slab[NUM_PAGES], put)
    gpu.syncthreads()


@device_helper
def clear_released(slab, first, step):
    """Take every `step`-th word of the released pages from `first` on as merged."""
    _free_pages, _refcount, released = pool_views(slab)
    w, end = np.int64(first), (slab[NUM_PAGES] + 63) >> 6
    while w < end:
        released[w] = np.uint64(0)
        w += step


@device_helper
def book_merge(slab, waiting):
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
        block_freelist(slab, shared, slab[HEAD] - waiting)
        clear_released(slab, gpu.threadIdx.x, gpu.blockDim.x)
        if gpu.threadIdx.x == 0:
            book_merge(slab, waiting)
        gpu.syncthreads()
    return waiting


@device_helper
def merge_part(slab, shared):
    """Do a part of a merge; each block of the call has to, and the last one then `end_merge`.

    Returns `(first, end)`, the places in the freelist that this block has written.
    """
    _free_pages, refcount, _released = pool_views(slab)
    scratch, _places = pool_scratch(slab)
    part = take_part(scratch, shared, PARTS)
    begin, end = part_of(slab[NUM_PAGES], part)
    page, mine = begin + gpu.threadIdx.x, np.int64(0)
    while page < end:
        mine += np.int64(refcount[page] == 0)
        page += gpu.blockDim.x
    _before, mine = block_scan(shared, mine)
    put = slab[HEAD] - slab[RELEASED] + sum_before(scratch, shared, SUMS, part, mine)
    free_ids(slab, shared, begin, end, put)
    clear_released(slab, gpu.grid(1), gpu.gridsize(1))
    gpu.syncthreads()
    return put, put + mine


@device_helper
def end_parts(slab):
    """Forget which parts were taken and what they hold, by the last block of a call."""
    scratch, _places = pool_scratch(slab)
    for i in range(gpu.threadIdx.x, SUMS + gpu.gridDim.x, gpu.blockDim.x):
        scratch[i] = 0


@device_helper
def end_merge(slab):
    """Book a merge that the blocks of a call have done by `merge_part`, by the last of them."""
    waiting = slab[RELEASED]
    end_parts(slab)
    gpu.syncthreads()
    if gpu.threadIdx.x == 0:
        book_merge(slab, waiting)
    gpu.syncthreads()
