"""Twins of the loops of page ownership: share, free, reference counts, and frees by slot.

All blocks add or take off owners at once, and where it turns out that a page could not be, the last
one gives all of it back and looks for the first fault, one tile behind the other.
"""

from __future__ import annotations

import numpy as np

from jitalloc.errors import PAGE_FREE, PAGE_RANGE, REFCOUNT_OVERFLOW, STATUS_BITS
from jitalloc.gpu.calls import end_read, fault_key, fill_null
from jitalloc.gpu.kernel import cuda_kernel, device_helper, gpu
from jitalloc.gpu.record import CALL_KINDS
from jitalloc.gpu.scan import (
    NOWHERE,
    SHARED_WORDS,
    any_thread,
    block_min,
    call_min,
    last_block,
    mentions,
)
from jitalloc.pool.loops.merging_cuda import USED, VERDICT, end_parts, pool_scratch, pool_views
from jitalloc.pool.loops.owners import (
    owners_count_cpu,
    owners_free_cpu,
    owners_free_slots_cpu,
    owners_share_cpu,
)
from jitalloc.pool.loops.page_frees_cuda import (
    free_in_order,
    free_unordered,
    page_fault,
    release_part,
)
from jitalloc.pool.loops.pool_cuda import end_call, page_of
from jitalloc.pool.loops.releasing_cuda import end_release, marks_of
from jitalloc.pool.loops.slot_frees_cuda import (
    free_slots_in_order,
    free_slots_unordered,
    release_slots_part,
    slot_fault,
)
from jitalloc.pool.state import FIRST_PAGE, NUM_PAGES, ORDER, PAGE_SHIFT, PAGE_SIZE, SORTED
from jitalloc.state import INT32_MAX, NULL

SHARE = CALL_KINDS.index("share")
RELEASE = CALL_KINDS.index("free")
FREE_SLOTS = CALL_KINDS.index("free_slots")
COUNT = CALL_KINDS.index("refcount")


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


@cuda_kernel("void(int64[::1], int64[::1], int32[::1], int64[::1], int64)", twin=owners_free_cpu)
def owners_free_cuda(slab, record, pages, out, group):
    """Mutates the pool, its record and `out[0]`, how many pages have no owner left, or NULL: each
    of `pages` loses one owner, or none of them does.

    Reads `pages`, requires nothing of them, and one block in other orders than `sorted`. `group`
    stays in the record of a call that fails.
    """
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


@cuda_kernel("void(int64[::1], int64[::1], int32[::1])", twin=owners_free_cpu, step=False)
def owners_take_off_cuda(slab, record, pages):
    """Mutates the counts of owners, which each of `pages` lowers, and the scratch behind the pool:
    the place at which a page is named last, and whether one could not lose an owner. First launch
    of a free into a ring.

    Reads `pages`, requires `owners_free_ring_cuda` behind it, which books the call or undoes it.
    """
    shared = gpu.shared.array(SHARED_WORDS, np.int64)
    _free_pages, refcount, _released = pool_views(slab)
    scratch, places = pool_scratch(slab)
    lowest, size, n = slab[FIRST_PAGE], slab[NUM_PAGES], np.int64(pages.size)
    i, used, bad = np.int64(gpu.grid(1)), scratch[USED], False
    while i < n:
        page = np.int64(pages[i])
        owners = np.int32(0)
        if lowest <= page < size:
            owners = gpu.atomic.sub(refcount, page, np.int32(1))
            gpu.atomic.max(places, page, used + i + 1)
        bad |= owners <= 0
        i += gpu.gridsize(1)
    last, faults = last_block(record, shared, np.int64(any_thread(bad)))
    if last and gpu.threadIdx.x == 0:
        scratch[VERDICT] = faults


@cuda_kernel("void(int64[::1], int64[::1], int32[::1], int64[::1], int64)", twin=owners_free_cpu)
def owners_free_ring_cuda(slab, record, pages, out, group):
    """Mutates the pool, its record, `out[0]` and the scratch: pages without an owner join the ring,
    or all owners are given back. Second launch of a free into a ring.

    Reads `pages` and the scratch, requires `owners_take_off_cuda` of the same before it. `group`
    stays in the record of a call that fails.
    """
    shared = gpu.shared.array(SHARED_WORDS, np.int64)
    scratch, _places = pool_scratch(slab)
    lowest, size, n = slab[FIRST_PAGE], slab[NUM_PAGES], np.int64(pages.size)
    faulty, count = scratch[VERDICT] > 0, np.int64(0)
    if faulty:
        _free_pages, refcount, _released = pool_views(slab)
        i = np.int64(gpu.grid(1))
        while i < n:
            page = np.int64(pages[i])
            if lowest <= page < size:
                gpu.atomic.add(refcount, page, np.int32(1))
            i += gpu.gridsize(1)
    else:
        count = release_part(slab, shared, pages)
    last, count = last_block(record, shared, count)
    if not last:
        return
    if faulty:
        count = free_in_order(slab, shared, pages)
    else:
        end_parts(slab)
    if gpu.threadIdx.x == 0:
        scratch[USED] += n
        end_free(slab, record, RELEASE, pages, out, count, group)


@device_helper
def share_fault(slab, pages, i, begin, step):
    """Return the key of why nobody can be added to the owners of `pages[i]`, or NOWHERE."""
    _free_pages, refcount, _released = pool_views(slab)
    page = np.int64(pages[i])
    if page < slab[FIRST_PAGE] or page >= slab[NUM_PAGES]:
        return fault_key(page_fault(slab, page), i)
    owned = np.int64(refcount[page])
    if owned == 0:
        return fault_key(PAGE_FREE, i)
    if owned > INT32_MAX - step and owned + mentions(pages, page, begin, i) >= INT32_MAX:
        return fault_key(REFCOUNT_OVERFLOW, i)
    return NOWHERE


@device_helper
def share_in_order(slab, shared, pages):
    """Return the key of the first page that nobody can be added to the owners of, by one block.

    There is one; those before it get an owner meanwhile.
    """
    _free_pages, refcount, _released = pool_views(slab)
    me, step, n = gpu.threadIdx.x, gpu.blockDim.x, np.int64(pages.size)
    begin, key = np.int64(0), NOWHERE
    while begin < n:
        i = begin + me
        key = share_fault(slab, pages, i, begin, step) if i < n else NOWHERE
        if any_thread(key != NOWHERE):
            key = block_min(shared, key)
            break
        if i < n:
            gpu.atomic.add(refcount, np.int64(pages[i]), np.int32(1))
        gpu.syncthreads()
        begin += step
    for j in range(me, min(begin, n), step):
        gpu.atomic.sub(refcount, np.int64(pages[j]), np.int32(1))
    return key


@cuda_kernel("void(int64[::1], int64[::1], int32[::1])", twin=owners_share_cpu)
def owners_share_cuda(slab, record, pages):
    """Mutates the pool and its record: each of `pages` gets one owner more, or none of them does.

    Reads `pages`, requires nothing of them.
    """
    shared = gpu.shared.array(SHARED_WORDS, np.int64)
    _free_pages, refcount, _released = pool_views(slab)
    lowest, size, n = slab[FIRST_PAGE], slab[NUM_PAGES], np.int64(pages.size)
    # All add their owners at once.
    i, bad = np.int64(gpu.grid(1)), False
    while i < n:
        page = np.int64(pages[i])
        owners = np.int64(0)
        if lowest <= page < size:
            owners = np.int64(gpu.atomic.add(refcount, page, np.int32(1)))
        bad |= owners <= 0 or owners == INT32_MAX  # past that they are negative
        i += gpu.gridsize(1)
    last, faults = last_block(record, shared, np.int64(any_thread(bad)))
    if not last:
        return
    key = NOWHERE
    # One could not: the last block gives all back, and looks for the first fault.
    if faults > 0:
        for j in range(gpu.threadIdx.x, n, gpu.blockDim.x):
            page = np.int64(pages[j])
            if lowest <= page < size:
                gpu.atomic.sub(refcount, page, np.int32(1))
        gpu.syncthreads()
        key = share_in_order(slab, shared, pages)
    if gpu.threadIdx.x == 0:
        status, value = np.int64(0), np.int64(0)
        if key != NOWHERE:
            status, value = -key, np.int64(pages[key >> STATUS_BITS])
        end_call(slab, record, SHARE, status, value, np.int64(0))


@cuda_kernel(
    "void(int64[::1], int64[::1], int32[::1], int32[::1])", twin=owners_count_cpu, step=False
)
def owners_count_cuda(slab, record, pages, out):
    """Mutates the record and `out`, how many owners each of `pages` has, or NULL where the call
    fails.

    Reads `pages` and the pool, requires `out` as long as `pages`.
    """
    shared = gpu.shared.array(SHARED_WORDS, np.int64)
    _free_pages, refcount, _released = pool_views(slab)
    size, n = slab[NUM_PAGES], np.int64(pages.size)
    i, key = np.int64(gpu.grid(1)), NOWHERE
    while i < n:
        page = np.int64(pages[i])
        if 0 <= page < size:
            out[i] = refcount[page]
        else:
            key = min(key, fault_key(PAGE_RANGE, i))
        i += gpu.gridsize(1)
    last, key = call_min(record, shared, key)
    if not last:
        return
    if key != NOWHERE:
        fill_null(out, 0, gpu.threadIdx.x, gpu.blockDim.x)
    if gpu.threadIdx.x == 0:
        status, value = np.int64(0), np.int64(0)
        if key != NOWHERE:
            status, value = -key, np.int64(pages[key >> STATUS_BITS])
        end_read(record, COUNT, status, value, np.int64(0))


@cuda_kernel("void(int64[::1], int64[::1], int64[::1], int64[::1])", twin=owners_free_slots_cpu)
def owners_free_slots_cuda(slab, record, slots, out):
    """Mutates the pool, its record and `out[0]`, how many pages have no owner left, or NULL: each
    page that `slots` name loses one owner, or none of them does. The bitmap `marks` is scratch.

    Reads `slots`, requires nothing of them, and one block in other orders than `sorted`.
    """
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


@cuda_kernel("void(int64[::1], int64[::1], int64[::1])", twin=owners_free_slots_cpu, step=False)
def owners_mark_slots_cuda(slab, record, slots):
    """Mutates the scratch behind the pool: the place at which a page is named first, and the first
    fault. First launch of a free by slot into a ring.

    Reads `slots` and the pool, requires `owners_free_slots_ring_cuda` behind it, which books the
    call.
    """
    shared = gpu.shared.array(SHARED_WORDS, np.int64)
    scratch, places = pool_scratch(slab)
    size, shift, n = slab[PAGE_SIZE], slab[PAGE_SHIFT], np.int64(slots.size)
    i, used, key = np.int64(gpu.grid(1)), scratch[USED], NOWHERE
    while i < n:
        slot = slots[i]
        fault = slot_fault(slab, slot, i)
        page = page_of(slot, size, shift)
        if fault != NOWHERE:
            key = min(key, fault)
        elif i == 0 or page_of(slots[i - 1], size, shift) != page:
            gpu.atomic.max(places, page, used + n - i)
        i += gpu.gridsize(1)
    last, key = call_min(record, shared, key)
    if last and gpu.threadIdx.x == 0:
        scratch[VERDICT] = key


@cuda_kernel("void(int64[::1], int64[::1], int64[::1], int64[::1])", twin=owners_free_slots_cpu)
def owners_free_slots_ring_cuda(slab, record, slots, out):
    """Mutates the pool, its record, `out[0]` and the scratch: owners are taken off, and what has
    none left joins the ring. Second launch of a free by slot into a ring.

    Reads `slots` and the scratch, requires `owners_mark_slots_cuda` of the same before it.
    """
    shared = gpu.shared.array(SHARED_WORDS, np.int64)
    scratch, _places = pool_scratch(slab)
    key, count = scratch[VERDICT], np.int64(0)
    if key == NOWHERE:
        count = release_slots_part(slab, shared, slots)
    last, count = last_block(record, shared, count)
    if not last:
        return
    if key == NOWHERE:
        end_parts(slab)
    if gpu.threadIdx.x == 0:
        scratch[USED] += slots.size
        end_free(
            slab, record, FREE_SLOTS, slots, out, count if key == NOWHERE else -key, np.int64(0)
        )
