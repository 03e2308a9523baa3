"""Loops that change a slot prefix cache: insert, evict, remove, pin, release.

A kernel holds the lock of the slab while it works, and answers BUSY where somebody else does.
"""

from __future__ import annotations

import numpy as np

from jitalloc._intrinsics import fail, try_lock, unlock
from jitalloc._jit import helper, kernel
from jitalloc.errors import (
    ALL_PINNED,
    BUSY,
    ENTRY_NOT_PINNED,
    ENTRY_PINNED,
    SLOT_TAKEN,
)
from jitalloc.slots.loops.slot_table import (
    entry_find,
    entry_pin,
    entry_show,
    prefix_views,
    queue_append,
    queue_remove,
    slot_key,
    table_erase,
    table_get,
    table_put,
    tokens_of,
)
from jitalloc.slots.loops.slot_tree import entry_use, tree_hang, tree_search, tree_unhang
from jitalloc.slots.prefix_state import (
    CAPACITY,
    ENTRIES,
    ENTRIES_USED,
    ENTRY_FOLLOWING,
    ENTRY_LENGTH,
    ENTRY_NODE,
    ENTRY_PINS,
    ENTRY_SLOT,
    ENTRY_VERSION,
    FREE_ENTRY,
    GONE,
    INSERTIONS,
    NIL,
    NODE_DEPTH,
    NODE_ENTRY,
    OLDEST,
    PINNED_ENTRIES,
    SLOT_EVICTIONS,
)


@helper
def entry_drop(slab, entry, out):
    """Forget an entry without pins, and write to `out` what it was."""
    entries, _nodes, table = prefix_views(slab)
    entry_show(entries, entry, out)
    queue_remove(slab, entries, entry)
    tree_unhang(slab, entry)
    table_erase(table, slot_key(slab, entries[entry, ENTRY_SLOT]))
    entries[entry, ENTRY_NODE] = GONE
    entries[entry, ENTRY_FOLLOWING] = slab[FREE_ENTRY]
    slab[FREE_ENTRY] = entry
    slab[ENTRIES] -= 1


@helper
def entry_make(slab, tokens, slot, version):
    """Return a new entry, not yet in the tree."""
    entries, _nodes, table = prefix_views(slab)
    entry = slab[FREE_ENTRY]
    if entry == NIL:
        entry = slab[ENTRIES_USED]
        slab[ENTRIES_USED] += 1
    else:
        slab[FREE_ENTRY] = entries[entry, ENTRY_FOLLOWING]
    slab[ENTRIES] += 1
    entries[entry, ENTRY_SLOT] = slot
    entries[entry, ENTRY_VERSION] = version
    entries[entry, ENTRY_LENGTH] = tokens.size
    entries[entry, ENTRY_PINS] = 0
    text = tokens_of(slab, entry)[: tokens.size]
    for i in range(tokens.size):
        text[i] = tokens[i]
    table_put(table, slot_key(slab, slot), entry)
    queue_append(slab, entries, entry)
    return entry


@helper
def entry_renew(slab, entry, slot, version, out):
    """Let an entry stand for another slot; return 1 where its old slot backs nothing now."""
    entries, nodes, table = prefix_views(slab)
    entry_show(entries, entry, out)
    old = entries[entry, ENTRY_SLOT]
    if old != slot or entries[entry, ENTRY_VERSION] != version:
        if entries[entry, ENTRY_PINS] > 0:
            return fail(ENTRY_PINNED, 0)
        if old != slot:
            if table_get(table, slot_key(slab, slot)) != NIL:
                return fail(SLOT_TAKEN, 0)
            table_erase(table, slot_key(slab, old))
            table_put(table, slot_key(slab, slot), entry)
            entries[entry, ENTRY_SLOT] = slot
        entries[entry, ENTRY_VERSION] = version
    entry_use(slab, entries, nodes, entry)
    return np.int64(old != slot)


@helper
def entry_insert(slab, tokens, slot, version, out):
    """Keep `tokens` as an entry; return 1 where `out` says which one gave way, 0, or a status."""
    entries, nodes, table = prefix_views(slab)
    node, length = tree_search(slab, tokens)
    if length == tokens.size and nodes[node, NODE_DEPTH] == length:
        if nodes[node, NODE_ENTRY] != NIL:
            return entry_renew(slab, np.int64(nodes[node, NODE_ENTRY]), slot, version, out)
    if table_get(table, slot_key(slab, slot)) != NIL:
        return fail(SLOT_TAKEN, 0)
    gone = np.int64(0)
    if slab[ENTRIES] == slab[CAPACITY]:
        if slab[OLDEST] == NIL:
            return fail(ALL_PINNED, 0)
        entry_drop(slab, slab[OLDEST], out)
        slab[SLOT_EVICTIONS] += 1
        gone = np.int64(1)
        node, length = tree_search(slab, tokens)  # the tree is another one now
    entry = entry_make(slab, tokens, slot, version)
    tree_hang(slab, node, length, entry)
    entry_use(slab, entries, nodes, entry)
    return gone


@kernel("int64(int64[::1], int32[::1], int64, int64, int64[::1])")
def slot_entries_insert_cpu(slab, tokens, slot, version, out):
    """Mutates the slab, by one entry, which is new, renewed, or takes the place of that in `out`.
    Reads `tokens`, requires 1 to MAX_TOKENS of them and three elements of `out`. Fails where `slot`
    backs an entry of other tokens, or pins stand in the way. Returns 1 where `out` lost its slot.
    """
    if not try_lock(slab):
        return fail(BUSY, 0)
    status = entry_insert(slab, tokens, slot, version, out)
    if status >= 0:
        slab[INSERTIONS] += 1
    unlock(slab)
    return status


@kernel("int64(int64[::1], int64[::1])")
def slot_entries_evict_cpu(slab, out):
    """Mutates the slab, which loses the entry used longest ago, and `out`, which says what it was.
    Reads the queue, requires three elements of `out`. Returns 0 where no entry is without pins.
    """
    if not try_lock(slab):
        return fail(BUSY, 0)
    status = np.int64(0)
    if slab[OLDEST] != NIL:
        entry_drop(slab, slab[OLDEST], out)
        slab[SLOT_EVICTIONS] += 1
        status = np.int64(1)
    unlock(slab)
    return status


@kernel("int64(int64[::1], int64, int64, int64[::1])")
def slot_entries_remove_cpu(slab, slot, version, out):
    """Mutates the slab, which loses the entry of `slot`, and `out`, which says what it was.
    Reads the table, requires three elements of `out`; fails where `slot` backs no entry in this
    `version`, or one with pins.
    """
    if not try_lock(slab):
        return fail(BUSY, 0)
    entries, _nodes, _table = prefix_views(slab)
    entry = entry_find(slab, slot, version)
    if entry >= 0 and entries[entry, ENTRY_PINS] > 0:
        entry = fail(ENTRY_PINNED, 0)
    if entry >= 0:
        entry_drop(slab, entry, out)
    unlock(slab)
    return min(entry, np.int64(0))


@kernel("int64(int64[::1], int64, int64)")
def slot_entries_pin_cpu(slab, slot, version):
    """Mutates the pins of the entry of `slot`; with its first it leaves the queue.
    Reads the table, requires nothing; fails where `slot` backs no entry in this `version`.
    """
    if not try_lock(slab):
        return fail(BUSY, 0)
    entries, _nodes, _table = prefix_views(slab)
    entry = entry_find(slab, slot, version)
    if entry >= 0:
        entry_pin(slab, entries, entry)
    unlock(slab)
    return min(entry, np.int64(0))


@kernel("int64(int64[::1], int64, int64)")
def slot_entries_release_cpu(slab, slot, version):
    """Mutates the pins of the entry of `slot`, and the order of use: it is the one used last.
    Reads the table, requires nothing; fails where `slot` backs no entry in this `version`, or one
    without pins.
    """
    if not try_lock(slab):
        return fail(BUSY, 0)
    entries, nodes, _table = prefix_views(slab)
    entry = entry_find(slab, slot, version)
    if entry >= 0 and entries[entry, ENTRY_PINS] == 0:
        entry = fail(ENTRY_NOT_PINNED, 0)
    if entry >= 0:
        entries[entry, ENTRY_PINS] -= 1
        if entries[entry, ENTRY_PINS] == 0:
            slab[PINNED_ENTRIES] -= 1
            queue_append(slab, entries, entry)
        entry_use(slab, entries, nodes, entry)
    unlock(slab)
    return min(entry, np.int64(0))
