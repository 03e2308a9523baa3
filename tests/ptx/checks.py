"""What an access of memory has to be: aligned, within an array, and of something written."""

from __future__ import annotations

from numba import carray

from tests.ptx.compiled import bytes_at, callback, halves_at, load_bytes, report, rows_at
from tests.ptx.layout import (
    BLOCK_WORDS,
    LAUNCH_WORDS,
    SHADOW_FIELDS,
    THREAD_HEAD,
    Block,
    Error,
    Launch,
    Thread,
)
from tests.ptx.memory import ATOMIC, WRITES
from tests.ptx.races import SHARED, touch

BLANK, WRITTEN = 1, 2  # a byte of shared memory; 0: of no array


@callback(4)
def global_check(launch, block, thread, at, size, site, line):  # type: ignore[no-untyped-def]
    """Return 1 if an access is allowed, and let the next ones of this place pass quickly."""
    L, B, T = (
        carray(launch, (LAUNCH_WORDS,)),
        carray(block, (BLOCK_WORDS,)),
        carray(thread, (THREAD_HEAD,)),
    )
    if at & (size - 1):
        return report(L, B, T[Thread.ID], Error.GLOBAL_ALIGN, line, size, at, 0)
    ranges = rows_at(L[Launch.RANGES], L[Launch.NUM_RANGES], 2)
    near, least = -1, 0
    for i in range(L[Launch.NUM_RANGES]):
        first, length = ranges[i, 0], ranges[i, 1]
        if first <= at and at + size <= first + length:
            sites = rows_at(L[Launch.SITES], site + 1, 2)
            sites[site, 0] = first
            sites[site, 1] = length - size
            return 1
        far = first - at if at < first else at + size - first - length
        if near < 0 or far < least:
            near, least = i, far
    offset = at - ranges[near, 0] if near >= 0 else at
    return report(L, B, T[Thread.ID], Error.GLOBAL_BOUNDS, line, size, offset, near)


@callback(5)
def shared_check(launch, block, thread, at, size, how, value, line):  # type: ignore[no-untyped-def]
    """Return the address of a place in shared memory; 0 where it may not be accessed."""
    L, B, T = (
        carray(launch, (LAUNCH_WORDS,)),
        carray(block, (BLOCK_WORDS,)),
        carray(thread, (THREAD_HEAD,)),
    )
    me = T[Thread.ID]
    if at & (size - 1):
        return report(L, B, me, Error.SHARED_ALIGN, line, size, at, 0)
    room = L[Launch.SHARED_BYTES]
    if at < 0 or at + size > room:
        return report(L, B, me, Error.SHARED_BOUNDS, line, size, at, 0)
    state = bytes_at(B[Block.WRITTEN], room)
    for i in range(at, at + size):
        if state[i] == 0:
            return report(L, B, me, Error.SHARED_BOUNDS, line, size, at, 0)
        if state[i] == BLANK and how != WRITES:
            return report(L, B, me, Error.SHARED_UNWRITTEN, line, size, at, 0)
        if how & WRITES:
            state[i] = WRITTEN
    place = B[Block.SHARED] + at
    same = int(how == WRITES and load_bytes(place, size) == value)
    shadows = halves_at(B[Block.SHADOW], room >> 2, SHADOW_FIELDS)
    for word in range(at >> 2, (at + size + 3) >> 2):
        touch(L, B, T, shadows[word], how & WRITES, how & ATOMIC, line, SHARED, same)
    return place
