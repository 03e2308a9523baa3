"""How pages leave the tree: the end of a node, or all that is unlocked behind a page.

Shared by the loops of the prefix cache. What is dropped keeps its owners: the caller takes the
cache's share away, and counts.
"""

from __future__ import annotations

import numpy as np

from jitalloc._jit import helper
from jitalloc.prefix.loops.children import child_unlink, hash_unlink
from jitalloc.prefix.loops.expiries import expiry_unlink
from jitalloc.prefix.loops.nodes import (
    following_column,
    node_class,
    node_of,
    node_records,
    previous_column,
)
from jitalloc.prefix.loops.queues import put_back, queue_unlink
from jitalloc.prefix.loops.split_join import split_after
from jitalloc.prefix.state import (
    BY_SLRU,
    NODE_CHILD,
    NODE_END,
    NODE_LENGTH,
    NODE_LOCKS,
    NUM_PROTECTED,
    PAGES,
    POLICY,
    SIBLING_FOLLOWING,
    UNCACHED,
)

GONE = -1  # in `previous_pages`, of a page just dropped: no page and no root


@helper
def drop_node(prefix, node):
    """Take a node without children, whose pages are dropped, out of all lists."""
    end = np.int64(previous_column(prefix)[node])
    hash_unlink(prefix, node)
    child_unlink(prefix, node)
    queue_unlink(prefix, node)
    expiry_unlink(prefix, node)
    if end >= 0:
        put_back(prefix, node_of(prefix, end))


@helper
def drop_pages_of(prefix, node, count, victims, put):
    """Drop the last `count` pages of a node, writing them to `victims[put:]`."""
    nodes = node_records(prefix)
    following_pages = following_column(prefix)
    previous_pages = previous_column(prefix)
    if prefix[POLICY] == BY_SLRU:
        prefix[NUM_PROTECTED] -= node_class(prefix, node) * count
    page = np.int64(nodes[node, NODE_END])
    for i in range(count):
        victims[put + i] = page
        following_pages[page] = UNCACHED
        page = np.int64(previous_pages[page])
    if count == nodes[node, NODE_LENGTH]:
        drop_node(prefix, node)
    else:
        nodes[node, NODE_END] = page
        nodes[node, NODE_LENGTH] -= count
        following_pages[page] = ~node


@helper
def deepest(prefix, node):
    """Return the node without children that is reached by the first child of each."""
    nodes = node_records(prefix)
    while nodes[node, NODE_CHILD] >= 0:
        node = np.int64(nodes[node, NODE_CHILD])
    return node


@helper
def drop_behind(prefix, page, victims, put):
    """Drop the cached `page` and all that follows it, writing it to `victims[put:]`.

    What is locked stays, with what it follows. Returns how many pages are dropped, and how many
    stay; a node begins with `page` then, if it does.
    """
    nodes, previous_pages = node_records(prefix), previous_column(prefix)
    split_after(prefix, np.int64(previous_pages[page]))
    dropped, kept = np.int64(0), np.int64(0)
    node = deepest(prefix, page)
    while node >= 0:
        length = np.int64(nodes[node, NODE_LENGTH])
        following = np.int64(-1)
        if node != page:  # what comes next, children before what they follow
            following = np.int64(nodes[node, SIBLING_FOLLOWING])
            if following >= 0:
                following = deepest(prefix, following)
            else:
                following = node_of(prefix, np.int64(previous_pages[node]))
        if nodes[node, NODE_LOCKS] > 0:
            kept += length
        else:
            drop_pages_of(prefix, node, length, victims, put + dropped)
            dropped += length
        node = following
    return dropped, kept


@helper
def sort_dropped(prefix, victims):
    """Put pages that have been dropped, each once, in ascending order, in O(num_pages)."""
    following_pages, previous_pages = following_column(prefix), previous_column(prefix)
    for i in range(victims.size):
        previous_pages[victims[i]] = GONE
    put = np.int64(0)
    for page in range(prefix[PAGES]):
        if put < victims.size and following_pages[page] == UNCACHED:
            if previous_pages[page] == GONE:
                previous_pages[page] = 0
                victims[put] = page
                put += 1
