"""Paths from a root to a page: split and join of their nodes, locks, touches, the pages of a path.

Shared by the loops of the prefix cache. A path is named by its last page, `end`, at which a node
must end (`split_after` sees to it), or by the root itself.
"""

from __future__ import annotations

import numpy as np

from jitalloc._jit import helper
from jitalloc.prefix.loops.children import child_to_front
from jitalloc.prefix.loops.nodes import node_class, node_of, node_records, previous_column
from jitalloc.prefix.loops.queues import (
    expire,
    oldest_protected,
    push,
    put_back,
    put_in_order,
    queue_unlink,
    raise_priority,
)
from jitalloc.prefix.loops.split_join import join_nodes, may_join, split_node
from jitalloc.prefix.state import (
    BY_FIFO,
    BY_SLRU,
    CAPACITY,
    MOST_USES,
    NODE_END,
    NODE_LENGTH,
    NODE_LOCKS,
    NODE_STATE,
    NUM_LOCKED,
    NUM_PINNED,
    NUM_PROTECTED,
    PINS_SHIFT,
    POLICY,
    USES_SHIFT,
)

PIN = 1 << PINS_SHIFT
# Typed, for a bare number would make Numba compile a function once for each.
NO_PAGE = np.int64(-1)
UNUSED, USED = np.int64(0), np.int64(1)


@helper
def path_touch(prefix, end):
    """Push every page of a path, the deepest first; nodes that have become alike are joined."""
    previous_pages = previous_column(prefix)
    child = np.int64(-1)
    while end >= 0:
        node = node_of(prefix, end)
        push(prefix, node)
        if child >= 0 and may_join(prefix, node, child):
            join_nodes(prefix, node, child)
        child = node
        end = np.int64(previous_pages[node])


@helper
def path_join(prefix, end):
    """Join the nodes of a path that have become alike."""
    previous_pages = previous_column(prefix)
    child = np.int64(-1)
    while end >= 0:
        node = node_of(prefix, end)
        if child >= 0 and may_join(prefix, node, child):
            join_nodes(prefix, node, child)
        child = node
        end = np.int64(previous_pages[node])


@helper
def path_put_back(prefix, end):
    """Put the unlocked nodes of a path that are parked back to where they belong.

    For locks that are given back without a touch.
    """
    nodes, previous_pages = node_records(prefix), previous_column(prefix)
    while end >= 0:
        node = node_of(prefix, end)
        if nodes[node, NODE_LOCKS] == 0:
            put_in_order(prefix, node)
        end = np.int64(previous_pages[node])


@helper
def path_use(prefix, end):
    """Make every node of a path the most recently used of those that follow the same page."""
    previous_pages = previous_column(prefix)
    while end >= 0:
        node = node_of(prefix, end)
        child_to_front(prefix, node)
        end = np.int64(previous_pages[node])


@helper
def path_raise(prefix, end, priority, expiry):
    """Give every node of a path a priority and its expiry, where that is more than it has."""
    previous_pages = previous_column(prefix)
    while end >= 0:
        node = node_of(prefix, end)
        raise_priority(prefix, node, priority, expiry)
        end = np.int64(previous_pages[node])


@helper
def path_lock(prefix, end, stop, uses):
    """Lock every page of a path once more, up to the page `stop` (not locked; -1: all of it).

    `uses`: 1 where it counts as a use of the pages, else 0.
    """
    nodes, previous_pages = node_records(prefix), previous_column(prefix)
    while end >= 0 and end != stop:
        node = node_of(prefix, end)
        if nodes[node, NODE_LOCKS] == 0:
            prefix[NUM_LOCKED] += nodes[node, NODE_LENGTH]
            if prefix[POLICY] == BY_SLRU:
                prefix[NUM_PROTECTED] -= node_class(prefix, node) * nodes[node, NODE_LENGTH]
        nodes[node, NODE_LOCKS] += 1
        if uses != 0 and (nodes[node, NODE_STATE] >> USES_SHIFT) & 255 < MOST_USES:
            nodes[node, NODE_STATE] += 1 << USES_SHIFT
        end = np.int64(previous_pages[node])


@helper
def path_unlock(prefix, end):
    """Take one lock off every page of a path; `path_release` puts what it parked in order again."""
    nodes, previous_pages = node_records(prefix), previous_column(prefix)
    while end >= 0:
        node = node_of(prefix, end)
        nodes[node, NODE_LOCKS] -= 1
        if nodes[node, NODE_LOCKS] == 0:
            prefix[NUM_LOCKED] -= nodes[node, NODE_LENGTH]
            if prefix[POLICY] == BY_SLRU:
                prefix[NUM_PROTECTED] += node_class(prefix, node) * nodes[node, NODE_LENGTH]
            if prefix[POLICY] == BY_FIFO:  # under the others a touch follows
                put_back(prefix, node)
        end = np.int64(previous_pages[node])


@helper
def path_pin(prefix, end, sign):
    """Pin every page of a path once more (`sign` 1) or once less (`sign` -1)."""
    nodes, previous_pages = node_records(prefix), previous_column(prefix)
    while end >= 0:
        node = node_of(prefix, end)
        pins = nodes[node, NODE_STATE] >> PINS_SHIFT
        nodes[node, NODE_STATE] += sign * PIN
        if min(pins, pins + sign) == 0:
            prefix[NUM_PINNED] += sign * nodes[node, NODE_LENGTH]
        end = np.int64(previous_pages[node])


@helper
def demote(prefix):
    """Policy `slru`: let the oldest protected pages fall back until the rest fits the capacity."""
    if prefix[POLICY] != BY_SLRU:
        return
    nodes, previous_pages = node_records(prefix), previous_column(prefix)
    while prefix[NUM_PROTECTED] > prefix[CAPACITY]:
        node = oldest_protected(prefix)
        excess = prefix[NUM_PROTECTED] - prefix[CAPACITY]
        kept = nodes[node, NODE_LENGTH] - excess
        if kept > 0:
            tail = end = np.int64(nodes[node, NODE_END])
            for _ in range(excess):
                tail, end = end, np.int64(previous_pages[end])
            split_node(prefix, node, end, kept)
            node = tail
        queue_unlink(prefix, node)
        nodes[node, NODE_STATE] &= ~(MOST_USES << USES_SHIFT)
        push(prefix, node)


@helper
def path_release(prefix, end, now):
    """Give back the locks on a path: its pages have been used until `now`, the pool's step."""
    expire(prefix, now)
    path_unlock(prefix, end)
    if prefix[POLICY] != BY_FIFO:
        path_touch(prefix, end)
    demote(prefix)
