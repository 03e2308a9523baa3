"""Weak memory: what a block stores stays with it until a fence, and what it has read is stale.

One hash table for all blocks, of (word, block); see `Table`.
"""

from __future__ import annotations

from tests.ptx.compiled import fail, helper, load_bytes, rows_at, store_bytes
from tests.ptx.layout import TABLE_WORDS, Block, Error, Launch, Table, Thread


@helper
def find(L, B, T, word, make, line):  # type: ignore[no-untyped-def]
    """Return the place of a word of a block; -1: there is none, or no room (then it has failed)."""
    room = L[Launch.WEAK_ROOM]
    table = rows_at(L[Launch.WEAK], room, TABLE_WORDS)
    key = word * L[Launch.GRID] + B[Block.ID] + 1
    slot = ((key * 0x9E3779B97F4A7C1) >> 20) & (room - 1)
    while table[slot, Table.KEY]:
        if table[slot, Table.KEY] == key:
            return slot
        slot = (slot + 1) & (room - 1)
    if not make:
        return -1
    if L[Launch.WEAK_USED] * 2 >= room:
        fail(L, B, T[Thread.ID], Error.WATCH_FULL, line, 0, 0, 0)
        return -1
    L[Launch.WEAK_USED] += 1
    table[slot, Table.KEY] = key
    table[slot, Table.NEXT] = -2  # stands in no chain
    return slot


@helper
def publish(L, table, slot, word):  # type: ignore[no-untyped-def]
    """Let everybody see what a block has stored in a word."""
    value = table[slot, Table.VALUE]
    for k in range(4):
        if (table[slot, Table.MASK] >> k) & 1:
            store_bytes(word * 4 + k, value >> (8 * k), 1)
    table[slot, Table.MASK] = 0


@helper
def flush(L, B, thread):  # type: ignore[no-untyped-def]
    """Publish what lies before a fence of a thread; -1: all that the block has stored."""
    table = rows_at(L[Launch.WEAK], L[Launch.WEAK_ROOM], TABLE_WORDS)
    slot, kept = B[Block.WEAK_FIRST], -1
    while slot >= 0:
        after = table[slot, Table.NEXT]
        mine = thread < 0 or table[slot, Table.WRITER] == thread
        if mine or table[slot, Table.EPOCH] < B[Block.EPOCH]:
            publish(L, table, slot, (table[slot, Table.KEY] - 1) // L[Launch.GRID])
            table[slot, Table.NEXT] = -2
        else:
            table[slot, Table.NEXT] = kept
            kept = slot
        slot = after
    B[Block.WEAK_FIRST] = kept


@helper
def weak_word(L, B, T, word, line):  # type: ignore[no-untyped-def]
    """Return what a block sees in four bytes."""
    slot = find(L, B, T, word, True, line)
    if slot < 0:
        return 0
    table = rows_at(L[Launch.WEAK], L[Launch.WEAK_ROOM], TABLE_WORDS)
    if table[slot, Table.READ] != B[Block.GENERATION] + 1:
        table[slot, Table.READ] = B[Block.GENERATION] + 1
        table[slot, Table.SEEN] = load_bytes(word * 4, 4)
    value = table[slot, Table.SEEN]
    for k in range(4):
        if (table[slot, Table.MASK] >> k) & 1:
            byte = 255 << (8 * k)
            value = (value & ~byte) | (table[slot, Table.VALUE] & byte)
    return value


@helper
def weak_load(L, B, T, at, size, line):  # type: ignore[no-untyped-def]
    """Return what a thread reads."""
    first = weak_word(L, B, T, at >> 2, line)
    if size == 8:
        return first | (weak_word(L, B, T, (at >> 2) + 1, line) << 32)
    return (first >> (8 * (at & 3))) & ((1 << (8 * size)) - 1)


@helper
def weak_store(L, B, T, at, value, size, line):  # type: ignore[no-untyped-def]
    """Keep what a thread stores for its block."""
    table = rows_at(L[Launch.WEAK], L[Launch.WEAK_ROOM], TABLE_WORDS)
    for i in range(size):
        place = at + i
        slot = find(L, B, T, place >> 2, True, line)
        if slot < 0:
            return
        shift = 8 * (place & 3)
        byte = ((value >> (8 * i)) & 255) << shift
        table[slot, Table.VALUE] = (table[slot, Table.VALUE] & ~(255 << shift)) | byte
        table[slot, Table.MASK] |= 1 << (place & 3)
        table[slot, Table.WRITER] = T[Thread.ID]
        table[slot, Table.EPOCH] = B[Block.EPOCH]
        if table[slot, Table.NEXT] == -2:
            table[slot, Table.NEXT] = B[Block.WEAK_FIRST]
            B[Block.WEAK_FIRST] = slot


@helper
def weak_atomic(L, B, T, at, size):  # type: ignore[no-untyped-def]
    """An atomic works on what everybody sees, behind what its block has stored there."""
    table = rows_at(L[Launch.WEAK], L[Launch.WEAK_ROOM], TABLE_WORDS)
    for word in range(at >> 2, (at + size) >> 2):
        slot = find(L, B, T, word, False, 0)
        if slot >= 0:
            publish(L, table, slot, word)
            table[slot, Table.READ] = 0


@helper
def weak_fence(L, B, T):  # type: ignore[no-untyped-def]
    """A fence of the whole device."""
    flush(L, B, T[Thread.ID])
    B[Block.GENERATION] += 1
