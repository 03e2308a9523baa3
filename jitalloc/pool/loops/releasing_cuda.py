"""How pages go that lose their last owner: in order into a ring, or at once into the bitmap."""

from __future__ import annotations

import numpy as np

from jitalloc.gpu.calls import bit, ring_place
from jitalloc.gpu.kernel import device_helper, gpu
from jitalloc.gpu.scan import any_thread, block_rank, block_scan, warp_run
from jitalloc.gpu.views import uint64_column
from jitalloc.pool.loops.merging_cuda import pool_views
from jitalloc.pool.state import (
    FIFO,
    FIRST_PAGE,
    FREE,
    FREED,
    HEAD,
    NUM_PAGES,
    ORDER,
    RELEASED,
    SORTED,
)
from jitalloc.state import HEADER_SLOTS

FAULTY = np.int64(1) << np.int64(32)  # counts for a page that could not be freed; above any count


@device_helper
def ring_put(slab, free_pages, at, page):
    """Put `page` into the ring as the one that goes free behind `at` others of this call."""
    size = slab[NUM_PAGES]
    if slab[ORDER] == FIFO:
        place = ring_place(ring_place(slab[HEAD] + slab[FREE], size) + at, size)
    else:
        place = slab[HEAD] - 1 - at
        place = place if place >= 0 else place + size
    free_pages[place] = page


@device_helper
def release_tile(slab, shared, page, gone, count):
    """Release the page of each thread with `gone`; `count` were released before by this call.

    Returns how many this tile released. In the order of the threads, for a freelist that is
    a ring.
    """
    free_pages, _refcount, released = pool_views(slab)
    before, total = block_rank(shared, gone)
    if gone:
        if slab[ORDER] == SORTED:
            gpu.atomic.or_(released, page >> 6, bit(page))
        else:
            ring_put(slab, free_pages, count + before, page)
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
def take_off(refcount, released, page, named):
    """Take an owner off `page` where it is `named`, while others do so too; every thread is here.

    Returns 1 if it was the last one, FAULTY if there was none. A page of n owners that is named n
    times or more is released by one thread, whichever it is. That is one atomic a page; bits of
    pages that a warp names side by side are set by one more.
    """
    owners = np.int64(2)
    if named:
        owners = np.int64(gpu.atomic.sub(refcount, page, np.int32(1)))
    bits = warp_run(page, owners == 1)
    if bits != np.uint32(0):
        at = np.uint64(page & 63)
        gpu.atomic.or_(released, page >> 6, np.uint64(bits) << at)
        over = np.uint64(bits) >> (np.uint64(64) - at) if at > np.uint64(32) else np.uint64(0)
        if over != np.uint64(0):
            gpu.atomic.or_(released, (page >> 6) + 1, over)
    return np.int64(1) if owners == 1 else (np.int64(0) if owners > 1 else FAULTY)


@device_helper
def put_back(refcount, released, page):
    """Undo `take_off`. Who makes the first owner again takes the bit away."""
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
    w = (slab[NUM_PAGES] + 63) >> 6
    return (uint64_column(slab, HEADER_SLOTS + w, w),)
