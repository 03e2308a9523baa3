"""How the pages of a batch of slots lose one owner each; as in `page_frees`, by first mention."""

from __future__ import annotations

import numpy as np

from jitalloc.errors import SLOT_NOT_HELD, SLOT_RANGE
from jitalloc.gpu.calls import bit, fault_key
from jitalloc.gpu.kernel import device_helper, gpu
from jitalloc.gpu.scan import (
    NOWHERE,
    any_thread,
    block_min,
    block_rank,
    block_scan,
    last_block,
    part_of,
    sum_before,
    take_part,
)
from jitalloc.pool.loops.merging_cuda import PARTS, SUMS, USED, pool_scratch, pool_views
from jitalloc.pool.loops.pool_cuda import page_of
from jitalloc.pool.loops.releasing_cuda import (
    FAULTY,
    block_count,
    marks_of,
    put_back,
    release_tile,
    ring_put,
    take_off,
)
from jitalloc.pool.state import FIRST_PAGE, NUM_PAGES, PAGE_SHIFT, PAGE_SIZE


@device_helper
def slot_fault(slab, slot, i):
    """Return the key of why the page of `slot` cannot be freed, or NOWHERE."""
    _free_pages, refcount, _released = pool_views(slab)
    size = slab[PAGE_SIZE]
    if slot < slab[FIRST_PAGE] * size or slot >= slab[NUM_PAGES] * size:
        return fault_key(SLOT_RANGE, i)
    if refcount[page_of(slot, size, slab[PAGE_SHIFT])] == 0:
        return fault_key(SLOT_NOT_HELD, i)
    return NOWHERE


@device_helper
def named_before(slots, page, begin, i, size, shift):
    """Return whether `slots[begin:i]` holds a slot of `page`."""
    for j in range(begin, i):
        if page_of(slots[j], size, shift) == page:
            return True
    return False


@device_helper
def free_slots_unordered(slab, record, shared, slots):
    """Take one owner off the page of each slot, by all blocks, all or nothing; order `sorted`.

    Who marks a page does so. Returns `(last, count)` like `free_unordered`; where that is
    `(True, -1)`, `free_slots_in_order` has to find out why.
    """
    _free_pages, refcount, released = pool_views(slab)
    (marks,) = marks_of(slab)
    n = np.int64(slots.size)
    size, shift = slab[PAGE_SIZE], slab[PAGE_SHIFT]
    lowest, end = slab[FIRST_PAGE] * size, slab[NUM_PAGES] * size
    mine, begin = np.int64(0), np.int64(gpu.blockIdx.x * gpu.blockDim.x)
    while begin < n:
        i = begin + gpu.threadIdx.x
        slot = slots[i] if i < n else lowest
        sound = i < n and lowest <= slot < end
        if i < n and not sound:
            mine += FAULTY
        # Mostly the slots of a page stand side by side: the first of them speaks for it.
        page = page_of(slot, size, shift)
        asks = sound and (i == 0 or page_of(slots[i - 1], size, shift) != page)
        if asks:
            asks = gpu.atomic.or_(marks, page >> 6, bit(page)) & bit(page) == np.uint64(0)
        mine += take_off(refcount, released, page, asks)
        begin += gpu.gridsize(1)
    last, count = last_block(record, shared, block_count(shared, mine))
    if last and count >= FAULTY:
        for i in range(gpu.threadIdx.x, n, gpu.blockDim.x):
            slot = slots[i]
            if lowest <= slot < end:
                page = page_of(slot, size, shift)
                if gpu.atomic.and_(marks, page >> 6, ~bit(page)) & bit(page) != np.uint64(0):
                    put_back(refcount, released, page)
        gpu.syncthreads()
    return last, count if count < FAULTY else np.int64(-1)


@device_helper
def free_slots_in_order(slab, shared, slots):
    """Take one owner off the page of each slot, by one block, in the order of first mentions.

    Returns how many were released, or the negative key of the first fault; nothing is done then.
    """
    _free_pages, refcount, _released = pool_views(slab)
    (marks,) = marks_of(slab)
    me, step, n = gpu.threadIdx.x, gpu.blockDim.x, np.int64(slots.size)
    size, shift = slab[PAGE_SIZE], slab[PAGE_SHIFT]
    key = NOWHERE
    for i in range(me, n, step):
        key = min(key, slot_fault(slab, slots[i], i))
    key = block_min(shared, key)
    if key != NOWHERE:
        return -key
    count = np.int64(0)
    for begin in range(0, n, step):
        i = np.int64(begin + me)
        page = page_of(slots[i], size, shift) if i < n else np.int64(0)
        asks = i < n and (me == 0 or page_of(slots[i - 1], size, shift) != page)
        asks = asks and marks[page >> 6] & bit(page) == np.uint64(0)
        gpu.syncthreads()
        mine = False
        if asks:
            mine = gpu.atomic.or_(marks, page >> 6, bit(page)) & bit(page) == np.uint64(0)
        if any_thread(asks and not mine):
            mine = asks and not named_before(slots, page, begin, i, size, shift)
        gone = False
        if mine:
            refcount[page] -= np.int32(1)
            gone = refcount[page] == 0
        count += release_tile(slab, shared, page, gone, count)
    gpu.syncthreads()
    return count


@device_helper
def place_of(slab, places, used, slots, i, end):
    """Return `(page of slots[i], whether that slot names it first)`."""
    page = page_of(slots[i], slab[PAGE_SIZE], slab[PAGE_SHIFT]) if i < end else np.int64(0)
    return page, i < end and places[page] == used + slots.size - i


@device_helper
def release_slots_part(slab, shared, slots):
    """Take an owner off each page that this block's part names first; returns how many are gone."""
    free_pages, refcount, _released = pool_views(slab)
    scratch, places = pool_scratch(slab)
    part, used = take_part(scratch, shared, PARTS), scratch[USED]
    begin, end = part_of(np.int64(slots.size), part)
    i, mine = begin + gpu.threadIdx.x, np.int64(0)
    while i < end:
        page, first = place_of(slab, places, used, slots, i, end)
        mine += np.int64(first and refcount[page] == 1)
        i += gpu.blockDim.x
    _before, mine = block_scan(shared, mine)
    put = sum_before(scratch, shared, SUMS, part, mine)
    tile = begin
    while tile < end:
        page, first = place_of(slab, places, used, slots, tile + gpu.threadIdx.x, end)
        gone = first and refcount[page] == 1
        before, total = block_rank(shared, gone)
        if first:
            refcount[page] -= np.int32(1)
        if gone:
            ring_put(slab, free_pages, put + before, page)
        put += total
        tile += gpu.blockDim.x
    return mine
