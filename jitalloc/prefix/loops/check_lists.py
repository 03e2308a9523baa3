"""What must hold in the lists of a prefix cache: hash table, queues, expiries.

Shared by the loops of the prefix cache; `check_nodes.py` comes first.
"""

from __future__ import annotations

import numpy as np

from jitalloc._intrinsics import fail
from jitalloc._jit import helper
from jitalloc.errors import (
    BAD_BUCKET,
    BAD_EXPIRY,
    BAD_PREFIX_COUNT,
    BAD_PREFIX_HEADER,
    BAD_QUEUE,
)
from jitalloc.prefix.loops.check_nodes import count_fault, is_node, link_fault, nodes_fault
from jitalloc.prefix.loops.children import bucket_column, page_hash
from jitalloc.prefix.loops.expiries import expiry_ends, expiry_links, expiry_list, is_armed
from jitalloc.prefix.loops.nodes import (
    FIRST,
    LAST,
    node_class,
    node_expiries,
    node_records,
    node_stamps,
    previous_column,
    token_column,
)
from jitalloc.prefix.loops.queues import queue_ends
from jitalloc.prefix.state import (
    BUCKET_MASK,
    BUCKETS_AT,
    BY_PRIORITY,
    CHAIN_FOLLOWING,
    CHAIN_PREVIOUS,
    EXPIRY_FOLLOWING,
    EXPIRY_LISTS,
    EXPIRY_NOW,
    EXPIRY_PREVIOUS,
    FILLED_AT,
    NEVER,
    NODE_LENGTH,
    NODE_STATE,
    PAGES,
    POLICY,
    PREFIX_PAGE_SIZE,
    QUEUE_FOLLOWING,
    QUEUE_PREVIOUS,
    QUEUED,
    QUEUES,
)


@helper
def bucket_fault(prefix, count):
    """Check the hash table, which must hold `count` nodes; return 0 or the fault."""
    nodes, previous_pages = node_records(prefix), previous_column(prefix)
    buckets, tokens, size = bucket_column(prefix), token_column(prefix), prefix[PREFIX_PAGE_SIZE]
    for at in range(buckets.size):
        node, previous = np.int64(buckets[at]), np.int64(~at)
        while node != -1:
            if count == 0 or not is_node(prefix, node):
                return fail(BAD_BUCKET, at)
            code = page_hash(prefix, np.int64(previous_pages[node]), tokens, node * size)
            if nodes[node, CHAIN_PREVIOUS] != previous or code & prefix[BUCKET_MASK] != at:
                return fail(BAD_BUCKET, at)
            count -= 1
            previous = node
            node = np.int64(nodes[node, CHAIN_FOLLOWING])
    return np.int64(0) if count == 0 else fail(BAD_PREFIX_COUNT, BUCKETS_AT)


@helper
def queue_fault(prefix):
    """Check every queue; return 0 or the fault."""
    nodes, ends, stamps = node_records(prefix), queue_ends(prefix), node_stamps(prefix)
    count = np.int64(0)
    for page in range(prefix[PAGES]):
        if is_node(prefix, np.int64(page)) and nodes[page, NODE_STATE] & QUEUED != 0:
            count += 1
    for queue in range(QUEUES):
        node, previous = np.int64(ends[FIRST, queue]), np.int64(-1)
        filled = (prefix[FILLED_AT + (queue >> 6)] >> (queue & 63)) & 1
        if (node != -1) != (filled == 1):
            return fail(BAD_QUEUE, max(node, np.int64(0)))
        while node != -1:
            if count == 0 or not is_node(prefix, node) or nodes[node, NODE_STATE] & QUEUED == 0:
                return fail(BAD_QUEUE, max(node, np.int64(0)))
            if node_class(prefix, node) != queue or nodes[node, QUEUE_PREVIOUS] != previous:
                return fail(BAD_QUEUE, node)
            if previous >= 0 and stamps[node] - nodes[node, NODE_LENGTH] < stamps[previous]:
                return fail(BAD_QUEUE, node)
            count -= 1
            previous = node
            node = np.int64(nodes[node, QUEUE_FOLLOWING])
        if ends[LAST, queue] != previous:
            return fail(BAD_QUEUE, max(previous, np.int64(0)))
    return np.int64(0) if count == 0 else fail(BAD_PREFIX_COUNT, FILLED_AT)


@helper
def expiry_fault(prefix):
    """Check every list of expiries; return 0 or the fault."""
    ends, links = expiry_ends(prefix), expiry_links(prefix)
    count = np.int64(0)
    if prefix[POLICY] == BY_PRIORITY:
        expiries = node_expiries(prefix)
        for page in range(prefix[PAGES]):
            if is_node(prefix, np.int64(page)):
                if expiries[page] < prefix[EXPIRY_NOW] or expiries[page] > NEVER:
                    return fail(BAD_EXPIRY, page)
                count += is_armed(prefix, np.int64(page))
    for at in range(EXPIRY_LISTS):
        node, previous = np.int64(ends[FIRST, at]), np.int64(-1)
        while node != -1:
            if count == 0 or not is_node(prefix, node) or not is_armed(prefix, node):
                return fail(BAD_EXPIRY, max(node, np.int64(0)))
            if (
                links[node, EXPIRY_PREVIOUS] != previous
                or expiry_list(prefix, node_expiries(prefix)[node]) != at
            ):
                return fail(BAD_EXPIRY, node)
            count -= 1
            previous = node
            node = np.int64(links[node, EXPIRY_FOLLOWING])
        if ends[LAST, at] != previous:
            return fail(BAD_EXPIRY, max(previous, np.int64(0)))
    return np.int64(0) if count == 0 else fail(BAD_PREFIX_COUNT, EXPIRY_NOW)


@helper
def prefix_fault(pool, prefix, seen):
    """Return the status word of the first broken invariant, or 0."""
    slot = count_fault(pool, prefix)
    if slot >= 0:
        return fail(BAD_PREFIX_HEADER, slot)
    status = link_fault(pool, prefix)
    if status == 0:
        status = nodes_fault(prefix, seen)
    if status >= 0:
        status = bucket_fault(prefix, status)
    if status >= 0:
        status = queue_fault(prefix)
    if status >= 0:
        status = expiry_fault(prefix)
    return status
