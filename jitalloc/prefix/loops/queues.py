"""The order in which nodes give way: queues by class, and what expires.

Shared by the loops of the prefix cache. Locking a node leaves it in its queue; an eviction that
meets it there takes it out (it is *parked*), and it comes back when it is pushed again, or when
its last lock or child goes.
"""

from __future__ import annotations

import numpy as np

from jitalloc._intrinsics import int32_rows, trailing_zeros
from jitalloc._jit import counting, helper
from jitalloc.prefix.loops.expiries import arm, expiry_due
from jitalloc.prefix.loops.nodes import (
    FIRST,
    LAST,
    node_class,
    node_expiries,
    node_records,
    node_stamps,
)
from jitalloc.prefix.state import (
    BY_LFU,
    BY_MRU,
    BY_PRIORITY,
    BY_SLRU,
    CLOCK,
    DEFAULT,
    FILLED_AT,
    NEVER,
    NODE_CHILD,
    NODE_LENGTH,
    NODE_LOCKS,
    NODE_STATE,
    NUM_PROTECTED,
    POLICY,
    QUEUE_ENDS_AT,
    QUEUE_FOLLOWING,
    QUEUE_PREVIOUS,
    QUEUED,
    QUEUES,
    USES_SHIFT,
)


@counting
def queue_ends(prefix):
    """Return the first (row FIRST) and the last node (row LAST) of each queue."""
    return int32_rows(prefix, QUEUE_ENDS_AT, 2, QUEUES)


@helper
def queue_link(prefix, node, following):
    """Put `node` into the queue of its class, before the node `following`; -1: at the end."""
    nodes, ends = node_records(prefix), queue_ends(prefix)
    queue = node_class(prefix, node)
    previous = np.int64(ends[LAST, queue] if following < 0 else nodes[following, QUEUE_PREVIOUS])
    nodes[node, QUEUE_PREVIOUS] = previous
    nodes[node, QUEUE_FOLLOWING] = following
    if previous >= 0:
        nodes[previous, QUEUE_FOLLOWING] = node
    else:
        ends[FIRST, queue] = node
        prefix[FILLED_AT + (queue >> 6)] |= np.int64(1) << (queue & 63)
    if following >= 0:
        nodes[following, QUEUE_PREVIOUS] = node
    else:
        ends[LAST, queue] = node
    nodes[node, NODE_STATE] |= QUEUED


@helper
def queue_unlink(prefix, node):
    """Take `node` out of its queue, where it is in one."""
    nodes, ends = node_records(prefix), queue_ends(prefix)
    if nodes[node, NODE_STATE] & QUEUED == 0:
        return
    queue = node_class(prefix, node)
    previous = np.int64(nodes[node, QUEUE_PREVIOUS])
    following = np.int64(nodes[node, QUEUE_FOLLOWING])
    if previous >= 0:
        nodes[previous, QUEUE_FOLLOWING] = following
    else:
        ends[FIRST, queue] = following
    if following >= 0:
        nodes[following, QUEUE_PREVIOUS] = previous
    else:
        ends[LAST, queue] = previous
    if previous < 0 and following < 0:
        prefix[FILLED_AT + (queue >> 6)] &= ~(np.int64(1) << (queue & 63))
    nodes[node, QUEUE_FOLLOWING] = -1
    nodes[node, QUEUE_PREVIOUS] = -1
    nodes[node, NODE_STATE] &= ~QUEUED


@helper
def set_class(prefix, node, new):
    """Give `node`, which must be in no queue, the class `new`."""
    nodes = node_records(prefix)
    if prefix[POLICY] == BY_SLRU and nodes[node, NODE_LOCKS] == 0:
        prefix[NUM_PROTECTED] += (new - node_class(prefix, node)) * nodes[node, NODE_LENGTH]
    nodes[node, NODE_STATE] = (nodes[node, NODE_STATE] & ~255) | new


@helper
def push(prefix, node):
    """Put `node` at the end of the queue that its class now is, with new stamps."""
    nodes = node_records(prefix)
    queue_unlink(prefix, node)
    policy = prefix[POLICY]
    uses = (nodes[node, NODE_STATE] >> USES_SHIFT) & 255
    if policy == BY_LFU:
        set_class(prefix, node, uses)
    elif policy == BY_SLRU:
        set_class(prefix, node, min(uses, 1))
    prefix[CLOCK] += nodes[node, NODE_LENGTH]
    node_stamps(prefix)[node] = prefix[CLOCK]
    queue_link(prefix, node, np.int64(-1))


@helper
def put_back(prefix, node):
    """Put `node` back to where its stamp belongs, if it can be evicted and is parked."""
    nodes = node_records(prefix)
    if nodes[node, NODE_LOCKS] == 0 and nodes[node, NODE_CHILD] < 0:
        put_in_order(prefix, node)


@helper
def put_in_order(prefix, node):
    """Put `node`, if it is parked, into its queue where its stamp belongs.

    The scan begins at the end that evictions take from, for what stood there when the node was
    parked has mostly gone.
    """
    nodes, ends = node_records(prefix), queue_ends(prefix)
    if nodes[node, NODE_STATE] & QUEUED != 0:
        return
    stamps = node_stamps(prefix)
    queue = node_class(prefix, node)
    if prefix[POLICY] == BY_MRU:
        following = np.int64(-1)
        other = np.int64(ends[LAST, queue])
        while other >= 0 and stamps[other] > stamps[node]:
            following = other
            other = np.int64(nodes[other, QUEUE_PREVIOUS])
    else:
        following = np.int64(ends[FIRST, queue])
        while following >= 0 and stamps[following] < stamps[node]:
            following = np.int64(nodes[following, QUEUE_FOLLOWING])
    queue_link(prefix, node, following)


@helper
def first_in_line(prefix, queue):
    """Return the node that goes first of those in the queues from `queue` on, or -1."""
    ends = queue_ends(prefix)
    side = LAST if prefix[POLICY] == BY_MRU else FIRST
    below = (np.int64(1) << (queue & 63)) - 1  # queues of the first word that are left out
    for word in range(queue >> 6, QUEUES // 64):
        bits = prefix[FILLED_AT + word] & ~below
        below = np.int64(0)
        if bits != 0:
            return np.int64(ends[side, word * 64 + trailing_zeros(np.uint64(bits))])
    return np.int64(-1)


@helper
def next_in_line(prefix, node):
    """Return the node that goes next after the queued `node`, or -1."""
    field = QUEUE_PREVIOUS if prefix[POLICY] == BY_MRU else QUEUE_FOLLOWING
    following = np.int64(node_records(prefix)[node, field])
    return following if following >= 0 else first_in_line(prefix, node_class(prefix, node) + 1)


@helper
def goes_before(prefix, node, other):
    """Return whether `node` goes before `other`, both being queued; -1: there is no other."""
    if other < 0:
        return True
    mine, theirs = node_class(prefix, node), node_class(prefix, other)
    if mine != theirs:
        return mine < theirs
    stamps = node_stamps(prefix)
    return (stamps[node] < stamps[other]) != (prefix[POLICY] == BY_MRU)


@helper
def next_victim(prefix):
    """Return the node that gives way next, parking those that cannot; there must be one."""
    nodes = node_records(prefix)
    while True:
        node = first_in_line(prefix, np.int64(0))
        if nodes[node, NODE_LOCKS] == 0 and nodes[node, NODE_CHILD] < 0:
            return node
        queue_unlink(prefix, node)


@helper
def oldest_protected(prefix):
    """Return the unlocked node of queue 1 with the smallest stamp; park locked ones before it."""
    ends = queue_ends(prefix)
    node = np.int64(ends[FIRST, 1])
    while node >= 0 and node_records(prefix)[node, NODE_LOCKS] > 0:
        queue_unlink(prefix, node)
        node = np.int64(ends[FIRST, 1])
    return node


@helper
def raise_priority(prefix, node, priority, expiry):
    """Give `node` a priority and its expiry, where that is more than it has."""
    own = node_class(prefix, node)
    if priority > own or (priority == own and expiry > node_expiries(prefix)[node]):
        queue_unlink(prefix, node)
        set_class(prefix, node, priority)
        arm(prefix, node, expiry)


@helper
def expire(prefix, now):
    """Let every priority that ends at or before `now` fall back to the default."""
    if prefix[POLICY] != BY_PRIORITY:
        return
    node = expiry_due(prefix, now)
    while node >= 0:
        arm(prefix, node, np.int64(NEVER))
        queue_unlink(prefix, node)
        set_class(prefix, node, prefix[DEFAULT])
        push(prefix, node)
        node = expiry_due(prefix, now)
