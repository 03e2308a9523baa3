"""Loops over a whole slot prefix cache: check.

A kernel holds the lock of the slab while it works, and answers BUSY where somebody else does.
"""

from __future__ import annotations

import numpy as np

from jitalloc._intrinsics import fail, try_lock, unlock
from jitalloc._jit import helper, kernel
from jitalloc.errors import BUSY
from jitalloc.slots.loops.slot_table import prefix_views, slot_key, table_get, table_key, tokens_of
from jitalloc.slots.loops.slot_tree import common_prefix
from jitalloc.slots.prefix_state import (
    BAD_ENTRY,
    BAD_ENTRY_STACK,
    BAD_ENTRY_TOKENS,
    BAD_NODE_NEWEST,
    BAD_NODE_STACK,
    BAD_SLOT_CHILDREN,
    BAD_SLOT_NODE,
    BAD_SLOT_PREFIX_HEADER,
    BAD_SLOT_QUEUE,
    BAD_TABLE,
    CAPACITY,
    CLOCK,
    ENTRIES,
    ENTRIES_USED,
    ENTRY_CLOCK,
    ENTRY_FOLLOWING,
    ENTRY_LENGTH,
    ENTRY_NODE,
    ENTRY_PINS,
    ENTRY_PREVIOUS,
    ENTRY_SLOT,
    ENTRY_VERSION,
    FREE_ENTRY,
    FREE_NODE,
    GONE,
    HITS,
    INSERTIONS,
    LATEST,
    LOOKUPS,
    MAX_TOKENS,
    NIL,
    NODE_CHILD,
    NODE_DEPTH,
    NODE_ENTRY,
    NODE_FOLLOWING,
    NODE_NEWEST,
    NODE_PARENT,
    NODE_PREVIOUS,
    NODE_TOKEN,
    NODES,
    NODES_USED,
    OLDEST,
    PINNED_ENTRIES,
    PREFIX_HEADER_SLOTS,
    ROOT,
    SLOT_EVICTIONS,
    TOKENS_ASKED,
    TOKENS_FOUND,
)


@helper
def prefix_header_fault(slab):
    """Return the header slot that contradicts the others, or -1."""
    if slab[ENTRIES] < 0 or slab[ENTRIES] > slab[CAPACITY]:
        return ENTRIES
    if slab[PINNED_ENTRIES] < 0 or slab[PINNED_ENTRIES] > slab[ENTRIES]:
        return PINNED_ENTRIES
    if slab[ENTRIES_USED] < slab[ENTRIES] or slab[ENTRIES_USED] > slab[CAPACITY]:
        return ENTRIES_USED
    if slab[NODES] < 1 or slab[NODES] > 2 * slab[CAPACITY]:
        return NODES
    if slab[NODES_USED] < slab[NODES] or slab[NODES_USED] > 2 * slab[CAPACITY]:
        return NODES_USED
    if slab[CLOCK] < 0:
        return CLOCK
    if slab[HITS] < 0 or slab[HITS] > slab[LOOKUPS]:
        return HITS
    if slab[TOKENS_FOUND] < slab[HITS] or slab[TOKENS_FOUND] > slab[TOKENS_ASKED]:
        return TOKENS_FOUND
    if slab[INSERTIONS] < slab[ENTRIES]:
        return INSERTIONS
    if slab[SLOT_EVICTIONS] < 0 or slab[SLOT_EVICTIONS] > slab[INSERTIONS] - slab[ENTRIES]:
        return SLOT_EVICTIONS
    for unused in range(SLOT_EVICTIONS + 1, PREFIX_HEADER_SLOTS):
        if slab[unused] != 0:
            return unused
    return -1


@helper
def stacks_fault(slab, entries, nodes):
    """Return the status word of the first fault in the stacks of what was given back, or 0."""
    entry = slab[FREE_ENTRY]
    for _ in range(slab[ENTRIES_USED] - slab[ENTRIES]):
        if entry < 0 or entry >= slab[ENTRIES_USED] or entries[entry, ENTRY_NODE] != GONE:
            return fail(BAD_ENTRY_STACK, max(entry, 0))
        entry = entries[entry, ENTRY_FOLLOWING]
    if entry != NIL:
        return fail(BAD_ENTRY_STACK, max(entry, 0))
    node = slab[FREE_NODE]
    for _ in range(slab[NODES_USED] - slab[NODES]):
        if node < 0 or node >= slab[NODES_USED] or nodes[node, NODE_PARENT] != GONE:
            return fail(BAD_NODE_STACK, max(node, 0))
        node = np.int64(nodes[node, NODE_FOLLOWING])
    if node != NIL:
        return fail(BAD_NODE_STACK, max(node, 0))
    return np.int64(0)


@helper
def entry_is_sound(slab, entries, nodes, entry):
    """Return whether the columns of a live entry are in their ranges, and its node knows it."""
    node = entries[entry, ENTRY_NODE]
    if node < 0 or node >= slab[NODES_USED] or nodes[node, NODE_ENTRY] != entry:
        return False
    if entries[entry, ENTRY_LENGTH] < 1 or entries[entry, ENTRY_LENGTH] > slab[MAX_TOKENS]:
        return False
    if nodes[node, NODE_PARENT] == GONE or nodes[node, NODE_DEPTH] != entries[entry, ENTRY_LENGTH]:
        return False
    if entries[entry, ENTRY_SLOT] < 0 or entries[entry, ENTRY_VERSION] < 0:
        return False
    if entries[entry, ENTRY_CLOCK] < 1 or entries[entry, ENTRY_CLOCK] > slab[CLOCK]:
        return False
    return entries[entry, ENTRY_PINS] >= 0


@helper
def entries_fault(slab, entries, nodes):
    """Return the status word of the first fault in the columns of entries, or 0."""
    live = np.int64(0)
    pinned = np.int64(0)
    for entry in range(slab[ENTRIES_USED]):
        if entries[entry, ENTRY_NODE] == GONE:
            continue
        if not entry_is_sound(slab, entries, nodes, entry):
            return fail(BAD_ENTRY, entry)
        live += 1
        if entries[entry, ENTRY_PINS] > 0:
            pinned += 1
    if live != slab[ENTRIES]:
        return fail(BAD_SLOT_PREFIX_HEADER, ENTRIES)
    if pinned != slab[PINNED_ENTRIES]:
        return fail(BAD_SLOT_PREFIX_HEADER, PINNED_ENTRIES)
    return np.int64(0)


@helper
def queue_fault(slab, entries):
    """Return the status word of the first fault in the queue, or 0."""
    previous, entry = np.int64(NIL), slab[OLDEST]
    clock = np.int64(0)
    for _ in range(slab[ENTRIES] - slab[PINNED_ENTRIES]):
        if entry < 0 or entry >= slab[ENTRIES_USED]:
            return fail(BAD_SLOT_QUEUE, max(previous, 0))
        if entries[entry, ENTRY_NODE] == GONE or entries[entry, ENTRY_PINS] != 0:
            return fail(BAD_SLOT_QUEUE, entry)
        if entries[entry, ENTRY_PREVIOUS] != previous or entries[entry, ENTRY_CLOCK] <= clock:
            return fail(BAD_SLOT_QUEUE, entry)
        clock = entries[entry, ENTRY_CLOCK]
        previous, entry = entry, entries[entry, ENTRY_FOLLOWING]
    if entry != NIL or slab[LATEST] != previous:
        return fail(BAD_SLOT_QUEUE, max(previous, 0))
    return np.int64(0)


@helper
def node_is_sound(slab, entries, nodes, node):
    """Return whether the columns of a live node are in their ranges, and lead to live ones."""
    for column in (NODE_FOLLOWING, NODE_PREVIOUS, NODE_CHILD):
        other = nodes[node, column]
        if other < NIL or other >= slab[NODES_USED] or other == ROOT:
            return False
        if other != NIL and nodes[other, NODE_PARENT] == GONE:
            return False
    entry, newest = nodes[node, NODE_ENTRY], nodes[node, NODE_NEWEST]
    if entry < NIL or entry >= slab[ENTRIES_USED]:
        return False
    if entry != NIL and entries[entry, ENTRY_NODE] != node:
        return False
    parent = nodes[node, NODE_PARENT]
    if node == ROOT:
        if parent != NIL or nodes[node, NODE_DEPTH] != 0 or entry != NIL:
            return False
    elif parent < 0 or parent >= slab[NODES_USED] or nodes[parent, NODE_PARENT] == GONE:
        return False
    elif nodes[parent, NODE_DEPTH] >= nodes[node, NODE_DEPTH]:
        return False
    if newest == NIL:
        return node == ROOT and slab[ENTRIES] == 0 and nodes[node, NODE_CHILD] == NIL
    if newest < 0 or newest >= slab[ENTRIES_USED] or entries[newest, ENTRY_NODE] == GONE:
        return False
    if entries[newest, ENTRY_LENGTH] < nodes[node, NODE_DEPTH]:
        return False
    child = nodes[node, NODE_CHILD]
    return node == ROOT or entry != NIL or (child != NIL and nodes[child, NODE_FOLLOWING] != NIL)


@helper
def nodes_fault(slab, entries, nodes):
    """Return the status word of the first fault in the columns of nodes, or 0."""
    live = np.int64(0)
    for node in range(slab[NODES_USED]):
        if nodes[node, NODE_PARENT] == GONE:
            continue
        if not node_is_sound(slab, entries, nodes, node):
            return fail(BAD_SLOT_NODE, node)
        live += 1
    return np.int64(0) if live == slab[NODES] else fail(BAD_SLOT_PREFIX_HEADER, NODES)


@helper
def children_fault(slab, entries, nodes):
    """Return the status word of the first fault in how nodes hang together, or 0."""
    left = slab[NODES] - 1  # children that are still to be met: no list can go in circles
    for node in range(slab[NODES_USED]):
        if nodes[node, NODE_PARENT] == GONE:
            continue
        entry, newest = np.int64(nodes[node, NODE_ENTRY]), np.int64(nodes[node, NODE_NEWEST])
        best = entries[entry, ENTRY_CLOCK] if entry != NIL else np.int64(0)
        previous, child = np.int64(NIL), np.int64(nodes[node, NODE_CHILD])
        clock = slab[CLOCK] + 1
        while child != NIL:
            if (
                left == 0
                or nodes[child, NODE_PARENT] != node
                or nodes[child, NODE_PREVIOUS] != previous
            ):
                return fail(BAD_SLOT_CHILDREN, node)
            left -= 1
            used = entries[nodes[child, NODE_NEWEST], ENTRY_CLOCK]
            if used >= clock:
                return fail(BAD_SLOT_CHILDREN, node)
            clock = used
            best = max(best, used)
            previous, child = child, np.int64(nodes[child, NODE_FOLLOWING])
        if newest != NIL and entries[newest, ENTRY_CLOCK] != best:
            return fail(BAD_NODE_NEWEST, node)
    return np.int64(0) if left == 0 else fail(BAD_SLOT_CHILDREN, ROOT)


@helper
def text_fault(slab, entries, nodes):
    """Return the status word of the first row of tokens that is not what its nodes say, or 0."""
    for node in range(slab[NODES_USED]):
        parent = np.int64(nodes[node, NODE_PARENT])
        if parent < 0:
            continue
        newest = np.int64(nodes[node, NODE_NEWEST])
        text, depth = tokens_of(slab, newest), np.int64(nodes[parent, NODE_DEPTH])
        if text[depth] != nodes[node, NODE_TOKEN]:
            return fail(BAD_ENTRY_TOKENS, newest)
        above = tokens_of(slab, nodes[parent, NODE_NEWEST])
        if common_prefix(text, above, depth) < depth:
            return fail(BAD_ENTRY_TOKENS, newest)
        entry = np.int64(nodes[node, NODE_ENTRY])
        if entry != NIL:
            length = entries[entry, ENTRY_LENGTH]
            if common_prefix(tokens_of(slab, entry), text, length) < length:
                return fail(BAD_ENTRY_TOKENS, entry)
    return np.int64(0)


@helper
def table_fault(slab, entries, nodes, table):
    """Return the status word of the first fault in the table, or 0."""
    keys = np.int64(0)
    for at in range(table.shape[0]):
        keys += np.int64(table[at, 0] != 0)
    if keys != slab[NODES] - 1 + slab[ENTRIES]:  # also: the searches below end
        return fail(BAD_TABLE, keys)
    for node in range(slab[NODES_USED]):
        parent = nodes[node, NODE_PARENT]
        if parent >= 0 and table_get(table, table_key(parent, nodes[node, NODE_TOKEN])) != node:
            return fail(BAD_TABLE, keys)
    for entry in range(slab[ENTRIES_USED]):
        if entries[entry, ENTRY_NODE] != GONE:
            if table_get(table, slot_key(slab, entries[entry, ENTRY_SLOT])) != entry:
                return fail(BAD_TABLE, keys)
    return np.int64(0)


@helper
def prefix_fault(slab):
    """Return the status word of the first broken invariant, or 0.

    What leads to rows or nodes is looked at before it is followed.
    """
    slot = prefix_header_fault(slab)
    if slot >= 0:
        return fail(BAD_SLOT_PREFIX_HEADER, slot)
    entries, nodes, table = prefix_views(slab)
    status = stacks_fault(slab, entries, nodes)
    if status == 0:
        status = entries_fault(slab, entries, nodes)
    if status == 0:
        status = queue_fault(slab, entries)
    if status == 0:
        status = nodes_fault(slab, entries, nodes)
    if status == 0:
        status = children_fault(slab, entries, nodes)
    if status == 0:
        status = text_fault(slab, entries, nodes)
    if status == 0:
        status = table_fault(slab, entries, nodes, table)
    return status


@kernel("int64(int64[::1])")
def slot_prefix_check_cpu(slab):
    """Mutates nothing; returns the first broken invariant, or 0.
    Reads the whole slab, requires that CAPACITY, MAX_TOKENS and TABLE_BITS are right.
    """
    if not try_lock(slab):
        return fail(BUSY, 0)
    status = prefix_fault(slab)
    unlock(slab)
    return status
