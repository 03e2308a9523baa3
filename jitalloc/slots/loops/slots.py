"""Loops of the slot allocator: bitmap of free slots, its summary, versions.

A kernel holds the lock of the slab while it works, and answers BUSY where somebody else does.
"""

from __future__ import annotations

import numpy as np

from jitalloc._intrinsics import (
    ALL_ONES,
    ONE,
    bit,
    bit_count,
    fail,
    trailing_zeros,
    try_lock,
    unlock,
)
from jitalloc._jit import counting, helper, kernel
from jitalloc.errors import (
    BUSY,
    OUT_OF_SLOTS,
    SLOT_FREE,
    SLOT_OUTSIDE,
    SLOT_TAKEN,
)
from jitalloc.slots.state import (
    BAD_SLOT_BITMAP,
    BAD_SLOT_HEADER,
    BAD_SLOT_SUMMARY,
    BAD_SLOT_VERSION,
    FREE_SLOTS,
    LOWEST,
    NUM_SLOTS,
    PEAK_SLOTS,
)
from jitalloc.state import HEADER_SLOTS, LOCK

ZERO = np.uint64(0)


@counting
def slot_views(slab):
    """Return `(summary, free, versions)`, views into the slab of a slot allocator."""
    n = slab[NUM_SLOTS]
    w = (n + 63) >> 6
    first = HEADER_SLOTS + ((w + 63) >> 6)
    summary = slab[HEADER_SLOTS:first].view(np.uint64)
    free = slab[first : first + w].view(np.uint64)
    return summary, free, slab[first + w : first + w + n]


@helper
def lowest_word(slab, summary):
    """Return the lowest word of the bitmap with a free slot; there is one."""
    s = slab[LOWEST]
    while summary[s] == ZERO:
        s += 1
    slab[LOWEST] = s
    return (s << 6) + trailing_zeros(summary[s])


@helper
def book_taken(slab, count):
    """Count `count` slots as taken."""
    slab[FREE_SLOTS] -= count
    slab[PEAK_SLOTS] = max(slab[PEAK_SLOTS], slab[NUM_SLOTS] - slab[FREE_SLOTS])


@helper
def mark_taken(free, summary, slot):
    """Take the bit of a slot out of both bitmaps."""
    w = slot >> 6
    free[w] &= ~bit(slot)
    if free[w] == ZERO:
        summary[w >> 6] &= ~bit(w)


@helper
def slot_take(free, summary, versions, slot):
    """Take a free slot."""
    mark_taken(free, summary, slot)
    versions[slot] += 1


@helper
def slot_give(slab, free, summary, slot):
    """Give a taken slot back."""
    w = slot >> 6
    free[w] |= bit(slot)
    summary[w >> 6] |= bit(w)
    if w >> 6 < slab[LOWEST]:
        slab[LOWEST] = w >> 6


@kernel("int64(int64[::1])")
def slots_alloc_cpu(slab):
    """Mutates both bitmaps, the header, and the version of the lowest free slot, which is returned.
    Reads the summary first, requires nothing; fails where no slot is free.
    """
    if not try_lock(slab):
        return fail(BUSY, 0)
    if slab[FREE_SLOTS] == 0:
        unlock(slab)
        return fail(OUT_OF_SLOTS, 0)
    summary, free, versions = slot_views(slab)
    w = lowest_word(slab, summary)
    slot = (w << 6) + trailing_zeros(free[w])
    slot_take(free, summary, versions, slot)
    book_taken(slab, 1)
    unlock(slab)
    return slot


@kernel("int64(int64[::1], int32[::1])")
def slots_alloc_batch_cpu(slab, out):
    """Mutates both bitmaps, the header, versions, and `out`: the lowest free slots, ascending.
    Reads FREE_SLOTS first, requires nothing; fails where `out` has more elements than that.
    """
    if not try_lock(slab):
        return fail(BUSY, 0)
    if out.size > slab[FREE_SLOTS]:
        status = fail(OUT_OF_SLOTS, slab[FREE_SLOTS])
        unlock(slab)
        return status
    summary, free, versions = slot_views(slab)
    count = 0
    while count < out.size:
        w = lowest_word(slab, summary)
        bits = free[w]
        while bits != ZERO and count < out.size:
            slot = (w << 6) + trailing_zeros(bits)
            bits &= bits - ONE
            versions[slot] += 1
            out[count] = slot
            count += 1
        free[w] = bits
        if bits == ZERO:
            summary[w >> 6] &= ~bit(w)
    book_taken(slab, count)
    unlock(slab)
    return np.int64(0)


@kernel("int64(int64[::1], int64)")
def slots_free_cpu(slab, slot):
    """Mutates both bitmaps and the header: `slot` is free again.
    Reads its bit first, requires `0 <= slot < NUM_SLOTS`; fails where it is free.
    """
    if not try_lock(slab):
        return fail(BUSY, 0)
    summary, free, _versions = slot_views(slab)
    if free[slot >> 6] & bit(slot) != ZERO:
        unlock(slab)
        return fail(SLOT_FREE, 0)
    slot_give(slab, free, summary, slot)
    slab[FREE_SLOTS] += 1
    unlock(slab)
    return np.int64(0)


@kernel("int64(int64[::1], int32[:])")
def slots_free_batch_cpu(slab, slots):
    """Mutates both bitmaps and the header: all of `slots` are free again.
    Reads `slots`, requires nothing; fails where one is out of range, free, or named twice.

    Optimistic: a slot named twice shows as free when its turn comes, and what was done until then
    is undone.
    """
    if not try_lock(slab):
        return fail(BUSY, 0)
    summary, free, _versions = slot_views(slab)
    lowest = slab[LOWEST]
    for i in range(slots.size):
        slot = np.int64(slots[i])
        code = 0
        if slot < 0 or slot >= slab[NUM_SLOTS]:
            code = SLOT_OUTSIDE
        elif free[slot >> 6] & bit(slot) != ZERO:
            code = SLOT_FREE
        if code != 0:  # undo
            for j in range(i):
                mark_taken(free, summary, np.int64(slots[j]))
            slab[LOWEST] = lowest
            unlock(slab)
            return fail(code, i)
        slot_give(slab, free, summary, slot)
    slab[FREE_SLOTS] += slots.size
    unlock(slab)
    return np.int64(0)


@kernel("int64(int64[::1], int64)")
def slots_occupy_cpu(slab, slot):
    """Mutates both bitmaps, the header, and the version of `slot`, which is taken.
    Reads its bit first, requires `0 <= slot < NUM_SLOTS`; fails where it is taken.
    """
    if not try_lock(slab):
        return fail(BUSY, 0)
    summary, free, versions = slot_views(slab)
    if free[slot >> 6] & bit(slot) == ZERO:
        unlock(slab)
        return fail(SLOT_TAKEN, 0)
    slot_take(free, summary, versions, slot)
    book_taken(slab, 1)
    unlock(slab)
    return np.int64(0)


@kernel("int64(int64[::1], int64)")
def slots_look_cpu(slab, slot):
    """Mutates nothing; returns the version of `slot` and, in the lowest bit, whether it is taken.
    Reads bitmap and versions, requires `0 <= slot < NUM_SLOTS`.

    With the lock: a batch of frees that fails has set bits for a moment.
    """
    if not try_lock(slab):
        return fail(BUSY, 0)
    _summary, free, versions = slot_views(slab)
    taken = np.int64(free[slot >> 6] & bit(slot) == ZERO)
    status = (versions[slot] << 1) | taken
    unlock(slab)
    return status


@helper
def ones(words, bits):
    """Set the first `bits` bits of a bitmap and no others."""
    for w in range(words.size):
        words[w] = ALL_ONES
    if bits & 63:
        words[words.size - 1] = bit(bits) - ONE


@kernel("int64(int64[::1])")
def slots_clear_cpu(slab):
    """Mutates both bitmaps and the header: every slot is free; versions stay.
    Reads NUM_SLOTS, requires nothing.
    """
    if not try_lock(slab):
        return fail(BUSY, 0)
    summary, free, _versions = slot_views(slab)
    ones(free, slab[NUM_SLOTS])
    ones(summary, free.size)
    slab[FREE_SLOTS] = slab[NUM_SLOTS]
    slab[LOWEST] = 0
    unlock(slab)
    return np.int64(0)


@helper
def slots_fault(slab):
    """Return the status word of the first broken invariant, or 0."""
    summary, free, versions = slot_views(slab)
    n = slab[NUM_SLOTS]
    count = np.int64(0)
    for w in range(free.size):
        count += np.int64(bit_count(free[w]))
        named = summary[w >> 6] & bit(w) != ZERO
        if named != (free[w] != ZERO):
            return fail(BAD_SLOT_SUMMARY, w >> 6)
    if n & 63 and free[free.size - 1] >> np.uint64(n & 63) != ZERO:
        return fail(BAD_SLOT_BITMAP, count)
    if count != slab[FREE_SLOTS]:
        return fail(BAD_SLOT_BITMAP, count)
    if free.size & 63 and summary[summary.size - 1] >> np.uint64(free.size & 63) != ZERO:
        return fail(BAD_SLOT_SUMMARY, summary.size - 1)
    if slab[LOWEST] < 0 or slab[LOWEST] > summary.size:
        return fail(BAD_SLOT_HEADER, LOWEST)
    for s in range(slab[LOWEST]):
        if summary[s] != ZERO:
            return fail(BAD_SLOT_HEADER, LOWEST)
    if slab[PEAK_SLOTS] < n - count or slab[PEAK_SLOTS] > n:
        return fail(BAD_SLOT_HEADER, PEAK_SLOTS)
    for unused in range(PEAK_SLOTS + 1, HEADER_SLOTS):
        if unused != LOCK and slab[unused] != 0:
            return fail(BAD_SLOT_HEADER, unused)
    for slot in range(n):
        taken = np.int64(free[slot >> 6] & bit(slot) == ZERO)
        if versions[slot] < taken:
            return fail(BAD_SLOT_VERSION, slot)
    return np.int64(0)


@kernel("int64(int64[::1])")
def slots_check_cpu(slab):
    """Mutates nothing; returns the first broken invariant, or 0.
    Reads the whole slab, requires that NUM_SLOTS is right.
    """
    if not try_lock(slab):
        return fail(BUSY, 0)
    status = slots_fault(slab)
    unlock(slab)
    return status
