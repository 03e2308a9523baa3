"""How a batch of pages loses one owner each: at once, one tile behind the other, or in parts.

In the order `sorted` a free needs no order: owners taken off and bits set commute, and who took the
last owner sets the bit. In the others pages go free in the order in which they are named last. Up
to some thousand pages one block takes the batch in tiles of one element a thread, so that the
counts before a tile are known; who names a page last is looked up among its elements wherever a
page is named twice. For more, one launch notes by page the place where the batch names it, and the
next one, in parts, puts those that are gone into the ring: no race decides.
"""

from __future__ import annotations

import numpy as np

from jitalloc.errors import DOUBLE_FREE, PAGE_RANGE, PAGE_RESERVED
from jitalloc.gpu.calls import fault_key
from jitalloc.gpu.kernel import device_helper, gpu
from jitalloc.gpu.scan import (
    NOWHERE,
    any_thread,
    block_min,
    block_rank,
    block_scan,
    last_block,
    mentions,
    part_of,
    sum_before,
    take_part,
)
from jitalloc.pool.loops.merging_cuda import PARTS, SUMS, USED, pool_scratch, pool_views
from jitalloc.pool.loops.releasing_cuda import (
    FAULTY,
    block_count,
    put_back,
    release_tile,
    ring_put,
    take_off,
    unrelease,
)
from jitalloc.pool.state import FIRST_PAGE, NUM_PAGES


@device_helper
def page_fault(slab, page):
    """Return the code of why `page` cannot be an owned page, given that it is out of range."""
    return PAGE_RESERVED if page == 0 and slab[FIRST_PAGE] == 1 else PAGE_RANGE


@device_helper
def free_fault(slab, pages, i, begin, end):
    """Return the key of why `pages[i]` of the tile `begin .. end - 1` cannot be freed, or NOWHERE.

    All pages of the tile have lost their owners, so counts below 0 are possible.
    """
    _free_pages, refcount, _released = pool_views(slab)
    page = np.int64(pages[i])
    if page < slab[FIRST_PAGE] or page >= slab[NUM_PAGES]:
        return fault_key(page_fault(slab, page), i)
    left = np.int64(refcount[page])
    if left < 0:
        owned = left + mentions(pages, page, begin, end)
        if mentions(pages, page, begin, i) >= owned:
            return fault_key(DOUBLE_FREE, i)
    return NOWHERE


@device_helper
def free_unordered(slab, record, shared, pages):
    """Take one owner off each page, by all blocks, all or nothing; order `sorted`.

    Returns `(last, count)`: whether all other blocks are done, so that this one has to end the
    call, and how many pages all of them released. `count` is -1 in blocks that are not the last.
    It is -1 in the last one where a page cannot be freed: then all is undone, and `free_in_order`
    has to find out why.
    """
    _free_pages, refcount, released = pool_views(slab)
    lowest, size, n = slab[FIRST_PAGE], slab[NUM_PAGES], np.int64(pages.size)
    mine, begin = np.int64(0), np.int64(gpu.blockIdx.x * gpu.blockDim.x)
    while begin < n:
        i = begin + gpu.threadIdx.x
        page = np.int64(pages[i]) if i < n else lowest
        named = lowest <= page < size
        mine += take_off(refcount, released, page, i < n and named)
        if i < n and not named:
            mine += FAULTY
        begin += gpu.gridsize(1)
    last, count = last_block(record, shared, block_count(shared, mine))
    if last and count >= FAULTY:
        for i in range(gpu.threadIdx.x, n, gpu.blockDim.x):
            page = np.int64(pages[i])
            if lowest <= page < size:
                put_back(refcount, released, page)
        gpu.syncthreads()
    return last, count if count < FAULTY else np.int64(-1)


@device_helper
def free_in_order(slab, shared, pages):
    """Take one owner off each page, by one block, in order, until one cannot be freed.

    Returns how many were released, or the negative key of the first fault; all is undone then.
    """
    _free_pages, refcount, _released = pool_views(slab)
    me, step = gpu.threadIdx.x, gpu.blockDim.x
    lowest, size, n = slab[FIRST_PAGE], slab[NUM_PAGES], np.int64(pages.size)
    count = np.int64(0)
    for begin in range(0, n, step):
        i, end = np.int64(begin + me), min(np.int64(begin + step), n)
        page = np.int64(pages[i]) if i < n else np.int64(0)
        named = i < n and lowest <= page < size
        before = np.int64(1)
        if named:
            before = np.int64(gpu.atomic.sub(refcount, page, np.int32(1)))
        if any_thread(i < n and (not named or before <= 0)):
            key = free_fault(slab, pages, i, begin, end) if i < n else NOWHERE
            key = block_min(shared, key)
            unrelease(slab, pages, end)
            return -key
        # Released in the order of the last mentions: that is the thread that took the last owner,
        # unless the tile names a page that went free more often than once.
        gone = named and before == 1
        if any_thread(named and before > 1 and refcount[page] == 0):
            gone = named and refcount[page] == 0 and mentions(pages, page, i + 1, end) == 0
        count += release_tile(slab, shared, page, gone, count)
    gpu.syncthreads()
    return count


@device_helper
def is_gone(refcount, places, used, pages, i, end):
    """Return whether the page that `pages[i]` names has no owner left, and is not named again."""
    if i >= end:
        return False
    page = np.int64(pages[i])
    return places[page] == used + i + 1 and refcount[page] == 0


@device_helper
def release_part(slab, shared, pages):
    """Put the pages that this block's part names last into the ring; returns how many."""
    free_pages, refcount, _released = pool_views(slab)
    scratch, places = pool_scratch(slab)
    part, used = take_part(scratch, shared, PARTS), scratch[USED]
    begin, end = part_of(np.int64(pages.size), part)
    i, mine = begin + gpu.threadIdx.x, np.int64(0)
    while i < end:
        mine += np.int64(is_gone(refcount, places, used, pages, i, end))
        i += gpu.blockDim.x
    _before, mine = block_scan(shared, mine)
    put = sum_before(scratch, shared, SUMS, part, mine)
    tile = begin
    while tile < end:
        i = tile + gpu.threadIdx.x
        gone = is_gone(refcount, places, used, pages, i, end)
        before, total = block_rank(shared, gone)
        if gone:
            ring_put(slab, free_pages, put + before, pages[i])
        put += total
        tile += gpu.blockDim.x
    return mine
