"""Loops under a slot prefix cache: its arrays, the table of keys, the queue by age.

A kernel holds the lock of the slab while it works, and answers BUSY where somebody else does.
"""

from __future__ import annotations

import numpy as np

from jitalloc._intrinsics import fail, int32_rows, int64_rows, try_lock, unlock
from jitalloc._jit import counting, helper, kernel
from jitalloc.errors import BUSY, ENTRY_PINNED, NO_ENTRY
from jitalloc.slots.prefix_state import (
    CAPACITY,
    ENTRIES,
    ENTRIES_USED,
    ENTRY_COLUMNS,
    ENTRY_FOLLOWING,
    ENTRY_LENGTH,
    ENTRY_PINS,
    ENTRY_PREVIOUS,
    ENTRY_SLOT,
    ENTRY_VERSION,
    FREE_ENTRY,
    FREE_NODE,
    LATEST,
    MAX_TOKENS,
    NIL,
    NODE_COLUMNS,
    NODE_DEPTH,
    NODE_TOKEN,
    NODES,
    NODES_USED,
    OLDEST,
    PINNED_ENTRIES,
    PREFIX_HEADER_SLOTS,
    ROOT,
    TABLE_BITS,
)

LOW = 0xFFFFFFFF
HALF = np.uint64(32)
MASK = np.uint64(LOW)
# Odd factors of 32 bits: with keys cut in halves no product leaves 64 bits.
MIX_LOW, MIX_HIGH, MIX_LAST = np.uint64(0x9E3779B1), np.uint64(0x85EBCA77), np.uint64(0xC2B2AE3D)


@helper
def prefix_views(slab):
    """Return `(entries, nodes, table)`, views into the slab of a slot prefix cache."""
    n = slab[CAPACITY]
    nodes = PREFIX_HEADER_SLOTS + n * ENTRY_COLUMNS
    table = nodes + n * NODE_COLUMNS
    return (
        int64_rows(slab, PREFIX_HEADER_SLOTS, n, ENTRY_COLUMNS),
        int32_rows(slab, nodes, 2 * n, NODE_COLUMNS),
        int64_rows(slab, table, np.int64(1) << slab[TABLE_BITS], 2),
    )


@counting
def tokens_of(slab, entry):
    """Return the row of tokens of an entry."""
    records = slab[CAPACITY] * (ENTRY_COLUMNS + NODE_COLUMNS)
    first = PREFIX_HEADER_SLOTS + records + (np.int64(2) << slab[TABLE_BITS])
    width = slab[MAX_TOKENS]
    return slab[first:].view(np.int32)[entry * width : (entry + 1) * width]


# The table.


@helper
def table_key(node, token):
    """Return the key of the child of `node` whose edge begins with `token`."""
    return ((np.int64(node) + 1) << 32) | (np.int64(token) & LOW)


@helper
def slot_key(slab, slot):
    """Return the key of the entry of `slot`."""
    return table_key(2 * slab[CAPACITY], slot)


@helper
def table_home(table, key):
    """Return the bucket where `key` should lie."""
    mixed = (np.uint64(key & LOW) * MIX_LOW) ^ (np.uint64(key >> 32) * MIX_HIGH)
    mixed = ((mixed ^ (mixed >> HALF)) & MASK) * MIX_LAST
    return np.int64(mixed >> HALF) & (table.shape[0] - 1)


@helper
def table_place(table, key):
    """Return the bucket of `key`, or the empty one where it would go."""
    at = table_home(table, key)
    while table[at, 0] != key and table[at, 0] != 0:
        at = (at + 1) & (table.shape[0] - 1)
    return at


@helper
def table_get(table, key):
    """Return the value of `key`, or NIL."""
    at = table_place(table, key)
    return table[at, 1] if table[at, 0] == key else np.int64(NIL)


@helper
def table_put(table, key, value):
    """Set the value of `key`."""
    at = table_place(table, key)
    table[at, 0] = key
    table[at, 1] = value


@helper
def table_erase(table, key):
    """Take `key` out; what had to lie behind it moves up, so that no search meets a gap."""
    mask = table.shape[0] - 1
    hole = table_place(table, key)
    at = (hole + 1) & mask
    while table[at, 0] != 0:
        home = table_home(table, table[at, 0])
        if ((at - home) & mask) >= ((at - hole) & mask):
            table[hole, 0] = table[at, 0]
            table[hole, 1] = table[at, 1]
            hole = at
        at = (at + 1) & mask
    table[hole, 0] = 0
    table[hole, 1] = 0


# The queue of entries without pins, by their last use.


@helper
def queue_append(slab, entries, entry):
    """Put `entry` at the end of the queue that is evicted last."""
    last = slab[LATEST]
    entries[entry, ENTRY_PREVIOUS] = last
    entries[entry, ENTRY_FOLLOWING] = NIL
    if last == NIL:
        slab[OLDEST] = entry
    else:
        entries[last, ENTRY_FOLLOWING] = entry
    slab[LATEST] = entry


@helper
def queue_remove(slab, entries, entry):
    """Take `entry` out of the queue."""
    previous, following = entries[entry, ENTRY_PREVIOUS], entries[entry, ENTRY_FOLLOWING]
    if previous == NIL:
        slab[OLDEST] = following
    else:
        entries[previous, ENTRY_FOLLOWING] = following
    if following == NIL:
        slab[LATEST] = previous
    else:
        entries[following, ENTRY_PREVIOUS] = previous


# Entries.


@helper
def entry_show(entries, entry, out):
    """Write length, slot and version of `entry` to `out`."""
    out[0] = entries[entry, ENTRY_LENGTH]
    out[1] = entries[entry, ENTRY_SLOT]
    out[2] = entries[entry, ENTRY_VERSION]


@helper
def entry_find(slab, slot, version):
    """Return the entry of `slot` in this version, or a status word."""
    entries, _nodes, table = prefix_views(slab)
    entry = table_get(table, slot_key(slab, slot))
    if entry == NIL or entries[entry, ENTRY_VERSION] != version:
        return fail(NO_ENTRY, 0)
    return entry


@helper
def entry_pin(slab, entries, entry):
    """Pin `entry` once more; the first pin takes it out of the queue."""
    if entries[entry, ENTRY_PINS] == 0:
        queue_remove(slab, entries, entry)
        slab[PINNED_ENTRIES] += 1
    entries[entry, ENTRY_PINS] += 1


@kernel("int64(int64[::1], int64, int64[::1])")
def slot_table_look_cpu(slab, slot, out):
    """Mutates `out` where `slot` backs an entry, and then returns 1: its length, slot and version.
    Reads the table and the entry, requires three elements of `out`.
    """
    if not try_lock(slab):
        return fail(BUSY, 0)
    entries, _nodes, table = prefix_views(slab)
    entry = table_get(table, slot_key(slab, slot))
    if entry != NIL:
        entry_show(entries, entry, out)
    unlock(slab)
    return np.int64(entry != NIL)


@helper
def prefix_reset(slab):
    """Make the header say that there is no entry, and only the root for a node."""
    _entries, nodes, _table = prefix_views(slab)
    slab[ENTRIES] = 0
    slab[ENTRIES_USED] = 0
    slab[OLDEST] = NIL
    slab[LATEST] = NIL
    slab[FREE_ENTRY] = NIL
    slab[FREE_NODE] = NIL
    slab[NODES] = 1
    slab[NODES_USED] = 1
    for column in range(NODE_COLUMNS):
        nodes[ROOT, column] = NIL
    nodes[ROOT, NODE_DEPTH] = 0
    nodes[ROOT, NODE_TOKEN] = 0


@kernel("int64(int64[::1], int32[::1])")
def slot_table_clear_cpu(slab, slots):
    """Mutates the header, the table, the root, and `slots`: those that backed entries, by age.
    Reads the queue, requires room in `slots` for CAPACITY of them; fails where an entry has pins.
    """
    if not try_lock(slab):
        return fail(BUSY, 0)
    if slab[PINNED_ENTRIES] > 0:
        status = fail(ENTRY_PINNED, slab[PINNED_ENTRIES])
        unlock(slab)
        return status
    entries, _nodes, table = prefix_views(slab)
    # Which slots go.
    count = 0
    entry = slab[OLDEST]
    while entry != NIL:
        slots[count] = entries[entry, ENTRY_SLOT]
        count += 1
        entry = entries[entry, ENTRY_FOLLOWING]
    # The index as new; what stands in rows of entries is never read again.
    for at in range(table.shape[0]):
        table[at, 0] = 0
        table[at, 1] = 0
    prefix_reset(slab)
    unlock(slab)
    return np.int64(count)
