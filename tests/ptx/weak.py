"""Weak memory: what a block stores stays with it until a fence, and what it has read is stale.

One hash table for all blocks, of (word, block); see `Table`. Words that were stored stand in
chains: one of each thread since the last barrier, which its fence publishes, and one of its block
before that, which the fence of any thread does. Where the table has no room, a store is seen at
once.
"""

from __future__ import annotations

from tests.ptx.compiled import helper, load_bytes, rows_at, store_bytes
from tests.ptx.layout import TABLE_WORDS, Block, Launch, Table, Thread

GROUP = 32  # words side by side
MOST_PROBES = 8


@helper
def find(L, B, word, make):  # type: ignore[no-untyped-def]
    """Return the place of a word of a block; -1: there is none, and no room for it either."""
    room = L[Launch.WEAK_ROOM]
    table = rows_at(L[Launch.WEAK], room, TABLE_WORDS)
    key = word * L[Launch.GRID] + B[Block.ID] + 1
    # Words side by side stand so here as well: most of the table is never touched.
    group = ((word // GROUP) * L[Launch.GRID] + B[Block.ID]) * 0x9E3779B97F4A7C1
    slot = ((group >> 20) * GROUP + word % GROUP) & (room - 1)
    for _ in range(MOST_PROBES):
        entry = table[slot]
        if entry[Table.LAUNCH] != L[Launch.NUMBER]:
            if not make:
                return -1
            entry[:] = 0
            entry[Table.KEY], entry[Table.LAUNCH] = key, L[Launch.NUMBER]
            return slot
        if entry[Table.KEY] == key:
            return slot
        slot = (slot + GROUP) & (room - 1)
    return -1


@helper
def publish(table, slot, word):  # type: ignore[no-untyped-def]
    """Let everybody see what a block has stored in a word."""
    value = table[slot, Table.VALUE]
    for k in range(4):
        if (table[slot, Table.MASK] >> k) & 1:
            store_bytes(word * 4 + k, value >> (8 * k), 1)
    table[slot, Table.MASK] = 0


@helper
def flush(L, first):  # type: ignore[no-untyped-def]
    """Let everybody see what stands in a chain, which is empty then."""
    table = rows_at(L[Launch.WEAK], L[Launch.WEAK_ROOM], Table.WORDS)
    place = first
    while place > 0:
        slot = place - 1
        publish(table, slot, (table[slot, Table.KEY] - 1) // L[Launch.GRID])
        place = table[slot, Table.NEXT]
        table[slot, Table.NEXT] = 0


@helper
def settle(L, B, T):  # type: ignore[no-untyped-def]
    """At a barrier: what threads have stored becomes what their block has."""
    table = rows_at(L[Launch.WEAK], L[Launch.WEAK_ROOM], Table.WORDS)
    for n in range(L[Launch.BLOCK]):
        first = T[n, Thread.STORED]
        if first:
            last = first - 1
            while table[last, Table.NEXT] > 0:
                last = table[last, Table.NEXT] - 1
            table[last, Table.NEXT] = B[Block.STORED] if B[Block.STORED] else -1
            B[Block.STORED] = first
            T[n, Thread.STORED] = 0


@helper
def weak_word(L, B, word):  # type: ignore[no-untyped-def]
    """Return what a block sees in four bytes; where the table is full, what all do."""
    slot = find(L, B, word, True)
    if slot < 0:
        return load_bytes(word * 4, 4)
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
def weak_load(L, B, at, size):  # type: ignore[no-untyped-def]
    """Return what a thread reads."""
    first = weak_word(L, B, at >> 2)
    if size == 8:
        return first | (weak_word(L, B, (at >> 2) + 1) << 32)
    return (first >> (8 * (at & 3))) & ((1 << (8 * size)) - 1)


@helper
def weak_store(L, B, T, at, value, size):  # type: ignore[no-untyped-def]
    """Keep what a thread stores for its block."""
    table = rows_at(L[Launch.WEAK], L[Launch.WEAK_ROOM], TABLE_WORDS)
    for i in range(size):
        place = at + i
        slot = find(L, B, place >> 2, True)
        if slot < 0:
            store_bytes(place, value >> (8 * i), 1)
            continue
        entry = table[slot]
        if not entry[Table.NEXT]:
            entry[Table.NEXT] = T[Thread.STORED] if T[Thread.STORED] else -1
            T[Thread.STORED] = slot + 1
            entry[Table.WRITER], entry[Table.EPOCH] = T[Thread.ID], B[Block.EPOCH]
        elif entry[Table.EPOCH] == B[Block.EPOCH] and entry[Table.WRITER] != T[Thread.ID]:
            # It stands in the chain of another thread, whose fence is not ours.
            publish(table, slot, place >> 2)
            store_bytes(place, value >> (8 * i), 1)
            entry[Table.READ] = 0
            continue
        shift = 8 * (place & 3)
        byte = ((value >> (8 * i)) & 255) << shift
        entry[Table.VALUE] = (entry[Table.VALUE] & ~(255 << shift)) | byte
        entry[Table.MASK] |= 1 << (place & 3)


@helper
def weak_atomic(L, B, at, size):  # type: ignore[no-untyped-def]
    """An atomic works on what everybody sees, behind what its block has stored there."""
    table = rows_at(L[Launch.WEAK], L[Launch.WEAK_ROOM], TABLE_WORDS)
    for word in range(at >> 2, (at + size) >> 2):
        slot = find(L, B, word, False)
        if slot >= 0:
            publish(table, slot, word)
            table[slot, Table.READ] = 0


@helper
def weak_fence(L, B, T):  # type: ignore[no-untyped-def]
    """A fence of the whole device."""
    flush(L, T[Thread.STORED])
    flush(L, B[Block.STORED])
    T[Thread.STORED] = B[Block.STORED] = 0
    B[Block.GENERATION] += 1
