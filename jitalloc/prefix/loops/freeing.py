"""Which pages go free when they leave the cache, and how those give way that do.

Shared by the loops of the prefix cache. The pool changes owners without telling the cache, so
what is looked at is looked at anew each time.
"""

from __future__ import annotations

import numpy as np

from jitalloc._jit import helper
from jitalloc.pool.loops.pool import pool_views
from jitalloc.prefix.loops.compare import BLOCK, consecutive
from jitalloc.prefix.loops.dropping import drop_pages_of
from jitalloc.prefix.loops.nodes import following_column, node_of, node_records, previous_column
from jitalloc.prefix.loops.queues import (
    first_in_line,
    goes_before,
    next_in_line,
    queue_unlink,
)
from jitalloc.prefix.state import (
    EVICTED,
    NODE_CHILD,
    NODE_END,
    NODE_LENGTH,
    NODE_LOCKS,
    NODE_STATE,
    NUM_CACHED,
    NUM_LOCKED,
    PAGES,
    PRESSURE,
    QUEUED,
    UNCACHED,
)


@helper
def prefix_evictable(prefix):
    """Return how many pages can be evicted: an unlocked page has no locked one behind it."""
    return prefix[NUM_CACHED] - prefix[NUM_LOCKED]


@helper
def alone_in(prefix, refcount, node):
    """Return how many pages of `node` have no other owner than the cache."""
    following_pages = following_column(prefix)
    left, page, count = np.int64(node_records(prefix)[node, NODE_LENGTH]), node, np.int64(0)
    while left > 0:
        run = consecutive(following_pages, page, left - 1) + 1  # ids in a row: no load waits
        start, alone = np.uint64(page), np.int32(0)
        for j in range(np.uint64(run)):
            alone += np.int32(refcount[start + j] == 1)
        count += alone
        left -= run
        page = np.int64(following_pages[page + run - 1])
    return count


@helper
def alone_at_end(prefix, refcount, node, most, alone):
    """Return how many pages at the end of `node`, at most `most`, are `alone` (or are not)."""
    nodes, previous_pages = node_records(prefix), previous_column(prefix)
    page, count = np.int64(nodes[node, NODE_END]), np.int64(0)
    most = min(most, np.int64(nodes[node, NODE_LENGTH]))
    while count < most and (refcount[page] == 1) == alone:
        count += 1
        page = np.int64(previous_pages[page])
    return count


@helper
def has_end(following_pages, first):
    """Return whether a node ends within the `BLOCK` pages from `first` on."""
    start, ends = np.uint64(first), np.int32(0)
    for j in range(np.uint64(BLOCK)):  # no early way out, so it vectorises
        following = following_pages[start + j]
        ends |= np.int32(following < 0) & np.int32(following != UNCACHED)
    return ends != 0


@helper
def reclaimable(pool, prefix):
    """Return how many pages an eviction of all would free: unlocked, and nobody else's.

    All pages are looked at, for the pool changes owners without telling the cache.
    """
    count = np.int64(0)
    if prefix_evictable(prefix) == 0:
        return count
    _free_pages, refcount, _released = pool_views(pool)
    nodes, following_pages = node_records(prefix), following_column(prefix)
    for first in range(0, prefix[PAGES], BLOCK):
        stop = min(first + BLOCK, prefix[PAGES])
        if stop - first < BLOCK or has_end(following_pages, first):
            for page in range(first, stop):
                following = np.int64(following_pages[page])
                if UNCACHED < following < 0 and nodes[~following, NODE_LOCKS] == 0:
                    count += alone_in(prefix, refcount, ~following)
    return count


@helper
def reclaimable_at_once(pool, prefix, most):
    """Return how many of `most` reclaimable pages are found in the queues: less, if some park.

    As far as they are needed, in the order in which they go: the first node has most often enough.
    """
    _free_pages, refcount, _released = pool_views(pool)
    nodes, count = node_records(prefix), np.int64(0)
    node = first_in_line(prefix, np.int64(0))
    while node >= 0 and count < most:
        if nodes[node, NODE_LOCKS] == 0:
            run = alone_at_end(prefix, refcount, node, most - count, True)
            enough = count + run >= most
            count += run if enough else alone_in(prefix, refcount, node)
        node = next_in_line(prefix, node)
    return count


@helper
def next_freeing(prefix, refcount, node):
    """Return the first node from the queued `node` on whose last page would go free, or -1.

    Those that cannot give way are parked; those whose last page is somebody else's too stay.
    """
    nodes = node_records(prefix)
    while node >= 0:
        following = next_in_line(prefix, node)
        if nodes[node, NODE_LOCKS] > 0 or nodes[node, NODE_CHILD] >= 0:
            queue_unlink(prefix, node)
        elif refcount[nodes[node, NODE_END]] == 1:
            break
        node = following
    return node


@helper
def hides_one(prefix, refcount, node):
    """Return whether a page of the unlocked `node`, or before it, would go free."""
    nodes, previous_pages = node_records(prefix), previous_column(prefix)
    while nodes[node, NODE_LOCKS] == 0:
        if alone_in(prefix, refcount, node) > 0:
            return True
        end = np.int64(previous_pages[node])
        if end < 0:
            break
        node = node_of(prefix, end)
    return False


@helper
def next_hiding(prefix, refcount):
    """Return the first leaf that stands behind a page that would go free, or -1."""
    nodes = node_records(prefix)
    node = first_in_line(prefix, np.int64(0))
    while node >= 0:
        leaf = nodes[node, NODE_LOCKS] == 0 and nodes[node, NODE_CHILD] < 0
        if leaf and hides_one(prefix, refcount, node):
            break
        node = next_in_line(prefix, node)
    return node


@helper
def give_way_freeing(pool, prefix, victims):
    """Take as many pages as `victims` has room for out of the cache: those that go free, in order.

    Where none is left that does, a page that stands before such a one is taken. As many as
    `victims` has room for are reclaimable; the caller has let priorities `expire` before.
    """
    _free_pages, refcount, _released = pool_views(pool)
    nodes, previous_pages = node_records(prefix), previous_column(prefix)
    done = np.int64(0)
    node = first_in_line(prefix, np.int64(0))
    while done < victims.size:
        node = next_freeing(prefix, refcount, node)
        freeing = node >= 0
        if not freeing:
            node = next_hiding(prefix, refcount)
        count = alone_at_end(prefix, refcount, node, victims.size - done, freeing)
        following = next_in_line(prefix, node)
        whole, end = count == nodes[node, NODE_LENGTH], np.int64(previous_pages[node])
        drop_pages_of(prefix, node, count, victims, done)
        done += count
        if not freeing:
            node = first_in_line(prefix, np.int64(0))
        elif whole:
            node = following
            if end >= 0:  # what it followed may be the next to go
                before = node_of(prefix, end)
                queued = nodes[before, NODE_STATE] & QUEUED != 0
                if queued and goes_before(prefix, before, following):
                    node = before
    prefix[NUM_CACHED] -= done
    prefix[EVICTED + PRESSURE] += done
