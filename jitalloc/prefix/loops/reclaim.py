"""Loops that take pages back from the prefix cache: evict, clear, make room.

`evict` takes the least valuable pages out of the cache, whoever else owns them. Who needs room asks
for pages that go free by it (`reclaimable`): those of which the cache is the only owner.

A kernel holds the lock of the pool while it works, and answers BUSY where somebody else does.
"""

from __future__ import annotations

import numpy as np

from jitalloc._intrinsics import fail, int32_column, try_lock, unlock
from jitalloc._jit import counting, helper, kernel
from jitalloc.errors import BUSY, OUT_OF_PAGES, STILL_LOCKED
from jitalloc.pool.loops.owners import page_fault, pool_release
from jitalloc.pool.loops.pool import pool_views
from jitalloc.pool.state import FIRST_PAGE, NUM_PAGES, STEP
from jitalloc.prefix.loops.dropping import drop_behind, drop_pages_of, sort_dropped
from jitalloc.prefix.loops.freeing import (
    give_way_freeing,
    prefix_evictable,
    reclaimable,
    reclaimable_at_once,
)
from jitalloc.prefix.loops.nodes import following_column, node_records, previous_column
from jitalloc.prefix.loops.prefix import negative_token
from jitalloc.prefix.loops.queues import expire, next_victim
from jitalloc.prefix.loops.search import peek
from jitalloc.prefix.state import (
    CLEARED,
    EVICTED,
    HIDDEN,
    NODE_LENGTH,
    NODE_LOCKS,
    NODE_STATE,
    NUM_CACHED,
    NUM_LOCKED,
    PAGES,
    PREFIX_PAGE_SIZE,
    PRESSURE,
    UNCACHED,
)


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
def evict(pool, prefix, n, reason, out):
    """Evict `n` pages, or as many as can be; return how many, or a status word.

    They are written to `out`, which has room for all of them or for none.
    """
    count = min(n, prefix_evictable(prefix))
    victims = out[:count] if out.size > 0 else np.empty(count, np.int32)
    give_way(prefix, victims, reason)
    status = pool_release(pool, victims)
    return status if status < 0 else np.int64(victims.size)


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


# What is past the end of a pool that shrinks.


@helper
def past_fault(pool, prefix, num_pages):
    """Return whether a page from `num_pages` on is held by others than the cache, or locked."""
    _free_pages, refcount, _released = pool_views(pool)
    nodes, following_pages = node_records(prefix), following_column(prefix)
    previous_pages = previous_column(prefix)
    for page in range(num_pages, prefix[PAGES]):
        if refcount[page] > 1 or (refcount[page] == 1 and following_pages[page] == UNCACHED):
            return True
    for end in range(prefix[PAGES]):
        node = ~np.int64(following_pages[end])
        if UNCACHED < following_pages[end] < 0 and nodes[node, NODE_LOCKS] > 0:
            page = np.int64(end)
            for _ in range(nodes[node, NODE_LENGTH]):
                if page >= num_pages:
                    return True
                page = np.int64(previous_pages[page])
    return False


@kernel("int64(int64[::1], int64[::1], int64, int32[::1], int64)")
def reclaim_past_cpu(pool, prefix, num_pages, out, frees):
    """Mutates the prefix cache, which loses the pages from `num_pages` on and what follows them,
    and `out`: these pages, ascending; the pool, which gets them, where `frees` is 1.
    Reads the locks of the nodes, requires the owners of all pages in the pool, and room in `out`
    for every page. Returns how many are gone: none where somebody else holds one of those pages.
    """
    if not try_lock(pool):
        return fail(BUSY, 0)
    done = status = np.int64(0)
    if not past_fault(pool, prefix, num_pages):
        for page in range(num_pages, prefix[PAGES]):
            if following_column(prefix)[page] != UNCACHED:
                dropped, _kept = drop_behind(prefix, np.int64(page), out, done)
                done += dropped
        sort_dropped(prefix, out[:done])
        prefix[NUM_CACHED] -= done
        prefix[EVICTED + PRESSURE] += done
        if frees != 0:
            status = pool_release(pool, out[:done])
    unlock(pool)
    return done if status >= 0 else status


# What a caller asks for.


@kernel("int64(int64[::1], int64[::1], int64, int64, int32[::1])")
def reclaim_evict_cpu(pool, prefix, n, reason, out):
    """Mutates the prefix cache, which loses up to `n` pages, the pool, which gets them, and `out`.
    Reads order and locks of the nodes, requires a `reason`, REQUESTED or PRESSURE, and room in
    `out` for the pages that go, or for none.
    """
    if not try_lock(pool):
        return fail(BUSY, 0)
    expire(prefix, pool[STEP])
    count = evict(pool, prefix, n, reason, out)
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
        nowhere = int32_column(prefix, 0, 0)
        status = evict(pool, prefix, prefix[NUM_CACHED], np.int64(CLEARED), nowhere)
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


# What turned out bad.


@helper
def invalidate_page(prefix, page, victims, put):
    """Let a cached page, and all that follows it, not be found any more; what is unlocked goes.

    Returns how many pages are dropped, and written to `victims[put:]`.
    """
    dropped, kept = drop_behind(prefix, page, victims, put)
    if kept > 0:
        node_records(prefix)[page, NODE_STATE] |= HIDDEN
    return dropped


@helper
def invalid_fault(pool, tokens, pages):
    """Return the status word of the first negative token or page out of range, or 0."""
    status = negative_token(tokens, np.int64(0))
    for i in range(pages.size):
        if status == 0 and not pool[FIRST_PAGE] <= pages[i] < pool[NUM_PAGES]:
            status = fail(page_fault(pool, pages[i]), i)
    return status


@kernel(
    "int64(int64[::1], int64[::1], int64, int32[::1], int64, int32[::1], int32[::1], int64[::1])"
)
def reclaim_invalidate_cpu(pool, prefix, root, tokens, start, pages, out, released):
    """Mutates the prefix cache, in which the cached page of `tokens` that holds the one at `start`
    is not found any more, nor are `pages` and whatever follows; `out`: the pages that have gone,
    ascending; the pool, which gets them, and `released`, how many went free, where that has room.
    Reads the locks of the nodes, requires room in `out` for every page. Returns how many are gone;
    fails at a negative token, and at a page out of range.
    """
    if not try_lock(pool):
        return fail(BUSY, 0)
    done, status = np.int64(0), invalid_fault(pool, tokens, pages)
    if status == 0:
        at, size = start // prefix[PREFIX_PAGE_SIZE], prefix[PREFIX_PAGE_SIZE]
        found, end = peek(prefix, root, tokens[: (at + 1) * size], out)
        if found > at:
            done += invalidate_page(prefix, end, out, done)
        for i in range(pages.size):
            if following_column(prefix)[pages[i]] != UNCACHED:
                done += invalidate_page(prefix, np.int64(pages[i]), out, done)
        sort_dropped(prefix, out[:done])
        prefix[NUM_CACHED] -= done
        prefix[EVICTED + CLEARED] += done
        status = done
        if released.size > 0:
            released[0] = pool_release(pool, out[:done])
            if released[0] < 0:
                status = released[0]
    if status >= 0 and (released.size > 0 or done == 0):
        pool[STEP] += 1  # else the free of another device is the step
    unlock(pool)
    return status
