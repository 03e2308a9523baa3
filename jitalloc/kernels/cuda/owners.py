"""Twins of the loops of page ownership: share, free, reference counts, and frees by slot.

In the order `sorted` a free needs no order: owners taken off and bits set commute. All blocks take
them off at once, and who took the last one sets the bit. Only where a page could not be freed does
the last block give all owners back, and look for the first fault as follows.

Elsewhere a batch is taken by one block in tiles of one element a thread, one tile behind the
other, so that the counts before a tile are known. Within it, who names a page first or last is
looked up among its elements wherever a page is named twice: no race decides.
"""

from __future__ import annotations

import numpy as np

from jitalloc._cuda import cuda_kernel, device_helper, gpu
from jitalloc._cuda_loops import from_cpu
from jitalloc.errors import (
    DOUBLE_FREE,
    PAGE_FREE,
    PAGE_RANGE,
    REFCOUNT_OVERFLOW,
    SLOT_FREE,
    SLOT_RANGE,
    STATUS_BITS,
)
from jitalloc.kernels import owners
from jitalloc.kernels.cuda.pool import bit, end_call, fault_key, fill_null, pool_views
from jitalloc.kernels.cuda.releasing import (
    FAULTY,
    block_count,
    end_release,
    marks_of,
    mentions,
    put_back,
    release_tile,
    take_off,
    unrelease,
)
from jitalloc.kernels.cuda.scan import (
    NONE,
    SHARED_WORDS,
    any_thread,
    block_min,
    last_block,
)
from jitalloc.state import (
    CALL_KINDS,
    CALLS,
    FIRST_PAGE,
    INT32_MAX,
    NULL,
    NUM_PAGES,
    ORDER,
    PAGE_SHIFT,
    PAGE_SIZE,
    SORTED,
)

SHARE = CALL_KINDS.index("share")
RELEASE = CALL_KINDS.index("free")
FREE_SLOTS = CALL_KINDS.index("free_slots")
COUNT = CALL_KINDS.index("refcount")

page_fault = from_cpu(owners.page_fault)


@device_helper
def free_fault(slab, pages, i, begin, end):
    """Return the key of why `pages[i]` of the tile `begin .. end - 1` cannot be freed, or NONE.

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
    return NONE


@device_helper
def free_unordered(slab, record, shared, pages):
    """Take one owner off each page, by all blocks, all or nothing; order `sorted`.

    Returns how many were released, in the last block. -1: the call is not done, either because
    other blocks are not, or because it was undone; then `free_in_order` has to find out why.
    """
    lowest, size, n = slab[FIRST_PAGE], slab[NUM_PAGES], np.int64(pages.size)
    mine = np.int64(0)
    for i in range(gpu.grid(1), n, gpu.gridsize(1)):
        page = np.int64(pages[i])
        mine += take_off(slab, page) if lowest <= page < size else FAULTY
    last, count = last_block(record, shared, block_count(shared, mine))
    if last and count >= FAULTY:
        for i in range(gpu.threadIdx.x, n, gpu.blockDim.x):
            page = np.int64(pages[i])
            if lowest <= page < size:
                put_back(slab, page)
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
            key = free_fault(slab, pages, i, begin, end) if i < n else NONE
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
def end_free(slab, record, kind, named, out, count, wanted):
    """Book a free of what `named` holds, by one thread; `count`: released, or a status word."""
    if count < 0:
        out[0] = NULL
        end_call(slab, record, kind, count, np.int64(named[-count >> STATUS_BITS]), wanted)
    else:
        out[0] = count
        end_release(slab, count)
        end_call(slab, record, kind, np.int64(0), np.int64(0), np.int64(0))


@cuda_kernel("void(int64[::1], int64[::1], int32[::1], int64[::1], int64)")
def owners_free_cuda(slab, record, pages, out, group):
    # Many blocks in the order `sorted` only. `group` stays in the record of a call that fails.
    shared = gpu.shared.array(SHARED_WORDS, np.int64)
    last, count = True, np.int64(-1)
    if slab[ORDER] == SORTED:
        last, count = free_unordered(slab, record, shared, pages)
    if not last:
        return
    if count < 0:
        count = free_in_order(slab, shared, pages)
    if gpu.threadIdx.x == 0:
        end_free(slab, record, RELEASE, pages, out, count, group)


@device_helper
def share_fault(slab, pages, i, begin, step):
    """Return the key of why nobody can be added to the owners of `pages[i]`, or NONE."""
    _free_pages, refcount, _released = pool_views(slab)
    page = np.int64(pages[i])
    if page < slab[FIRST_PAGE] or page >= slab[NUM_PAGES]:
        return fault_key(page_fault(slab, page), i)
    owned = np.int64(refcount[page])
    if owned == 0:
        return fault_key(PAGE_FREE, i)
    if owned > INT32_MAX - step and owned + mentions(pages, page, begin, i) >= INT32_MAX:
        return fault_key(REFCOUNT_OVERFLOW, i)
    return NONE


@cuda_kernel("void(int64[::1], int64[::1], int32[::1])")
def owners_share_cuda(slab, record, pages):
    shared = gpu.shared.array(SHARED_WORDS, np.int64)
    _free_pages, refcount, _released = pool_views(slab)
    me, step, n = gpu.threadIdx.x, gpu.blockDim.x, np.int64(pages.size)
    for begin in range(0, n, step):
        i = np.int64(begin + me)
        key = share_fault(slab, pages, i, begin, step) if i < n else NONE
        if any_thread(key != NONE):
            key = block_min(shared, key)
            for j in range(me, begin, step):
                gpu.atomic.sub(refcount, np.int64(pages[j]), np.int32(1))
            if me == 0:
                at = key >> STATUS_BITS
                end_call(slab, record, SHARE, -key, np.int64(pages[at]), np.int64(0))
            return
        if i < n:
            gpu.atomic.add(refcount, np.int64(pages[i]), np.int32(1))
        gpu.syncthreads()
    if me == 0:
        end_call(slab, record, SHARE, np.int64(0), np.int64(0), np.int64(0))


@cuda_kernel("void(int64[::1], int64[::1], int32[::1], int32[::1])")
def owners_count_cuda(slab, record, pages, out):
    shared = gpu.shared.array(SHARED_WORDS, np.int64)
    _free_pages, refcount, _released = pool_views(slab)
    me, step, n = gpu.threadIdx.x, gpu.blockDim.x, np.int64(pages.size)
    key = NONE
    for i in range(me, n, step):
        page = np.int64(pages[i])
        if 0 <= page < slab[NUM_PAGES]:
            out[i] = refcount[page]
        else:
            key = min(key, fault_key(PAGE_RANGE, i))
    key = block_min(shared, key)
    if key != NONE:
        fill_null(out, 0, me, step)
    if me == 0:
        if key != NONE:
            at = key >> STATUS_BITS
            end_call(slab, record, COUNT, -key, np.int64(pages[at]), np.int64(0))
        else:
            record[CALLS] += 1


@device_helper
def page_of(slot, size, shift):
    """Return the page of a slot, or the block of a position."""
    return slot >> shift if shift >= 0 else slot // size


@device_helper
def slot_fault(slab, slot, i):
    """Return the key of why the page of `slot` cannot be freed, or NONE."""
    _free_pages, refcount, _released = pool_views(slab)
    size = slab[PAGE_SIZE]
    if slot < slab[FIRST_PAGE] * size or slot >= slab[NUM_PAGES] * size:
        return fault_key(SLOT_RANGE, i)
    if refcount[page_of(slot, size, slab[PAGE_SHIFT])] == 0:
        return fault_key(SLOT_FREE, i)
    return NONE


@device_helper
def named_before(slots, page, begin, i, size, shift):
    """Return whether `slots[begin:i]` holds a slot of `page`."""
    for j in range(begin, i):
        if page_of(slots[j], size, shift) == page:
            return True
    return False


@device_helper
def free_slots_unordered(slab, record, shared, slots):
    """Take one owner off the page of each slot, like `free_unordered`; who marks it does so."""
    (marks,) = marks_of(slab)
    n = np.int64(slots.size)
    size, shift = slab[PAGE_SIZE], slab[PAGE_SHIFT]
    lowest, end = slab[FIRST_PAGE] * size, slab[NUM_PAGES] * size
    mine = np.int64(0)
    for i in range(gpu.grid(1), n, gpu.gridsize(1)):
        slot = slots[i]
        if slot < lowest or slot >= end:
            mine += FAULTY
            continue
        # Mostly the slots of a page stand side by side: the first of them speaks for it.
        page = page_of(slot, size, shift)
        if i == 0 or page_of(slots[i - 1], size, shift) != page:
            if gpu.atomic.or_(marks, page >> 6, bit(page)) & bit(page) == np.uint64(0):
                mine += take_off(slab, page)
    last, count = last_block(record, shared, block_count(shared, mine))
    if last and count >= FAULTY:
        for i in range(gpu.threadIdx.x, n, gpu.blockDim.x):
            slot = slots[i]
            if lowest <= slot < end:
                page = page_of(slot, size, shift)
                if gpu.atomic.and_(marks, page >> 6, ~bit(page)) & bit(page) != np.uint64(0):
                    put_back(slab, page)
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
    key = NONE
    for i in range(me, n, step):
        key = min(key, slot_fault(slab, slots[i], i))
    key = block_min(shared, key)
    if key != NONE:
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


@cuda_kernel("void(int64[::1], int64[::1], int64[::1], int64[::1])")
def owners_free_slots_cuda(slab, record, slots, out):
    # Many blocks in the order `sorted` only.
    shared = gpu.shared.array(SHARED_WORDS, np.int64)
    last, count = True, np.int64(-1)
    if slab[ORDER] == SORTED:
        last, count = free_slots_unordered(slab, record, shared, slots)
    if not last:
        return
    if count < 0:
        count = free_slots_in_order(slab, shared, slots)
    (marks,) = marks_of(slab)
    me, step = gpu.threadIdx.x, gpu.blockDim.x
    if count >= 0 and marks.size <= slots.size:
        for w in range(me, marks.size, step):
            marks[w] = np.uint64(0)
    elif count >= 0:
        for i in range(me, slots.size, step):
            marks[page_of(slots[i], slab[PAGE_SIZE], slab[PAGE_SHIFT]) >> 6] = np.uint64(0)
    if me == 0:
        end_free(slab, record, FREE_SLOTS, slots, out, count, np.int64(0))
