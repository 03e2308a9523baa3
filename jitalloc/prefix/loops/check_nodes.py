"""What must hold in a prefix cache, page by page and node by node.

Shared by the loops of the prefix cache. No field is believed before it has been looked at: a broken
one must neither lead out of an array nor round in a circle.
"""

from __future__ import annotations

import numpy as np

from jitalloc._intrinsics import bit, fail
from jitalloc._jit import helper
from jitalloc.errors import (
    BAD_CHILDREN,
    BAD_LINK,
    BAD_LOCKS,
    BAD_NODE,
    BAD_PREFIX_COUNT,
    BAD_PREFIX_HEADER,
    BAD_QUEUE,
    CACHED_FREE,
)
from jitalloc.pool.loops.pool import pool_views
from jitalloc.pool.state import FIRST_PAGE, STEP
from jitalloc.prefix.loops.nodes import (
    following_column,
    node_class,
    node_records,
    node_stamps,
    previous_column,
)
from jitalloc.prefix.state import (
    BY_LFU,
    BY_PRIORITY,
    BY_SLRU,
    CLOCK,
    EVICTED,
    EXPIRY_NOW,
    HIT_PAGES,
    INSERTED,
    LOOKUPS,
    MOST_USES,
    NODE_CHILD,
    NODE_END,
    NODE_LENGTH,
    NODE_LOCKS,
    NODE_STATE,
    NUM_CACHED,
    NUM_LOCKED,
    NUM_PINNED,
    NUM_PROTECTED,
    PAGES,
    PAGES_ASKED,
    PINS_SHIFT,
    POLICY,
    PREFIX_PAGE_SIZE,
    QUEUE_FOLLOWING,
    QUEUE_PREVIOUS,
    QUEUED,
    SIBLING_FOLLOWING,
    SIBLING_PREVIOUS,
    TOKENS_ASKED,
    TOP,
    UNCACHED,
    USES_SHIFT,
)


@helper
def is_node(prefix, page):
    """Return whether `page`, any number, is the first page of a node."""
    following_pages, previous_pages = following_column(prefix), previous_column(prefix)
    if page < 0 or page >= prefix[PAGES] or following_pages[page] == UNCACHED:
        return False
    end = np.int64(previous_pages[page])
    return end < -1 or (0 <= end < prefix[PAGES] and UNCACHED < following_pages[end] < 0)


@helper
def count_fault(pool, prefix):
    """Return the first header slot that is out of its range, or -1."""
    for slot in (CLOCK, LOOKUPS, TOKENS_ASKED, PAGES_ASKED, HIT_PAGES, EXPIRY_NOW):
        if prefix[slot] < 0:
            return slot
    gone = np.int64(0)
    for reason in range(3):
        if prefix[EVICTED + reason] < 0:
            return EVICTED + reason
        gone += prefix[EVICTED + reason]
    if prefix[INSERTED] - gone != prefix[NUM_CACHED]:
        return INSERTED
    if prefix[HIT_PAGES] > prefix[PAGES_ASKED]:
        return HIT_PAGES
    if prefix[PAGES_ASKED] > prefix[TOKENS_ASKED] // prefix[PREFIX_PAGE_SIZE]:
        return PAGES_ASKED
    if prefix[EXPIRY_NOW] > (pool[STEP] if prefix[POLICY] == BY_PRIORITY else 0):
        return EXPIRY_NOW
    if prefix[TOP] < -1 or prefix[TOP] >= prefix[PAGES]:
        return TOP
    return -1


@helper
def link_fault(pool, prefix):
    """Return the status word of the first page whose links contradict others, or 0."""
    _free_pages, refcount, _released = pool_views(pool)
    following_pages, previous_pages = following_column(prefix), previous_column(prefix)
    n = prefix[PAGES]
    for page in range(n):
        following, previous = np.int64(following_pages[page]), np.int64(previous_pages[page])
        if following == UNCACHED:
            continue
        if page < pool[FIRST_PAGE] or refcount[page] < 1:
            return fail(CACHED_FREE, page)
        if following >= n or ~following >= n or previous >= n or previous == -1:
            return fail(BAD_LINK, page)
        if following >= 0 and (
            following_pages[following] == UNCACHED or previous_pages[following] != page
        ):
            return fail(BAD_LINK, page)
        if previous >= 0 and (
            following_pages[previous] == UNCACHED or 0 <= following_pages[previous] != page
        ):
            return fail(BAD_LINK, page)
    return np.int64(0)


@helper
def node_fault(prefix, node, seen):
    """Mark the pages of `node` in `seen`; return the status word of the first fault, or 0."""
    nodes, following_pages = node_records(prefix), following_column(prefix)
    length, state = np.int64(nodes[node, NODE_LENGTH]), nodes[node, NODE_STATE]
    if length < 1 or length > prefix[PAGES] or state < 0:
        return fail(BAD_NODE, node)
    page = node
    for i in range(length):
        if seen[page >> 6] & bit(page) != np.uint64(0):
            return fail(BAD_LINK, page)
        seen[page >> 6] |= bit(page)
        last = page
        page = np.int64(following_pages[page])
        if (page < 0) != (i == length - 1):
            return fail(BAD_NODE, node)
    if page != ~node or nodes[node, NODE_END] != last:
        return fail(BAD_NODE, node)
    stamp = node_stamps(prefix)[node]
    uses, kind = (state >> USES_SHIFT) & MOST_USES, state & 255
    if stamp < length or stamp > prefix[CLOCK]:
        return fail(BAD_NODE, node)
    if prefix[POLICY] == BY_LFU or prefix[POLICY] == BY_SLRU:
        if kind > uses or (prefix[POLICY] == BY_SLRU and kind > 1):
            return fail(BAD_NODE, node)
    elif prefix[POLICY] != BY_PRIORITY and kind != 0:
        return fail(BAD_NODE, node)
    if nodes[node, NODE_LOCKS] < state >> PINS_SHIFT:
        return fail(BAD_LOCKS, node)
    if state & QUEUED == 0:
        if nodes[node, NODE_LOCKS] == 0 and nodes[node, NODE_CHILD] < 0:
            return fail(BAD_QUEUE, node)
        if nodes[node, QUEUE_FOLLOWING] != -1 or nodes[node, QUEUE_PREVIOUS] != -1:
            return fail(BAD_QUEUE, node)
    return np.int64(0)


@helper
def children_fault(prefix, node, left):
    """Walk the nodes behind `node` (-1: the roots), at most `left`.

    Returns how many there are, or the status word of the first fault.
    """
    nodes, previous_pages = node_records(prefix), previous_column(prefix)
    child = np.int64(nodes[node, NODE_CHILD]) if node >= 0 else prefix[TOP]
    previous = np.int64(-1)
    count, locks, pins = np.int64(0), np.int64(0), np.int64(0)
    while child != -1:
        if (
            count == left
            or not is_node(prefix, child)
            or nodes[child, SIBLING_PREVIOUS] != previous
        ):
            return fail(BAD_CHILDREN, max(node, np.int64(0)))
        if (
            previous_pages[child] >= 0
            if node < 0
            else previous_pages[child] != nodes[node, NODE_END]
        ):
            return fail(BAD_CHILDREN, max(node, np.int64(0)))
        count += 1
        locks += nodes[child, NODE_LOCKS]
        pins += nodes[child, NODE_STATE] >> PINS_SHIFT
        previous = child
        child = np.int64(nodes[child, SIBLING_FOLLOWING])
    if node >= 0 and (
        locks > nodes[node, NODE_LOCKS] or pins > nodes[node, NODE_STATE] >> PINS_SHIFT
    ):
        return fail(BAD_LOCKS, node)
    return count


@helper
def nodes_fault(prefix, seen):
    """Check every node and the counts of pages; return how many nodes there are, or the fault."""
    nodes = node_records(prefix)
    count, children = np.int64(0), np.int64(0)
    cached, locked, pinned, protected = np.int64(0), np.int64(0), np.int64(0), np.int64(0)
    for page in range(prefix[PAGES]):
        node = np.int64(page)
        if not is_node(prefix, node):
            continue
        status = node_fault(prefix, node, seen)
        if status < 0:
            return status
        count += 1
        cached += nodes[node, NODE_LENGTH]
        if nodes[node, NODE_STATE] >> PINS_SHIFT > 0:
            pinned += nodes[node, NODE_LENGTH]
        if nodes[node, NODE_LOCKS] > 0:
            locked += nodes[node, NODE_LENGTH]
        elif prefix[POLICY] == BY_SLRU:
            protected += node_class(prefix, node) * nodes[node, NODE_LENGTH]
    for page in range(-1, prefix[PAGES]):
        node = np.int64(page)
        if node < 0 or is_node(prefix, node):
            found = children_fault(prefix, node, count - children)
            if found < 0:
                return found
            children += found
    if children != count:
        return fail(BAD_PREFIX_COUNT, NUM_CACHED)
    for slot, right in ((NUM_CACHED, cached), (NUM_LOCKED, locked), (NUM_PINNED, pinned)):
        if prefix[slot] != right:
            return fail(BAD_PREFIX_HEADER, slot)
    if prefix[NUM_PROTECTED] != protected:
        return fail(BAD_PREFIX_HEADER, NUM_PROTECTED)
    following_pages = following_column(prefix)
    for page in range(prefix[PAGES]):
        if following_pages[page] != UNCACHED:
            cached -= 1
    return count if cached == 0 else fail(BAD_PREFIX_COUNT, NUM_CACHED)
