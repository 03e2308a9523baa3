"""How pages go that lose their last owner: in order into a ring, or at once into the bitmap."""

from __future__ import annotations

import numpy as np

from jitalloc._cuda import device_helper, gpu
from jitalloc.kernels.cuda.pool import bit, pool_views, ring_place
from jitalloc.kernels.cuda.scan import any_thread, block_rank, block_scan
from jitalloc.state import (
    FIFO,
    FIRST_PAGE,
    FREE,
    FREED,
    HEAD,
    HEADER_SLOTS,
    NUM_PAGES,
    ORDER,
    RELEASED,
    SORTED,
)

FAULTY = np.int64(1) << np.int64(32)  # counts for a page that could not be freed; above any count


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
    before, total = block_rank(shared, gone)
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
    else:
        slab[FREE] += count
        if slab[ORDER] != FIFO:
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
def take_off(slab, page):
    """Take an owner off `page` while others do so too; 1 if it was the last one, FAULTY if none.

    A page of n owners that is named n times or more is released by one thread, whichever it is.
    """
    _free_pages, refcount, released = pool_views(slab)
    owners = np.int64(gpu.atomic.sub(refcount, page, np.int32(1)))
    if owners == 1:
        gpu.atomic.or_(released, page >> 6, bit(page))
    return np.int64(1) if owners == 1 else (np.int64(0) if owners > 1 else FAULTY)


@device_helper
def put_back(slab, page):
    """Undo `take_off`. Who makes the first owner again takes the bit away."""
    _free_pages, refcount, released = pool_views(slab)
    if gpu.atomic.add(refcount, page, np.int32(1)) == 0:
        gpu.atomic.and_(released, page >> 6, ~bit(page))


@device_helper
def block_count(shared, mine):
    """Return how many pages the threads of a block have released, FAULTY where one could not."""
    faulty = any_thread(mine >= FAULTY)
    _before, count = block_scan(shared, mine & (FAULTY - 1))
    return FAULTY if faulty else count


@device_helper
def marks_of(slab):
    """Return `(marks,)`, the bitmap that is scratch of one call."""
    first = HEADER_SLOTS + ((slab[NUM_PAGES] + 63) >> 6)
    return (slab[first : 2 * first - HEADER_SLOTS].view(np.uint64),)
