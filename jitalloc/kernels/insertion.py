"""What insertions are made of: link new pages behind a path, then bring the path in order.

Shared by the loops of the prefix cache.
"""

from __future__ import annotations

import numpy as np

from jitalloc._intrinsics import fail
from jitalloc._jit import helper
from jitalloc.errors import PAGE_CACHED, PAGE_FREE, REFCOUNT_OVERFLOW
from jitalloc.kernels.children import child_link
from jitalloc.kernels.owners import page_fault
from jitalloc.kernels.paths import demote, path_raise, path_touch, path_use
from jitalloc.kernels.pool import pool_views
from jitalloc.kernels.queues import expire, push
from jitalloc.kernels.runs import (
    next_pages,
    prev_pages,
    run_expiries,
    run_of,
    run_records,
)
from jitalloc.prefix_state import (
    BY_FIFO,
    BY_PRIORITY,
    INSERTED,
    NEVER,
    NUM_CACHED,
    NUM_LOCKED,
    POLICY,
    QUEUED,
    RUN_CHILD,
    RUN_END,
    RUN_LENGTH,
    RUN_LOCKS,
    RUN_STATE,
    UNCACHED,
)
from jitalloc.state import FIRST_PAGE, INT32_MAX, NUM_PAGES


@helper
def unlink_new(pool, prefix, pages, start, stop):
    """Take `pages[start:stop]`, which have just been linked, out again."""
    _free_pages, refcount, _released = pool_views(pool)
    nexts = next_pages(prefix)
    for i in range(start, stop):
        nexts[pages[i]] = UNCACHED
        refcount[pages[i]] -= np.int32(1)


@helper
def link_new(pool, prefix, end, pages, start):
    """Link `pages[start:]`, whose tokens stand in their rows, behind `end` as one new run.

    Each gets one owner more. Returns 0 or a status word, and then nothing has changed.
    """
    if start == pages.size:
        return np.int64(0)
    _free_pages, refcount, _released = pool_views(pool)
    nexts, prevs, runs = next_pages(prefix), prev_pages(prefix), run_records(prefix)
    run = np.int64(pages[start])
    before = end
    for i in range(start, pages.size):
        page = pages[i]
        code = 0
        if page < pool[FIRST_PAGE] or page >= pool[NUM_PAGES]:
            code = page_fault(pool, page)
        elif refcount[page] == 0:
            code = PAGE_FREE
        elif refcount[page] == INT32_MAX:
            code = REFCOUNT_OVERFLOW
        elif nexts[page] != UNCACHED:
            code = PAGE_CACHED
        if code != 0:
            unlink_new(pool, prefix, pages, start, i)
            return fail(code, i)
        refcount[page] += np.int32(1)
        prevs[page] = before
        nexts[page] = ~run
        if i > start:
            nexts[before] = page
        before = np.int64(page)
    runs[run, RUN_END] = before
    runs[run, RUN_LENGTH] = pages.size - start
    runs[run, RUN_CHILD] = -1
    runs[run, RUN_LOCKS] = 0
    runs[run, RUN_STATE] = 0
    if prefix[POLICY] == BY_PRIORITY:
        run_expiries(prefix)[run] = -1  # below every expiry: `path_raise` gives it its first
    child_link(prefix, run)
    prefix[NUM_CACHED] += pages.size - start
    prefix[INSERTED] += pages.size - start
    return np.int64(0)


@helper
def refresh(prefix, end, new, priority, expiry, now):
    """What every insertion ends with: the whole path is used, raised and touched.

    Under the policy `fifo` only its new pages, the last run, take their place in the queue.

    `new`: how many of its pages are new; `now`: the pool's step at the start of the call.
    """
    expire(prefix, now)
    path_use(prefix, end)
    if prefix[POLICY] == BY_PRIORITY:
        path_raise(prefix, end, priority, expiry)
    if prefix[POLICY] != BY_FIFO:
        path_touch(prefix, end)
    elif new > 0:
        push(prefix, run_of(prefix, end))  # what was there before keeps its place
    demote(prefix)


@helper
def grow_run(pool, prefix, end, page):
    """Let `page`, whose tokens stand in its row, follow `end` in its run, locked; or do nothing.

    For a sequence that fills one page after another: nobody else has locked or continued what
    ends with `end`, nor holds `page`. The same as `link_new`, `path_lock` and `path_join`, but for
    the hash, the queue and the list of children. The path is in order again after `refresh`.
    """
    if end < 0 or prefix[POLICY] == BY_PRIORITY or prefix[POLICY] == BY_FIFO:
        return False
    _free_pages, refcount, _released = pool_views(pool)
    nexts, runs = next_pages(prefix), run_records(prefix)
    if nexts[end] >= 0 or nexts[page] != UNCACHED or refcount[page] != 1:
        return False
    run = run_of(prefix, end)
    if (
        runs[run, RUN_CHILD] >= 0
        or runs[run, RUN_LOCKS] != 1
        or runs[run, RUN_STATE] & ~QUEUED != 0  # a new page has no class, uses nor pins
    ):
        return False
    refcount[page] = 2
    prev_pages(prefix)[page] = end
    nexts[end] = page
    nexts[page] = ~run
    runs[run, RUN_END] = page
    runs[run, RUN_LENGTH] += 1
    prefix[NUM_CACHED] += 1
    prefix[INSERTED] += 1
    prefix[NUM_LOCKED] += 1
    return True


@helper
def expiry_at(now, lifetime):
    """Return the step at which a priority ends that begins `now`; negative lifetime: never."""
    return NEVER if lifetime < 0 else now + lifetime
