"""Twins of the slot allocator's loops.

Batches are for callers that do not wait, and a block runs them: taken by a scan of the words of
the bitmap, given back in tiles of one slot a thread, so that of a slot named twice it is known
which mention came first. No race decides. There is no clock to advance: `end_read` books a call.

Calls of one slot are for a host that waits. Each answers in an array of its own, so that no two of
them can take each other's answers: a copy of the record, and in RESULT what the twin returns.
"""

from __future__ import annotations

import numpy as np

from jitalloc.errors import (
    OUT_OF_SLOTS,
    SLOT_FREE,
    SLOT_OUTSIDE,
    SLOT_TAKEN,
    STATUS_BITS,
)
from jitalloc.gpu.calls import bit, end_read, fail, fault_key, fill_null
from jitalloc.gpu.kernel import MOST_THREADS, cuda_kernel, device_helper, gpu
from jitalloc.gpu.record import CALLS, FAULT_STATUS, FAULT_WANTED, RECORD_SLOTS, RESULT
from jitalloc.gpu.scan import (
    NOWHERE,
    SHARED_WORDS,
    any_thread,
    block_min,
    block_scan,
    mentions,
    owner_of,
)
from jitalloc.slots.loops.slots import (
    slots_alloc_batch_cpu,
    slots_alloc_cpu,
    slots_clear_cpu,
    slots_free_batch_cpu,
    slots_free_cpu,
    slots_look_cpu,
    slots_occupy_cpu,
)
from jitalloc.slots.state import FREE_SLOTS, LOWEST, NUM_SLOTS, PEAK_SLOTS, SLOT_CALL_KINDS
from jitalloc.state import HEADER_SLOTS, NULL

ALLOC_BATCH = SLOT_CALL_KINDS.index("alloc_batch")
FREE_BATCH = SLOT_CALL_KINDS.index("free_batch")
ZERO, ONE, ALL_ONES = np.uint64(0), np.uint64(1), np.uint64(0xFFFFFFFFFFFFFFFF)


@device_helper
def slot_places(slab):
    """Return the words at which `free` and `versions` begin; the summary begins at HEADER_SLOTS."""
    words = (slab[NUM_SLOTS] + 63) >> 6
    free = HEADER_SLOTS + ((words + 63) >> 6)
    return free, free + words


@device_helper
def book_taken(slab, count):
    """Count `count` slots as taken, by one thread."""
    slab[FREE_SLOTS] -= count
    slab[PEAK_SLOTS] = max(slab[PEAK_SLOTS], slab[NUM_SLOTS] - slab[FREE_SLOTS])


@device_helper
def mark_taken(summary, free, slot):
    """Take the bit of a slot out of both bitmaps, by one thread."""
    w = slot >> 6
    free[w] &= ~bit(slot)
    if free[w] == ZERO:
        summary[w >> 6] &= ~bit(w)


@device_helper
def begins_for(record, answer):
    """Tell the host what the record says; return whether the call runs: after no failure.

    The host raises the failure, so the record forgets it.
    """
    i = np.int64(gpu.threadIdx.x)
    while i < RECORD_SLOTS:
        answer[i] = record[i] if i != RESULT else np.int64(0)
        i += gpu.blockDim.x
    gpu.syncthreads()
    i = np.int64(FAULT_STATUS + gpu.threadIdx.x)
    while i <= FAULT_WANTED:
        record[i] = 0
        i += gpu.blockDim.x
    if gpu.threadIdx.x == 0:
        record[CALLS] += 1
    return answer[FAULT_STATUS] == 0


@device_helper
def lowest_bit(word):
    """Return the index of the lowest set bit; there is one."""
    return np.int64(gpu.popc(~word & (word - ONE)))


@cuda_kernel("void(int64[::1], int64[::1], int64[::1])", twin=slots_alloc_cpu)
def slots_alloc_cuda(slab, record, answer):
    """Mutates the slab, the record, which forgets its failure, and `answer`: what the record said,
    and the lowest free slot, which is taken.

    Reads nothing else, requires one block.
    """
    shared = gpu.shared.array(SHARED_WORDS, np.int64)
    first_free, first_version = slot_places(slab)
    summary = slab[HEADER_SLOTS:first_free].view(np.uint64)
    free = slab[first_free:first_version].view(np.uint64)
    if not begins_for(record, answer):
        return
    # The lowest word of the summary with a free slot.
    s, found = np.int64(slab[LOWEST] + gpu.threadIdx.x), NOWHERE
    if slab[FREE_SLOTS] > 0:  # then there is a word, and all threads meet in the same round
        while found == NOWHERE:
            has = s < summary.size and summary[s] != ZERO
            found = block_min(shared, s if has else NOWHERE)
            s += gpu.blockDim.x
    if gpu.threadIdx.x == 0:
        if found == NOWHERE:
            answer[RESULT] = fail(OUT_OF_SLOTS, 0)
        else:
            w = (found << 6) + lowest_bit(summary[found])
            slot = (w << 6) + lowest_bit(free[w])
            slab[LOWEST] = found
            mark_taken(summary, free, slot)
            slab[first_version + slot] += 1
            book_taken(slab, 1)
            answer[RESULT] = slot


@cuda_kernel("void(int64[::1], int64[::1], int64[::1], int64)", twin=slots_free_cpu)
def slots_free_cuda(slab, record, answer, slot):
    """Mutates the slab, the record, which forgets its failure, and `answer`: what the record said,
    and the status word where `slot` is free already.

    Reads nothing else, requires a slot that the allocator has, and one block.
    """
    first_free, first_version = slot_places(slab)
    summary = slab[HEADER_SLOTS:first_free].view(np.uint64)
    free = slab[first_free:first_version].view(np.uint64)
    if begins_for(record, answer) and gpu.threadIdx.x == 0:
        w = slot >> 6
        if free[w] & bit(slot) != ZERO:
            answer[RESULT] = fail(SLOT_FREE, 0)
        else:
            free[w] |= bit(slot)
            summary[w >> 6] |= bit(w)
            slab[LOWEST] = min(slab[LOWEST], w >> 6)
            slab[FREE_SLOTS] += 1


@cuda_kernel("void(int64[::1], int64[::1], int64[::1], int64)", twin=slots_occupy_cpu)
def slots_occupy_cuda(slab, record, answer, slot):
    """Mutates the slab, the record, which forgets its failure, and `answer`: what the record said,
    and the status word where `slot` is taken already.

    Reads nothing else, requires a slot that the allocator has, and one block.
    """
    first_free, first_version = slot_places(slab)
    summary = slab[HEADER_SLOTS:first_free].view(np.uint64)
    free = slab[first_free:first_version].view(np.uint64)
    if begins_for(record, answer) and gpu.threadIdx.x == 0:
        if free[slot >> 6] & bit(slot) == ZERO:
            answer[RESULT] = fail(SLOT_TAKEN, 0)
        else:
            mark_taken(summary, free, slot)
            slab[first_version + slot] += 1
            book_taken(slab, 1)


@cuda_kernel("void(int64[::1], int64[::1], int64[::1], int64)", twin=slots_look_cpu)
def slots_look_cuda(slab, record, answer, slot):
    """Mutates the record, which forgets its failure, and `answer`: what the record said, how often
    `slot` was taken, and whether it is.

    Reads the slab, requires a slot that the allocator has, and one block.
    """
    first_free, first_version = slot_places(slab)
    free = slab[first_free:first_version].view(np.uint64)
    if begins_for(record, answer) and gpu.threadIdx.x == 0:
        taken = np.int64(1) if free[slot >> 6] & bit(slot) == ZERO else np.int64(0)
        answer[RESULT] = (slab[first_version + slot] << 1) | taken


@device_helper
def nth_bit(word, n):
    """Return the index of the set bit of `word` below which `n` others are set."""
    at, width = np.int64(0), np.int64(32)
    while width > 0:
        half = (word >> np.uint64(at)) & ((ONE << np.uint64(width)) - ONE)
        count = np.int64(gpu.popc(half))
        if n >= count:
            n -= count
            at += width
        width >>= 1
    return at


@device_helper
def drop_bits(free, summary, w, count):
    """Take the `count` lowest set bits out of word `w`, which has as many."""
    left = np.int64(gpu.popc(free[w])) - count
    if left > 0:
        free[w] &= ALL_ONES << np.uint64(nth_bit(free[w], count))
    else:
        free[w] = ZERO
        gpu.atomic.and_(summary, w >> 6, ~bit(w))


@cuda_kernel("void(int64[::1], int64[::1], int32[::1])", twin=slots_alloc_batch_cpu)
def slots_alloc_batch_cuda(slab, record, out):
    """Mutates the slab, its record and `out`, the lowest free slots, or NULL where the call fails.

    Reads nothing else, requires one block.
    """
    shared = gpu.shared.array(SHARED_WORDS, np.int64)
    starts = gpu.shared.array(MOST_THREADS, np.int32)
    first_free, first_version = slot_places(slab)
    summary = slab[HEADER_SLOTS:first_free].view(np.uint64)
    free = slab[first_free:first_version].view(np.uint64)
    me, step, n = gpu.threadIdx.x, gpu.blockDim.x, np.int64(out.size)
    if n > slab[FREE_SLOTS]:
        fill_null(out, 0, me, step)
        if me == 0:
            status = fail(OUT_OF_SLOTS, slab[FREE_SLOTS])
            end_read(record, ALLOC_BATCH, status, np.int64(0), n)
        return
    # A word a thread, from the lowest with a free slot on, until there are enough.
    taken, first = np.int64(0), slab[LOWEST] << 6
    while taken < n and first < free.size:
        w = np.int64(first + me)
        mine = np.int64(gpu.popc(free[w])) if w < free.size else np.int64(0)
        before, total = block_scan(shared, mine)
        starts[me] = before
        gpu.syncthreads()
        count = min(total, n - taken)
        for i in range(me, count, step):
            j = owner_of(starts, i, step)
            slot = ((first + j) << 6) + nth_bit(free[first + j], i - starts[j])
            slab[first_version + slot] += 1
            out[taken + i] = slot
        gpu.syncthreads()
        if mine > 0 and before < count:
            drop_bits(free, summary, w, min(mine, count - before))
        taken += count
        first += step
    gpu.syncthreads()
    if me == 0:
        if n > 0:
            slab[LOWEST] = np.int64(out[n - 1]) >> 12
        book_taken(slab, n)
        end_read(record, ALLOC_BATCH, np.int64(0), np.int64(0), n)


@device_helper
def give_fault(slab, free, slots, i, begin):
    """Return the key of why `slots[i]` of the tile from `begin` on cannot be freed, or NOWHERE.

    Slots before the tile are marked free by now, those of the tile are not.
    """
    slot = np.int64(slots[i])
    if slot == NULL:
        return NOWHERE
    if slot < 0 or slot >= slab[NUM_SLOTS]:
        return fault_key(SLOT_OUTSIDE, i)
    if free[slot >> 6] & bit(slot) != ZERO or mentions(slots, slot, begin, i) > 0:
        return fault_key(SLOT_FREE, i)
    return NOWHERE


@device_helper
def take_back(summary, free, slots, begin, end):
    """Mark `slots[begin:end]`, which this call has freed, as taken again."""
    me, step = gpu.threadIdx.x, gpu.blockDim.x
    for i in range(begin + me, end, step):
        slot = np.int64(slots[i])
        if slot >= 0:
            gpu.atomic.and_(free, slot >> 6, ~bit(slot))
    gpu.syncthreads()
    for i in range(begin + me, end, step):
        w = np.int64(slots[i]) >> 6
        if w >= 0 and free[w] == ZERO:
            gpu.atomic.and_(summary, w >> 6, ~bit(w))
    gpu.syncthreads()


@cuda_kernel("void(int64[::1], int64[::1], int32[::1])", twin=slots_free_batch_cpu)
def slots_free_batch_cuda(slab, record, slots):
    """Mutates the slab and its record: all of `slots` are free, or none of them is freed.

    Reads `slots`, requires nothing of them, and one block. NULL is padding: nothing happens to it.
    """
    shared = gpu.shared.array(SHARED_WORDS, np.int64)
    first_free, first_version = slot_places(slab)
    summary = slab[HEADER_SLOTS:first_free].view(np.uint64)
    free = slab[first_free:first_version].view(np.uint64)
    me, step, n = gpu.threadIdx.x, gpu.blockDim.x, np.int64(slots.size)
    lowest, freed = slab[LOWEST], np.int64(0)
    # Tile by tile; at the first that is wrong all is taken back.
    for begin in range(0, n, step):
        i, end = np.int64(begin + me), min(np.int64(begin + step), n)
        slot = np.int64(slots[i]) if i < n else np.int64(NULL)
        given = slot != NULL
        wrong = given and (slot < 0 or slot >= slab[NUM_SLOTS])
        if given and not wrong:
            wrong = free[slot >> 6] & bit(slot) != ZERO
        marked = np.int64(begin)
        twice = False
        if not any_thread(wrong):
            marked = end
            if given:
                w = slot >> 6
                twice = gpu.atomic.or_(free, w, bit(slot)) & bit(slot) != ZERO
                gpu.atomic.or_(summary, w >> 6, bit(w))
                lowest = min(lowest, w >> 6)
                freed += 1
        if any_thread(wrong or twice):
            take_back(summary, free, slots, begin, marked)
            key = give_fault(slab, free, slots, i, begin) if i < n else NOWHERE
            key = block_min(shared, key)
            take_back(summary, free, slots, 0, begin)
            if me == 0:
                value = np.int64(slots[key >> STATUS_BITS])
                end_read(record, FREE_BATCH, -key, value, np.int64(0))
            return
    lowest = block_min(shared, lowest)
    _before, freed = block_scan(shared, freed)
    if me == 0:
        slab[LOWEST] = lowest
        slab[FREE_SLOTS] += freed
        end_read(record, FREE_BATCH, np.int64(0), np.int64(0), freed)


@device_helper
def bits_below(count):
    """Return the lowest `count` bits of a word, at most all of them."""
    return ALL_ONES if count >= 64 else (ONE << np.uint64(count)) - ONE


@cuda_kernel("void(int64[::1], int64[::1])", twin=slots_clear_cpu)
def slots_clear_cuda(slab, record):
    """Mutates the slab and its record: all slots are free; versions go on.

    Reads nothing else, requires one block.
    """
    first_free, first_version = slot_places(slab)
    summary = slab[HEADER_SLOTS:first_free].view(np.uint64)
    free = slab[first_free:first_version].view(np.uint64)
    me, step, n = gpu.threadIdx.x, gpu.blockDim.x, slab[NUM_SLOTS]
    for w in range(me, free.size, step):
        free[w] = bits_below(n - (w << 6))
    for s in range(me, summary.size, step):
        summary[s] = bits_below(free.size - (s << 6))
    if me == 0:
        slab[FREE_SLOTS] = n
        slab[LOWEST] = 0
        record[CALLS] += 1
