"""Where nodes are split and joined, which shows in no result.

Shared by the loops of the prefix cache.
"""

from __future__ import annotations

import numpy as np

from jitalloc._jit import helper
from jitalloc.prefix.loops.children import hash_link, hash_unlink
from jitalloc.prefix.loops.expiries import expiry_link, expiry_links, expiry_unlink, is_armed
from jitalloc.prefix.loops.nodes import (
    following_column,
    node_expiries,
    node_of,
    node_records,
    node_stamps,
)
from jitalloc.prefix.loops.queues import queue_link, queue_unlink
from jitalloc.prefix.state import (
    BY_PRIORITY,
    EXPIRY_FOLLOWING,
    HIDDEN,
    NODE_CHILD,
    NODE_END,
    NODE_LENGTH,
    NODE_LOCKS,
    NODE_STATE,
    POLICY,
    QUEUE_FOLLOWING,
    QUEUE_PREVIOUS,
    QUEUED,
    SIBLING_FOLLOWING,
    SIBLING_PREVIOUS,
)


@helper
def split_node(prefix, node, end, kept):
    """Split `node` behind its page `end`, the `kept`-th of it."""
    nodes = node_records(prefix)
    following_pages = following_column(prefix)
    stamps = node_stamps(prefix)
    tail, last = np.int64(following_pages[end]), np.int64(nodes[node, NODE_END])
    nodes[tail, NODE_END] = last
    nodes[tail, NODE_LENGTH] = nodes[node, NODE_LENGTH] - kept
    nodes[tail, NODE_CHILD] = nodes[node, NODE_CHILD]
    nodes[tail, SIBLING_FOLLOWING] = -1
    nodes[tail, SIBLING_PREVIOUS] = -1
    nodes[tail, NODE_LOCKS] = nodes[node, NODE_LOCKS]
    nodes[tail, NODE_STATE] = nodes[node, NODE_STATE] & ~(QUEUED | HIDDEN)  # behind one
    nodes[tail, QUEUE_FOLLOWING] = -1
    nodes[tail, QUEUE_PREVIOUS] = -1
    stamps[tail] = stamps[node] - kept
    following_pages[last] = ~tail
    following_pages[end] = ~node
    nodes[node, NODE_END] = end
    nodes[node, NODE_LENGTH] = kept
    nodes[node, NODE_CHILD] = tail
    hash_link(prefix, tail)
    if nodes[node, NODE_STATE] & QUEUED != 0:
        queue_link(prefix, tail, node)
    if prefix[POLICY] == BY_PRIORITY:
        node_expiries(prefix)[tail] = node_expiries(prefix)[node]
        if is_armed(prefix, node):
            expiry_link(prefix, tail, node)


@helper
def split_after(prefix, end):
    """See to it that a node ends with the cached page `end` (O(1) where one does)."""
    following_pages = following_column(prefix)
    if end < 0 or following_pages[end] < 0:
        return
    left, page = np.int64(0), end
    while following_pages[page] >= 0:
        page = np.int64(following_pages[page])
        left += 1
    node = node_of(prefix, page)
    split_node(prefix, node, end, node_records(prefix)[node, NODE_LENGTH] - left)


@helper
def may_join(prefix, node, child):
    """Return whether the node `child` can become the tail of `node`, from which it follows."""
    nodes, stamps = node_records(prefix), node_stamps(prefix)
    if (
        nodes[node, NODE_STATE] != nodes[child, NODE_STATE]
        or nodes[child, NODE_STATE] & HIDDEN != 0  # which only the first page of a node can be
        or nodes[node, NODE_LOCKS] != nodes[child, NODE_LOCKS]
        or nodes[node, NODE_CHILD] != child
        or nodes[child, SIBLING_FOLLOWING] >= 0
        or stamps[child] != stamps[node] - nodes[node, NODE_LENGTH]
    ):
        return False
    if prefix[POLICY] != BY_PRIORITY:
        return True
    expiries = node_expiries(prefix)
    return expiries[node] == expiries[child] and (
        not is_armed(prefix, child) or expiry_links(prefix)[child, EXPIRY_FOLLOWING] == node
    )


@helper
def join_nodes(prefix, node, child):
    """Make the node `child` the tail of `node`; both are queued or both are not."""
    nodes, following_pages = node_records(prefix), following_column(prefix)
    hash_unlink(prefix, child)
    queue_unlink(prefix, child)
    expiry_unlink(prefix, child)
    last = np.int64(nodes[child, NODE_END])
    following_pages[nodes[node, NODE_END]] = child
    following_pages[last] = ~node
    nodes[node, NODE_END] = last
    nodes[node, NODE_LENGTH] += nodes[child, NODE_LENGTH]
    nodes[node, NODE_CHILD] = nodes[child, NODE_CHILD]
