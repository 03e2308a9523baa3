"""Loops that take pages back from the prefix cache: evict, clear."""

from __future__ import annotations

import numpy as np

from jitalloc._intrinsics import fail, try_lock, unlock
from jitalloc._jit import counting, helper, kernel
from jitalloc.errors import BUSY, STILL_LOCKED
from jitalloc.kernels.children import child_unlink, hash_unlink
from jitalloc.kernels.owners import pool_release
from jitalloc.kernels.queues import expire, next_victim, put_back, queue_unlink
from jitalloc.kernels.runs import next_pages, prev_pages, run_class, run_of, run_records
from jitalloc.kernels.wheel import wheel_unlink
from jitalloc.prefix_state import (
    BY_SLRU,
    CLEARED,
    EVICTED,
    NUM_CACHED,
    NUM_LOCKED,
    NUM_PROTECTED,
    POLICY,
    RUN_END,
    RUN_LENGTH,
    UNCACHED,
)
from jitalloc.state import STEP


@helper
def prefix_evictable(prefix):
    """Return how many pages can be evicted: an unlocked page has no locked one behind it."""
    return prefix[NUM_CACHED] - prefix[NUM_LOCKED]


@helper
def drop_run(prefix, run):
    """Take a run without children, whose pages are dropped, out of all lists."""
    end = np.int64(prev_pages(prefix)[run])
    hash_unlink(prefix, run)
    child_unlink(prefix, run)
    queue_unlink(prefix, run)
    wheel_unlink(prefix, run)
    if end >= 0:
        put_back(prefix, run_of(prefix, end))


@helper
def drop_pages_of(prefix, run, count, victims, put):
    """Drop the last `count` pages of a run, writing them to `victims[put:]`."""
    runs, nexts, prevs = run_records(prefix), next_pages(prefix), prev_pages(prefix)
    if prefix[POLICY] == BY_SLRU:
        prefix[NUM_PROTECTED] -= run_class(prefix, run) * count
    page = np.int64(runs[run, RUN_END])
    for i in range(count):
        victims[put + i] = page
        nexts[page] = UNCACHED
        page = np.int64(prevs[page])
    if count == runs[run, RUN_LENGTH]:
        drop_run(prefix, run)
    else:
        runs[run, RUN_END] = page
        runs[run, RUN_LENGTH] -= count
        nexts[page] = ~run


@helper
def give_way(prefix, victims, reason):
    """Take as many pages as `victims` has room for out of the cache, and write them there.

    There are so many that can be evicted. `reason`: REQUESTED, PRESSURE or CLEARED. The caller
    has let priorities `expire` before, and takes the cache's share of each page away.
    """
    runs = run_records(prefix)
    done = np.int64(0)
    while done < victims.size:
        run = next_victim(prefix)
        count = min(victims.size - done, np.int64(runs[run, RUN_LENGTH]))
        drop_pages_of(prefix, run, count, victims, done)
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
    # For a pool of another device, which is told to free the pages, and that is the step. `out`
    # has room for `n` pages, or for all. With the reason CLEARED all go, or none.
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
