"""Loops that take pages back from the prefix cache: evict, clear.

A kernel holds the lock of the pool while it works, and answers BUSY where somebody else does.
"""

from __future__ import annotations

import numpy as np

from jitalloc._intrinsics import fail, try_lock, unlock
from jitalloc._jit import counting, helper, kernel
from jitalloc.errors import BUSY, STILL_LOCKED
from jitalloc.pool.loops.owners import pool_release
from jitalloc.pool.state import STEP
from jitalloc.prefix.loops.children import child_unlink, hash_unlink
from jitalloc.prefix.loops.expiries import expiry_unlink
from jitalloc.prefix.loops.nodes import (
    following_column,
    node_class,
    node_of,
    node_records,
    previous_column,
)
from jitalloc.prefix.loops.queues import expire, next_victim, put_back, queue_unlink
from jitalloc.prefix.state import (
    BY_SLRU,
    CLEARED,
    EVICTED,
    NODE_END,
    NODE_LENGTH,
    NUM_CACHED,
    NUM_LOCKED,
    NUM_PROTECTED,
    POLICY,
    UNCACHED,
)


@helper
def prefix_evictable(prefix):
    """Return how many pages can be evicted: an unlocked page has no locked one behind it."""
    return prefix[NUM_CACHED] - prefix[NUM_LOCKED]


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
def give_way(prefix, victims, reason):
    """Take as many pages as `victims` has room for out of the cache, and write them there.

    There are so many that can be evicted. `reason`: REQUESTED, PRESSURE or CLEARED. The caller
    has let priorities `expire` before, and takes the cache's share of each page away.
    """
    nodes = node_records(prefix)
    done = np.int64(0)
    while done < victims.size:
        node = next_victim(prefix)
        count = min(victims.size - done, np.int64(nodes[node, NODE_LENGTH]))
        drop_pages_of(prefix, node, count, victims, done)
        done += count
    prefix[NUM_CACHED] -= done
    prefix[EVICTED + reason] += done


@counting
def evict(pool, prefix, n, reason):
    """Evict `n` pages, or as many as can be; return how many, or a status word."""
    victims = np.empty(min(n, prefix_evictable(prefix)), np.int32)
    give_way(prefix, victims, reason)
    status = pool_release(pool, victims)
    return status if status < 0 else np.int64(victims.size)


@kernel("int64(int64[::1], int64[::1], int64, int64)")
def reclaim_evict_cpu(pool, prefix, n, reason):
    """Mutates the prefix cache, which loses up to `n` pages, and the pool, which gets them.
    Reads order and locks of the nodes, requires a `reason`: REQUESTED or PRESSURE.
    """
    if not try_lock(pool):
        return fail(BUSY, 0)
    expire(prefix, pool[STEP])
    count = evict(pool, prefix, n, reason)
    if count >= 0:
        pool[STEP] += 1
    unlock(pool)
    return count


@helper
def clear_fault(prefix):
    """Return the status word of why the cache cannot be cleared, or 0."""
    locked = prefix[NUM_LOCKED]
    return fail(STILL_LOCKED, locked) if locked > 0 else np.int64(0)


@kernel("int64(int64[::1], int64[::1])")
def reclaim_clear_cpu(pool, prefix):
    """Mutates the prefix cache, which loses every page, and the pool, which gets them.
    Reads NUM_LOCKED, requires nothing; fails where a page is locked.
    """
    if not try_lock(pool):
        return fail(BUSY, 0)
    status = clear_fault(prefix)
    if status == 0:
        status = evict(pool, prefix, prefix[NUM_CACHED], np.int64(CLEARED))
    if status >= 0:
        pool[STEP] += 1
    unlock(pool)
    return status


@kernel("int64(int64[::1], int64[::1], int64, int64, int32[::1])")
def reclaim_choose_cpu(pool, prefix, n, reason, out):
    """Mutates the prefix cache, which loses up to `n` pages, `out`, the pool's step if none goes.
    Reads order and locks of the nodes, requires room in `out` for `n` pages, or for all.

    For a pool of another device, which is told to free the pages, and that is the step. With the
    reason CLEARED all go, or none where one is locked.
    """
    if not try_lock(pool):
        return fail(BUSY, 0)
    status = clear_fault(prefix) if reason == CLEARED else np.int64(0)
    if status == 0:
        if reason != CLEARED:
            expire(prefix, pool[STEP])
        count = min(n, prefix_evictable(prefix))
        give_way(prefix, out[:count], reason)
        if count == 0:
            pool[STEP] += 1  # nothing to free
        status = count
    unlock(pool)
    return status
