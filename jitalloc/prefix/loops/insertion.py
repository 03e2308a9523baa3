"""What insertions are made of: link new pages behind a path, then bring the path in order.

Shared by the loops of the prefix cache.
"""

from __future__ import annotations

import numpy as np

from jitalloc._intrinsics import fail
from jitalloc._jit import helper
from jitalloc.errors import PAGE_CACHED, PAGE_FREE, REFCOUNT_OVERFLOW
from jitalloc.pool.loops.owners import page_fault
from jitalloc.pool.loops.pool import pool_views
from jitalloc.pool.state import FIRST_PAGE, NUM_PAGES
from jitalloc.prefix.loops.children import child_link
from jitalloc.prefix.loops.nodes import (
    following_column,
    node_expiries,
    node_of,
    node_records,
    previous_column,
)
from jitalloc.prefix.loops.paths import demote, path_raise, path_touch, path_use
from jitalloc.prefix.loops.queues import expire, push
from jitalloc.prefix.state import (
    BY_FIFO,
    BY_PRIORITY,
    INSERTED,
    NEVER,
    NODE_CHILD,
    NODE_END,
    NODE_LENGTH,
    NODE_LOCKS,
    NODE_STATE,
    NUM_CACHED,
    NUM_LOCKED,
    POLICY,
    QUEUED,
    UNCACHED,
)
from jitalloc.state import INT32_MAX


@helper
def unlink_new(pool, prefix, pages, start, stop):
    """Take `pages[start:stop]`, which have just been linked, out again."""
    _free_pages, refcount, _released = pool_views(pool)
    following_pages = following_column(prefix)
    for i in range(start, stop):
        following_pages[pages[i]] = UNCACHED
        refcount[pages[i]] -= np.int32(1)


@helper
def link_new(pool, prefix, end, pages, start):
    """Link `pages[start:]`, whose tokens stand in their rows, behind `end` as one new node.

    Each gets one owner more. Returns 0 or a status word, and then nothing has changed.
    """
    if start == pages.size:
        return np.int64(0)
    _free_pages, refcount, _released = pool_views(pool)
    following_pages = following_column(prefix)
    previous_pages = previous_column(prefix)
    nodes = node_records(prefix)
    node = np.int64(pages[start])
    previous = end
    for i in range(start, pages.size):
        page = pages[i]
        code = 0
        if page < pool[FIRST_PAGE] or page >= pool[NUM_PAGES]:
            code = page_fault(pool, page)
        elif refcount[page] == 0:
            code = PAGE_FREE
        elif refcount[page] == INT32_MAX:
            code = REFCOUNT_OVERFLOW
        elif following_pages[page] != UNCACHED:
            code = PAGE_CACHED
        if code != 0:
            unlink_new(pool, prefix, pages, start, i)
            return fail(code, i)
        refcount[page] += np.int32(1)
        previous_pages[page] = previous
        following_pages[page] = ~node
        if i > start:
            following_pages[previous] = page
        previous = np.int64(page)
    nodes[node, NODE_END] = previous
    nodes[node, NODE_LENGTH] = pages.size - start
    nodes[node, NODE_CHILD] = -1
    nodes[node, NODE_LOCKS] = 0
    nodes[node, NODE_STATE] = 0
    if prefix[POLICY] == BY_PRIORITY:
        node_expiries(prefix)[node] = -1  # below every expiry: `path_raise` gives it its first
    child_link(prefix, node)
    prefix[NUM_CACHED] += pages.size - start
    prefix[INSERTED] += pages.size - start
    return np.int64(0)


@helper
def refresh(prefix, end, new, priority, expiry, now):
    """What every insertion ends with: the whole path is used, raised and touched.

    Under the policy `fifo` only its new pages, the last node, take their place in the queue.

    `new`: how many of its pages are new; `now`: the pool's step at the start of the call.
    """
    expire(prefix, now)
    path_use(prefix, end)
    if prefix[POLICY] == BY_PRIORITY:
        path_raise(prefix, end, priority, expiry)
    if prefix[POLICY] != BY_FIFO:
        path_touch(prefix, end)
    elif new > 0:
        push(prefix, node_of(prefix, end))  # what was there before keeps its place
    demote(prefix)


@helper
def grow_node(pool, prefix, end, page):
    """Let `page`, whose tokens stand in its row, follow `end` in its node, locked; or do nothing.

    For a sequence that fills one page after another: nobody else has locked or continued what
    ends with `end`, nor holds `page`. The same as `link_new`, `path_lock` and `path_join`, but for
    the hash, the queue and the list of children. The path is in order again after `refresh`.
    """
    if end < 0 or prefix[POLICY] == BY_PRIORITY or prefix[POLICY] == BY_FIFO:
        return False
    _free_pages, refcount, _released = pool_views(pool)
    following_pages, nodes = following_column(prefix), node_records(prefix)
    if following_pages[end] >= 0 or following_pages[page] != UNCACHED or refcount[page] != 1:
        return False
    node = node_of(prefix, end)
    if (
        nodes[node, NODE_CHILD] >= 0
        or nodes[node, NODE_LOCKS] != 1
        or nodes[node, NODE_STATE] & ~QUEUED != 0  # a new page has no class, uses nor pins
    ):
        return False
    refcount[page] = 2
    previous_column(prefix)[page] = end
    following_pages[end] = page
    following_pages[page] = ~node
    nodes[node, NODE_END] = page
    nodes[node, NODE_LENGTH] += 1
    prefix[NUM_CACHED] += 1
    prefix[INSERTED] += 1
    prefix[NUM_LOCKED] += 1
    return True


@helper
def expiry_at(now, lifetime):
    """Return the step at which a priority ends that begins `now`; negative lifetime: never."""
    return NEVER if lifetime < 0 else now + lifetime
