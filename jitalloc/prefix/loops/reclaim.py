"""Loops that take pages back from the prefix cache: evict, clear, make room.

`evict` takes the least valuable pages out of the cache, whoever else owns them. Who needs room asks
for pages that go free by it (`reclaimable`): those of which the cache is the only owner.

A kernel holds the lock of the pool while it works, and answers BUSY where somebody else does.
"""

from __future__ import annotations

import numpy as np

from jitalloc._intrinsics import fail, try_lock, unlock
from jitalloc._jit import counting, helper, kernel
from jitalloc.errors import BUSY, OUT_OF_PAGES, STILL_LOCKED
from jitalloc.pool.loops.owners import pool_release
from jitalloc.pool.loops.pool import pool_views
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
from jitalloc.prefix.loops.queues import (
    expire,
    first_in_line,
    goes_before,
    next_in_line,
    next_victim,
    put_back,
    queue_unlink,
)
from jitalloc.prefix.state import (
    BY_SLRU,
    CLEARED,
    EVICTED,
    NODE_CHILD,
    NODE_END,
    NODE_LENGTH,
    NODE_LOCKS,
    NODE_STATE,
    NUM_CACHED,
    NUM_LOCKED,
    NUM_PROTECTED,
    PAGES,
    POLICY,
    PRESSURE,
    QUEUED,
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


# What goes free.


@helper
def alone_in(prefix, refcount, node):
    """Return how many pages of `node` have no other owner than the cache."""
    nodes, previous_pages = node_records(prefix), previous_column(prefix)
    page, count = np.int64(nodes[node, NODE_END]), np.int64(0)
    for _ in range(nodes[node, NODE_LENGTH]):
        count += np.int64(refcount[page] == 1)
        page = np.int64(previous_pages[page])
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
def reclaimable(pool, prefix):
    """Return how many pages an eviction of all would free: unlocked, and nobody else's.

    All pages are looked at, for the pool changes owners without telling the cache: 25 us with
    64k pages, half of them cached.
    """
    count = np.int64(0)
    if prefix_evictable(prefix) > 0:
        _free_pages, refcount, _released = pool_views(pool)
        nodes, following_pages = node_records(prefix), following_column(prefix)
        for page in range(prefix[PAGES]):
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


@helper
def room_fault(pool, prefix, n, available):
    """Return the status word of why `n` pages more than the `available` are not to be had, or 0."""
    count = np.int64(0)
    if n <= prefix_evictable(prefix):
        count = reclaimable_at_once(pool, prefix, n)
    if count < n:
        count = reclaimable(pool, prefix)
    return np.int64(0) if count >= n else fail(OUT_OF_PAGES, available + count)


@counting
def reclaim(pool, prefix, n, available):
    """Let pages give way until `n` more than the `available` are free; return 0 or a status word.

    Nothing gives way where that could not suffice.
    """
    status = room_fault(pool, prefix, n, available)
    if status == 0:
        expire(prefix, pool[STEP])
    while status == 0 and n > 0:
        victims = np.empty(n, np.int32)
        give_way_freeing(pool, prefix, victims)
        released = pool_release(pool, victims)
        n -= released
        status = min(released, np.int64(0))
    return status


@kernel("int64(int64[::1], int64[::1], int64, int64, int32[::1])")
def reclaim_room_cpu(pool, prefix, n, available, out):
    """Mutates the prefix cache, which loses pages until `n` of them go free, and `out`.
    Reads order and locks of the nodes, requires the owners of all pages in the pool, and room in
    `out` for every page. Returns how many are gone; fails where that could not suffice.

    For a pool of another device, which is told to free the pages.
    """
    if not try_lock(pool):
        return fail(BUSY, 0)
    _free_pages, refcount, _released = pool_views(pool)
    status = room_fault(pool, prefix, n, available)
    if status == 0:
        expire(prefix, pool[STEP])
        done = np.int64(0)
        while n > 0:
            victims = out[done : done + n]
            give_way_freeing(pool, prefix, victims)
            done += victims.size
            for i in range(victims.size):
                n -= np.int64(refcount[victims[i]] == 1)
        status = done
    unlock(pool)
    return status


@kernel("int64(int64[::1], int64[::1])")
def reclaim_count_cpu(pool, prefix):
    """Mutates nothing.
    Reads pool and prefix cache, requires the owners of all pages in the pool; returns how many can
    be reclaimed.
    """
    if not try_lock(pool):
        return fail(BUSY, 0)
    count = reclaimable(pool, prefix)
    unlock(pool)
    return count


# What a caller asks for.


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
