"""Twins of the loops of page ownership: share, free, reference counts, and frees by slot.

A batch is taken in tiles of one element a thread, one tile behind the other, so that the counts
before a tile are known. Within it, who names a page first or last is looked up among its elements
wherever a page is named twice: no race decides.
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
from jitalloc.kernels.cuda.pool import bit, end_call, fault_key, fill_null, pool_views, ring_place
from jitalloc.kernels.cuda.scan import NONE, SHARED_WORDS, any_thread, block_min, block_scan
from jitalloc.state import (
    CALL_KINDS,
    CALLS,
    FIFO,
    FIRST_PAGE,
    FREE,
    FREED,
    HEAD,
    HEADER_SLOTS,
    INT32_MAX,
    NULL,
    NUM_PAGES,
    ORDER,
    PAGE_SHIFT,
    PAGE_SIZE,
    RELEASED,
    SORTED,
)

SHARE = CALL_KINDS.index("share")
RELEASE = CALL_KINDS.index("free")
FREE_SLOTS = CALL_KINDS.index("free_slots")
COUNT = CALL_KINDS.index("refcount")

page_fault = from_cpu(owners.page_fault)


@device_helper
def mentions(pages, page, begin, end):
    """Return how often `page` stands in `pages[begin:end]`."""
    count = np.int64(0)
    for i in range(begin, end):
        if pages[i] == page:
            count += 1
    return count


@device_helper
def release_tile(slab, shared, page, gone, count):
    """Release the page of each thread with `gone`; `count` were released before by this call.

    Returns how many this tile released. In the order of the threads, for a freelist that is
    a ring.
    """
    free_pages, _refcount, released = pool_views(slab)
    before, total = block_scan(shared, np.int64(1) if gone else np.int64(0))
    if gone:
        size, at = slab[NUM_PAGES], count + before
        if slab[ORDER] == SORTED:
            gpu.atomic.or_(released, page >> 6, bit(page))
        elif slab[ORDER] == FIFO:
            free_pages[ring_place(ring_place(slab[HEAD] + slab[FREE], size) + at, size)] = page
        else:
            at = slab[HEAD] - 1 - at
            free_pages[at if at >= 0 else at + size] = page
    return total


@device_helper
def end_release(slab, count):
    """Book that `count` pages were released, by one thread."""
    if slab[ORDER] == SORTED:
        slab[RELEASED] += count
    elif slab[ORDER] == FIFO:
        slab[FREE] += count
    else:
        slab[FREE] += count
        slab[HEAD] -= count
        if slab[HEAD] < 0:
            slab[HEAD] += slab[NUM_PAGES]
    slab[FREED] += count


@device_helper
def unrelease(slab, pages, end):
    """Give back the owners that `pages[:end]` have lost, those out of range left out."""
    _free_pages, refcount, released = pool_views(slab)
    me, step = gpu.threadIdx.x, gpu.blockDim.x
    lowest, size = slab[FIRST_PAGE], slab[NUM_PAGES]
    for i in range(me, end, step):
        page = np.int64(pages[i])
        if lowest <= page < size:
            gpu.atomic.add(refcount, page, np.int32(1))
    gpu.syncthreads()
    for i in range(me, end, step):
        page = np.int64(pages[i])
        if lowest <= page < size and refcount[page] > 0:  # else it was released before the call
            gpu.atomic.and_(released, page >> 6, ~bit(page))
    gpu.syncthreads()


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


@cuda_kernel("void(int64[::1], int64[::1], int32[::1], int64[::1])")
def owners_free_cuda(slab, record, pages, out):
    shared = gpu.shared.array(SHARED_WORDS, np.int64)
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
            if me == 0:
                out[0] = NULL
                at = key >> STATUS_BITS
                end_call(slab, record, RELEASE, -key, np.int64(pages[at]), np.int64(0))
            return
        # Released in the order of the last mentions: that is the thread that took the last owner,
        # unless the tile names a page that went free more often than once.
        gone = named and before == 1
        if any_thread(named and before > 1 and refcount[page] == 0):
            gone = named and refcount[page] == 0 and mentions(pages, page, i + 1, end) == 0
        count += release_tile(slab, shared, page, gone, count)
    gpu.syncthreads()
    if me == 0:
        out[0] = count
        end_release(slab, count)
        end_call(slab, record, RELEASE, np.int64(0), np.int64(0), np.int64(0))


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


@cuda_kernel("void(int64[::1], int64[::1], int64[::1], int64[::1])")
def owners_free_slots_cuda(slab, record, slots, out):
    shared = gpu.shared.array(SHARED_WORDS, np.int64)
    _free_pages, refcount, _released = pool_views(slab)
    first_mark = HEADER_SLOTS + ((slab[NUM_PAGES] + 63) >> 6)
    marks = slab[first_mark : 2 * first_mark - HEADER_SLOTS].view(np.uint64)
    me, step, n = gpu.threadIdx.x, gpu.blockDim.x, np.int64(slots.size)
    size, shift = slab[PAGE_SIZE], slab[PAGE_SHIFT]
    key = NONE
    for i in range(me, n, step):
        key = min(key, slot_fault(slab, slots[i], i))
    key = block_min(shared, key)
    if key != NONE:
        if me == 0:
            out[0] = NULL
            end_call(slab, record, FREE_SLOTS, -key, slots[key >> STATUS_BITS], np.int64(0))
        return
    count = np.int64(0)
    for begin in range(0, n, step):
        i = np.int64(begin + me)
        page = page_of(slots[i], size, shift) if i < n else np.int64(0)
        # Mostly the slots of a page stand side by side: the first of them speaks for it.
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
    for i in range(me, n, step):
        marks[page_of(slots[i], size, shift) >> 6] = np.uint64(0)
    if me == 0:
        out[0] = count
        end_release(slab, count)
        end_call(slab, record, FREE_SLOTS, np.int64(0), np.int64(0), np.int64(0))
