"""Loops of the radix tree in a slot prefix cache: search, and who hangs where.

A kernel holds the lock of the slab while it works, and answers BUSY where somebody else does.
"""

from __future__ import annotations

import numpy as np

from jitalloc._intrinsics import fail, try_lock, unlock
from jitalloc._jit import helper, kernel
from jitalloc.errors import BUSY
from jitalloc.slots.loops.slot_table import (
    entry_pin,
    entry_show,
    prefix_views,
    queue_append,
    queue_remove,
    table_erase,
    table_get,
    table_key,
    table_put,
    tokens_of,
)
from jitalloc.slots.prefix_state import (
    CLOCK,
    ENTRY_CLOCK,
    ENTRY_LENGTH,
    ENTRY_NODE,
    ENTRY_PINS,
    FREE_NODE,
    GONE,
    HITS,
    LOOKUPS,
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
    ROOT,
    TOKENS_ASKED,
    TOKENS_FOUND,
)

BLOCK = 64  # tokens compared at once


# Siblings, by the last use below them.


@helper
def siblings_remove(nodes, node):
    """Take `node` out of the children of its parent."""
    previous, following = nodes[node, NODE_PREVIOUS], nodes[node, NODE_FOLLOWING]
    if previous == NIL:
        nodes[nodes[node, NODE_PARENT], NODE_CHILD] = following
    else:
        nodes[previous, NODE_FOLLOWING] = following
    if following != NIL:
        nodes[following, NODE_PREVIOUS] = previous


@helper
def siblings_insert(nodes, node, previous, following):
    """Put `node` between two children of its parent (NIL: at that end)."""
    nodes[node, NODE_PREVIOUS] = previous
    nodes[node, NODE_FOLLOWING] = following
    if previous == NIL:
        nodes[nodes[node, NODE_PARENT], NODE_CHILD] = node
    else:
        nodes[previous, NODE_FOLLOWING] = node
    if following != NIL:
        nodes[following, NODE_PREVIOUS] = node


@helper
def siblings_sink(entries, nodes, node):
    """Move `node` behind the siblings that were used since its newest entry was."""
    clock = entries[nodes[node, NODE_NEWEST], ENTRY_CLOCK]
    previous, following = node, nodes[node, NODE_FOLLOWING]
    while following != NIL and entries[nodes[following, NODE_NEWEST], ENTRY_CLOCK] > clock:
        previous, following = following, nodes[following, NODE_FOLLOWING]
    if previous != node:
        siblings_remove(nodes, node)
        siblings_insert(nodes, node, previous, following)


# The tree.


@helper
def entry_use(slab, entries, nodes, entry):
    """Make `entry` the one used last, in the queue and on the way up to the root."""
    slab[CLOCK] += 1
    entries[entry, ENTRY_CLOCK] = slab[CLOCK]
    if entries[entry, ENTRY_PINS] == 0:
        queue_remove(slab, entries, entry)
        queue_append(slab, entries, entry)
    node = entries[entry, ENTRY_NODE]
    while node != ROOT:
        nodes[node, NODE_NEWEST] = entry
        if nodes[node, NODE_PREVIOUS] != NIL:
            siblings_remove(nodes, node)
            parent = nodes[node, NODE_PARENT]
            siblings_insert(nodes, node, NIL, nodes[parent, NODE_CHILD])
        node = np.int64(nodes[node, NODE_PARENT])
    nodes[ROOT, NODE_NEWEST] = entry


@helper
def common_prefix(one, two, n):
    """Return how many of the first `n` tokens are equal before the first that differ."""
    at = 0
    while at + BLOCK <= n:
        mine, other = one[at : at + BLOCK], two[at : at + BLOCK]
        different = np.int32(0)
        for j in range(BLOCK):  # no early way out, so it vectorises
            different |= mine[j] ^ other[j]
        if different != 0:
            break
        at += BLOCK
    while at < n and one[at] == two[at]:
        at += 1
    return at


@helper
def tree_search(slab, tokens):
    """Return `(node, length)`: the longest prefix in the tree, and the highest node below it.

    The way down looks at the first token of each edge alone. Had an edge on the way different
    tokens, then so has every entry below, and one comparison with any of them shows where: one
    contiguous row to read, however many nodes the way has.
    """
    _entries, nodes, table = prefix_views(slab)
    node = np.int64(ROOT)
    while nodes[node, NODE_DEPTH] < tokens.size:
        child = table_get(table, table_key(node, tokens[nodes[node, NODE_DEPTH]]))
        if child == NIL:
            break
        node = child
    if node == ROOT:
        return node, np.int64(0)
    most = min(np.int64(nodes[node, NODE_DEPTH]), tokens.size)
    length = np.int64(common_prefix(tokens, tokens_of(slab, nodes[node, NODE_NEWEST]), most))
    while node != ROOT and nodes[nodes[node, NODE_PARENT], NODE_DEPTH] >= length:
        node = np.int64(nodes[node, NODE_PARENT])
    return node, length


@helper
def node_take(slab, nodes, parent, depth, token):
    """Return a new node without children or entry, not yet among the children of `parent`."""
    node = slab[FREE_NODE]
    if node == NIL:
        node = slab[NODES_USED]
        slab[NODES_USED] += 1
    else:
        slab[FREE_NODE] = nodes[node, NODE_FOLLOWING]
    slab[NODES] += 1
    nodes[node, NODE_PARENT] = parent
    nodes[node, NODE_DEPTH] = depth
    nodes[node, NODE_TOKEN] = token
    nodes[node, NODE_ENTRY] = NIL
    nodes[node, NODE_CHILD] = NIL
    nodes[node, NODE_NEWEST] = NIL
    return node


@helper
def node_give(slab, nodes, node):
    """Give a node back that nothing leads to any more."""
    nodes[node, NODE_PARENT] = GONE
    nodes[node, NODE_FOLLOWING] = slab[FREE_NODE]
    slab[FREE_NODE] = node
    slab[NODES] -= 1


@helper
def node_replace(nodes, table, old, new):
    """Let `new` take the place of `old` in the tree, edge and siblings included."""
    parent = nodes[old, NODE_PARENT]
    nodes[new, NODE_PARENT] = parent
    nodes[new, NODE_TOKEN] = nodes[old, NODE_TOKEN]
    siblings_insert(nodes, new, nodes[old, NODE_PREVIOUS], nodes[old, NODE_FOLLOWING])
    table_put(table, table_key(parent, nodes[new, NODE_TOKEN]), new)


@helper
def node_adopt(nodes, table, parent, child):
    """Hang `child` below `parent`, before its other children."""
    siblings_insert(nodes, child, NIL, nodes[parent, NODE_CHILD])
    table_put(table, table_key(parent, nodes[child, NODE_TOKEN]), child)


@helper
def tree_hang(slab, node, length, entry):
    """Hang `entry` into the tree, given where `tree_search` found its tokens to end."""
    entries, nodes, table = prefix_views(slab)
    text = tokens_of(slab, entry)
    n = entries[entry, ENTRY_LENGTH]
    if nodes[node, NODE_DEPTH] > length:  # in the middle of an edge
        newest = nodes[node, NODE_NEWEST]
        middle = node_take(slab, nodes, nodes[node, NODE_PARENT], length, 0)
        nodes[middle, NODE_NEWEST] = newest
        node_replace(nodes, table, node, middle)
        nodes[node, NODE_PARENT] = middle
        nodes[node, NODE_TOKEN] = tokens_of(slab, newest)[length]
        node_adopt(nodes, table, middle, node)
        node = middle
    if n > length:
        leaf = node_take(slab, nodes, node, n, text[length])
        node_adopt(nodes, table, node, leaf)
        node = leaf
    nodes[node, NODE_ENTRY] = entry
    entries[entry, ENTRY_NODE] = node


@helper
def tree_unhang(slab, entry):
    """Take `entry` out of the tree, and the nodes that it alone needed."""
    entries, nodes, table = prefix_views(slab)
    node = entries[entry, ENTRY_NODE]
    nodes[node, NODE_ENTRY] = NIL
    if nodes[node, NODE_CHILD] == NIL:
        parent = np.int64(nodes[node, NODE_PARENT])
        siblings_remove(nodes, node)
        table_erase(table, table_key(parent, nodes[node, NODE_TOKEN]))
        node_give(slab, nodes, node)
        node = parent
    above = node
    while above != NIL and nodes[above, NODE_NEWEST] == entry:
        newest, child = np.int64(nodes[above, NODE_ENTRY]), nodes[above, NODE_CHILD]
        if child != NIL:
            other = np.int64(nodes[child, NODE_NEWEST])
            if newest == NIL or entries[other, ENTRY_CLOCK] > entries[newest, ENTRY_CLOCK]:
                newest = other
        nodes[above, NODE_NEWEST] = newest
        if above != ROOT:
            siblings_sink(entries, nodes, above)
        above = np.int64(nodes[above, NODE_PARENT])
    child = nodes[node, NODE_CHILD]
    if node == ROOT or nodes[node, NODE_ENTRY] != NIL or nodes[child, NODE_FOLLOWING] != NIL:
        return
    table_erase(table, table_key(node, nodes[child, NODE_TOKEN]))
    node_replace(nodes, table, node, child)
    node_give(slab, nodes, node)


@kernel("int64(int64[::1], int32[::1], int64, int64[::1])")
def slot_tree_find_cpu(slab, tokens, pins, out):
    """Mutates the order of use (queue, siblings), counters, pins where `pins` is 1, and `out`.
    Reads `tokens` and the tree, requires three elements of `out`: length, slot and version of the
    entry found go there. Returns how many tokens it shares; 0: none was found.
    """
    if not try_lock(slab):
        return fail(BUSY, 0)
    entries, nodes, _table = prefix_views(slab)
    node, length = tree_search(slab, tokens)
    slab[LOOKUPS] += 1
    slab[TOKENS_ASKED] += tokens.size
    if length > 0:
        entry = np.int64(nodes[node, NODE_NEWEST])
        if pins > 0:
            entry_pin(slab, entries, entry)
        entry_use(slab, entries, nodes, entry)
        entry_show(entries, entry, out)
        slab[HITS] += 1
        slab[TOKENS_FOUND] += length
    unlock(slab)
    return length
