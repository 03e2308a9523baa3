"""Races: two accesses of a place, one of them a write, that nothing orders.

Barriers order what threads of one block do. Between blocks a fence, an atomic, and behind that a
fence of who has read it; each block has a clock of what of the others lies before it.
"""

from __future__ import annotations

from tests.ptx.compiled import halves_at, helper, rows_at
from tests.ptx.layout import (
    CLOCK_FIELDS,
    MOST_NOTES,
    NOTE_FIELDS,
    SHADOW_FIELDS,
    STAMP_FIELDS,
    STAMPS,
    Block,
    Launch,
    Thread,
)

SHARED, GLOBAL = 0, 1
# Fields of a stamp.
BLOCK, EPOCH, THREAD, LINE, ATOMIC = range(5)
# Fields of a clock: epochs that are over for all threads; a thread and its epoch, plus one.
EPOCHS, WHO, ITS_EPOCH = range(3)
PAST, NOW, CLOCKS_A_BLOCK = 0, 1, 3  # of a block: before its epoch, behind its fence, to be taken
PENDING = 2


@helper
def clock_of(L, block, which):  # type: ignore[no-untyped-def]
    """Return one of the three clocks of a block, a row for each other block."""
    grid = L[Launch.GRID]
    size = grid * CLOCK_FIELDS * 8
    at = L[Launch.CLOCKS] + (block * CLOCKS_A_BLOCK + which) * size
    return rows_at(at, grid, CLOCK_FIELDS)


@helper
def join(to, of):  # type: ignore[no-untyped-def]
    """Take into a clock what lies before another."""
    for i in range(to.shape[0]):
        if of[i, EPOCHS] > to[i, EPOCHS]:
            to[i, EPOCHS] = of[i, EPOCHS]
        if of[i, ITS_EPOCH] > to[i, ITS_EPOCH]:
            to[i, WHO], to[i, ITS_EPOCH] = of[i, WHO], of[i, ITS_EPOCH]


@helper
def ordered(L, B, T, shadow, at, space):  # type: ignore[no-untyped-def]
    """Return whether what a stamp tells of lies before what a thread does now."""
    block, epoch, thread = shadow[at + BLOCK] - 1, shadow[at + EPOCH], shadow[at + THREAD]
    if block == B[Block.ID]:
        return thread == T[Thread.ID] or epoch < B[Block.EPOCH]
    if space == SHARED:
        return False
    which = NOW if T[Thread.ACQUIRED_EPOCH] == B[Block.EPOCH] + 1 else PAST
    clock = clock_of(L, B[Block.ID], which)
    if epoch < clock[block, EPOCHS]:
        return True
    return thread == clock[block, WHO] and epoch < clock[block, ITS_EPOCH]


@helper
def note(L, B, T, shadow, at, write, atomic, line, space, same):  # type: ignore[no-untyped-def]
    """Write a race down, unless one of the same two places has been."""
    L[Launch.RACES] += 1
    notes = rows_at(L[Launch.NOTES], MOST_NOTES, NOTE_FIELDS)
    before = at == 0  # the stamp is of a write
    within = shadow[at + BLOCK] - 1 == B[Block.ID]
    for i in range(L[Launch.NUM_NOTES]):
        if (
            notes[i, 3] == shadow[at + LINE]
            and notes[i, 9] == line
            and notes[i, 0] == space
            and notes[i, 1] == before
            and notes[i, 7] == write
            and notes[i, 13] == same
            and (notes[i, 4] == notes[i, 10]) == within
        ):
            notes[i, 14] += 1
            return
    if L[Launch.NUM_NOTES] == MOST_NOTES:
        return
    found = notes[L[Launch.NUM_NOTES]]
    L[Launch.NUM_NOTES] += 1
    found[0], found[1], found[2] = space, before, shadow[at + ATOMIC]
    found[3], found[4] = shadow[at + LINE], shadow[at + BLOCK] - 1
    found[5], found[6] = shadow[at + THREAD], shadow[at + EPOCH]
    found[7], found[8], found[9] = write, atomic != 0, line
    found[10], found[11], found[12] = B[Block.ID], T[Thread.ID], B[Block.EPOCH]
    found[13], found[14] = same, 1


@helper
def stamp(B, T, shadow, at, line, atomic):  # type: ignore[no-untyped-def]
    """Remember an access."""
    shadow[at + BLOCK], shadow[at + EPOCH] = B[Block.ID] + 1, B[Block.EPOCH]
    shadow[at + THREAD], shadow[at + LINE] = T[Thread.ID], line
    shadow[at + ATOMIC] = atomic != 0


@helper
def touch(L, B, T, shadow, write, atomic, line, space, same):  # type: ignore[no-untyped-def]
    """Compare an access of four bytes with those before it, and remember it."""
    if shadow[BLOCK] and not (shadow[ATOMIC] and atomic) and not ordered(L, B, T, shadow, 0, space):
        note(L, B, T, shadow, 0, write, atomic, line, space, same)
    if write:
        for at in range(STAMP_FIELDS, STAMPS * STAMP_FIELDS, STAMP_FIELDS):
            if shadow[at + BLOCK]:
                if not ordered(L, B, T, shadow, at, space):
                    note(L, B, T, shadow, at, write, atomic, line, space, same)
                shadow[at + BLOCK] = 0
        stamp(B, T, shadow, 0, line, atomic)
        return
    free = 0
    for at in range(STAMP_FIELDS, STAMPS * STAMP_FIELDS, STAMP_FIELDS):
        mine = shadow[at + BLOCK] == B[Block.ID] + 1
        if mine and (shadow[at + THREAD] == T[Thread.ID] or shadow[at + EPOCH] < B[Block.EPOCH]):
            free = at
            break
        if not shadow[at + BLOCK] and not free:
            free = at
    if not free:
        last = SHADOW_FIELDS - 1
        free = STAMP_FIELDS * (1 + shadow[last] % (STAMPS - 1))
        shadow[last] = (shadow[last] + 1) % (STAMPS - 1)
    stamp(B, T, shadow, free, line, 0)


@helper
def word_number(L, at):  # type: ignore[no-untyped-def]
    """Return the number of four bytes among all that the launch may touch."""
    spans = rows_at(L[Launch.SPANS], L[Launch.NUM_SPANS], 3)
    for i in range(L[Launch.NUM_SPANS]):
        if spans[i, 0] <= at and at < spans[i, 1]:
            return spans[i, 2] + ((at - spans[i, 0]) >> 2)
    return -1


@helper
def race_check(L, B, T, at, size, write, atomic, line, same):  # type: ignore[no-untyped-def]
    """Look at an access of global memory."""
    first = word_number(L, at & -4)
    words = (size + 3) >> 2
    shadows = halves_at(L[Launch.GLOBAL_SHADOWS] + first * SHADOW_FIELDS * 4, words, SHADOW_FIELDS)
    for i in range(words):
        touch(L, B, T, shadows[i], write, atomic, line, GLOBAL, same)


@helper
def meet_at_atomic(L, B, T, at):  # type: ignore[no-untyped-def]
    """Hand on what lies before a fence through an atomic, and take what others have handed on."""
    grid = L[Launch.GRID]
    gives = B[Block.PUBLISHED] > 0 or T[Thread.FENCES] > 0
    room = L[Launch.LOCATION_ROOM]
    table = rows_at(L[Launch.LOCATIONS], room, 2)
    key = (at >> 2) + 1
    slot = (key * 0x9E3779B1) & (room - 1)
    while table[slot, 0] and table[slot, 0] != key:
        slot = (slot + 1) & (room - 1)
    if not table[slot, 0]:
        if not gives:
            return
        if L[Launch.NUM_LOCATIONS] * 2 < room:
            table[slot, 0], table[slot, 1] = key, L[Launch.NUM_LOCATIONS]
            L[Launch.NUM_LOCATIONS] += 1
    # Where there is no more room, words share the first clock: a race may be missed then.
    place = L[Launch.LOCATION_CLOCKS] + table[slot, 1] * grid * CLOCK_FIELDS * 8
    clock = rows_at(place, grid, CLOCK_FIELDS)
    join(clock_of(L, B[Block.ID], PENDING), clock)
    B[Block.PENDING] = 1
    if gives:
        join(clock, clock_of(L, B[Block.ID], PAST))
        me = B[Block.ID]
        clock[me, EPOCHS] = max(clock[me, EPOCHS], B[Block.PUBLISHED])
        if T[Thread.FENCES] and T[Thread.FENCE_EPOCH] + 1 >= clock[me, ITS_EPOCH]:
            clock[me, WHO], clock[me, ITS_EPOCH] = T[Thread.ID], T[Thread.FENCE_EPOCH] + 1


@helper
def race_fence(L, B, T):  # type: ignore[no-untyped-def]
    """A fence of the whole device."""
    T[Thread.FENCES] += 1
    T[Thread.FENCE_EPOCH] = B[Block.EPOCH]
    B[Block.FENCED] += 1
    B[Block.PUBLISHED] = max(B[Block.PUBLISHED], B[Block.EPOCH])
    if B[Block.PENDING]:
        join(clock_of(L, B[Block.ID], NOW), clock_of(L, B[Block.ID], PENDING))
        T[Thread.ACQUIRED_EPOCH] = B[Block.EPOCH] + 1


@helper
def race_barrier(L, B):  # type: ignore[no-untyped-def]
    """All threads of a block have met; its epoch is still the one before."""
    if B[Block.FENCED] >= B[Block.LIVE]:
        B[Block.PUBLISHED] = B[Block.EPOCH] + 1
    B[Block.FENCED] = 0
    join(clock_of(L, B[Block.ID], PAST), clock_of(L, B[Block.ID], NOW))
