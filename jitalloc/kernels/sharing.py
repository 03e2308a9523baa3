"""Loops of sequences that share cached pages: known tokens, commits, room made by eviction.

The prefix cache has a row of token ids for each page of the pool. Where it holds the page, that
row is the index; for a page of a running sequence it is what the sequence is known to contain,
so that a commit moves no token and forks share them with the pages. `prefix` is the slab of the
prefix cache, or an array of one element where there is none.
"""

from __future__ import annotations

import numpy as np

from jitalloc._jit import bit, counting, fail, helper, kernel, page_scratch, try_lock, unlock
from jitalloc.errors import (
    BAD_ROW_LOCK,
    BUSY,
    LOCKS_MISSING,
    OUT_OF_PAGES,
    REFCOUNT_OVERFLOW,
    STATUS_BITS,
    TOKEN_DIFFERS,
)
from jitalloc.kernels.children import hash_link
from jitalloc.kernels.insertion import grow_run, link_new, refresh
from jitalloc.kernels.joints import split_after
from jitalloc.kernels.owners import pool_release
from jitalloc.kernels.paths import (
    NO_PAGE,
    UNUSED,
    USED,
    demote,
    path_join,
    path_lock,
    path_put_back,
    path_unlock,
)
from jitalloc.kernels.pool import pool_take, pool_views
from jitalloc.kernels.prefix import count_lookup, negative_token
from jitalloc.kernels.queues import expire
from jitalloc.kernels.reclaim import evict, prefix_evictable
from jitalloc.kernels.row_locks import (
    common_pages,
    has_prefix,
    is_cached,
    is_cut,
    lock_sharers,
    lockable,
    row_lock_fault,
)
from jitalloc.kernels.runs import next_pages, run_records, token_column
from jitalloc.kernels.search import descend, find
from jitalloc.kernels.tables import tables_column, tables_pages_of, tables_row, tables_taken
from jitalloc.prefix_state import (
    DEFAULT,
    NEVER,
    PRESSURE,
    RUN_LOCKS,
    UNCACHED,
)
from jitalloc.state import (
    FIRST_PAGE,
    FREE,
    GAP,
    INT32_MAX,
    KNOWN,
    LOCK_END,
    LOCKED,
    NAMESPACE,
    NULL,
    NUM_PAGES,
    NUM_ROWS,
    RELEASED,
    ROW_PAGE_SIZE,
    STEP,
)


@helper
def pages_held(pool, prefix):
    """Return how many pages are neither free nor to be had by evicting cached ones."""
    used = pool[NUM_PAGES] - pool[FIRST_PAGE] - pool[FREE] - pool[RELEASED]
    return used - prefix_evictable(prefix) if has_prefix(prefix) else used


@helper
def make_room(pool, prefix, need):
    """Let cached pages give way until `need` pages are available; return 0 or a status word.

    Nothing gives way where that could not suffice.
    """
    available = pool[FREE] + pool[RELEASED]
    if need > available and has_prefix(prefix):
        if need > available + prefix_evictable(prefix):
            return fail(OUT_OF_PAGES, available + prefix_evictable(prefix))
        expire(prefix, pool[STEP])
        # A page that its user holds without a lock gives way and does not go free: look again.
        while need > available and prefix_evictable(prefix) > 0:
            evict(pool, prefix, need - available, np.int64(PRESSURE))
            available = pool[FREE] + pool[RELEASED]
    return np.int64(0) if need <= available else fail(OUT_OF_PAGES, available)


@helper
def write_tokens(tables, prefix, row, start, tokens):
    """Write the ids of the tokens of `row` from position `start` on into the rows of its pages."""
    column, pages = token_column(prefix), tables_row(tables, row)
    size = tables[ROW_PAGE_SIZE]
    done = np.int64(0)
    while done < tokens.size:
        offset = (start + done) % size
        n = min(size - offset, tokens.size - done)
        first = np.int64(pages[(start + done) // size]) * size + offset
        target, source = column[first : first + n], tokens[done : done + n]
        for j in range(n):
            target[j] = source[j]
        done += n


@helper
def copy_tokens(tables, prefix, src, dst):
    """Copy the token ids of page `src` to page `dst`."""
    column, size = token_column(prefix), tables[ROW_PAGE_SIZE]
    source, target = column[src * size : (src + 1) * size], column[dst * size : (dst + 1) * size]
    for j in range(size):
        target[j] = source[j]


@helper
def known_of(pool, tables, prefix, row, count):
    """Return how many of the first `count` tokens of `row` anybody knows who holds its pages."""
    _free_pages, refcount, _released = pool_views(pool)
    known, size = tables_column(tables, KNOWN), tables[ROW_PAGE_SIZE]
    pages, taken = tables_row(tables, row), tables_taken(tables)
    most = known[row]
    first, last = most // size, tables_pages_of(tables, count)
    for j in range(first, last):
        if refcount[pages[j]] > 1 and not is_cached(prefix, pages[j]):
            break
    else:
        return most
    for other in range(tables[NUM_ROWS]):
        if taken[other >> 6] & bit(other) == np.uint64(0) or known[other] <= most:
            continue
        same = common_pages(tables, row, np.int64(other), np.int64(0), last)
        most = max(most, min(known[other], same * size))
    return most


@helper
def first_difference(pool, tables, prefix, row, tokens):
    """Return the first position where `tokens` differ from the known ones of `row`, or -1.

    What stands in a cached page is known, and so is what a fork was told of a page they share.
    """
    column, pages = token_column(prefix), tables_row(tables, row)
    size = tables[ROW_PAGE_SIZE]
    known = known_of(pool, tables, prefix, row, np.int64(tokens.size))
    for i in range(tokens.size):
        page = np.int64(pages[i // size])
        if (i < known or is_cached(prefix, page)) and column[page * size + i % size] != tokens[i]:
            return np.int64(i)
    return np.int64(-1)


@helper
def share_prefix(pool, tables, prefix, row, tokens, namespace):
    """Give the free row `row` the cached pages that `tokens` begin with, and new ones behind.

    Returns 0 or a status word; then nothing has changed.
    """
    _free_pages, refcount, _released = pool_views(pool)
    size, root = tables[ROW_PAGE_SIZE], -2 - namespace
    pages = tables_row(tables, row)[: tables_pages_of(tables, tokens.size)]
    count, end = find(prefix, root, tokens, pages)
    status = negative_token(tokens, count * size)  # cached tokens are not negative
    for j in range(count):
        if refcount[pages[j]] == INT32_MAX:
            status = fail(REFCOUNT_OVERFLOW, 0)
    path_lock(prefix, end, NO_PAGE, UNUSED)  # so that making room leaves alone what is to be shared
    if status == 0:
        status = make_room(pool, prefix, pages.size - count)
        if status < 0:  # what can be shared is at hand too
            status = fail(OUT_OF_PAGES, (-status >> STATUS_BITS) + count)
    if status < 0:
        path_unlock(prefix, end)
        path_put_back(prefix, end)
        for j in range(pages.size):
            pages[j] = NULL
        return status
    path_lock(prefix, end, NO_PAGE, USED)
    path_unlock(prefix, end)
    count_lookup(prefix, end, tokens, count)
    for j in range(count):
        refcount[pages[j]] += np.int32(1)
    pool_take(pool, pages[count:])
    tables_column(tables, KNOWN)[row] = tokens.size
    tables_column(tables, NAMESPACE)[row] = namespace
    tables_column(tables, LOCKED)[row] = count
    tables_column(tables, LOCK_END)[row] = max(end, 0)
    write_tokens(tables, prefix, row, count * size, tokens[count * size :])
    return np.int64(0)


@counting
def row_adopt(pool, tables, prefix, row, depth, full, end):
    """Insert the pages `depth .. full-1` of `row` behind `end`; nothing is touched nor locked.

    Those that are cached already are replaced by the cached ones. Behind them, pages enter as
    far as all of their owners will lock them (`lockable`). Returns how many were cached, up to
    which page of the row all are cached now, and how many pages that sets free.
    """
    _free_pages, refcount, _released = pool_views(pool)
    pages = tables_row(tables, row)[depth:full]
    canonical = page_scratch(prefix, pages.size)
    split_after(prefix, end)
    present, last = descend(prefix, end, token_column(prefix), pages, pages.size, canonical)
    duplicates = np.int64(0)
    for j in range(present):
        own = pages[j]
        if canonical[j] != own:
            pages[j] = canonical[j]
            refcount[pages[j]] += np.int32(1)
            canonical[duplicates] = own
            duplicates += 1
    stop = full
    for j in range(present, pages.size):
        if refcount[pages[j]] != 1:
            stop = lockable(pool, tables, prefix, row, depth, depth + present, full, end)
            break
    if stop > depth + present:
        link_new(pool, prefix, last, pages[: stop - depth], present)
        hash_link(prefix, np.int64(pages[present]))
    return present, stop, pool_release(pool, canonical[:duplicates])


@helper
def row_commit(pool, tables, prefix, row):
    """Let the full pages of known tokens enter the cache.

    Where the cache has such a page already, the row takes that one for its own. Returns how
    many pages that sets free.
    """
    if not has_prefix(prefix):
        return np.int64(0)
    locked, lock_end = tables_column(tables, LOCKED), tables_column(tables, LOCK_END)
    depth = locked[row]
    full = tables_column(tables, KNOWN)[row] // tables[ROW_PAGE_SIZE]
    if full <= depth or is_cut(tables, row):
        return np.int64(0)
    _free_pages, refcount, _released = pool_views(pool)
    end = lock_end[row] if depth > 0 else -2 - tables_column(tables, NAMESPACE)[row]
    pages = tables_row(tables, row)
    present, stop, released = np.int64(0), full, np.int64(0)
    grown = full == depth + 1 and grow_run(pool, prefix, end, np.int64(pages[depth]))
    if not grown:
        present, stop, released = row_adopt(pool, tables, prefix, row, depth, full, end)
        if stop == depth:
            return np.int64(0)
    last, new = np.int64(pages[stop - 1]), stop - depth - present
    refresh(prefix, last, new, prefix[DEFAULT], np.int64(NEVER), pool[STEP])
    if not grown:
        path_lock(prefix, last, end, UNUSED)
        path_join(prefix, last)  # else each page that a sequence fills would stay its own run
    locked[row] = stop
    lock_end[row] = last
    for j in range(depth + present, stop):
        if refcount[pages[j]] > 2:  # the sequence and the cache are two owners
            lock_sharers(tables, prefix, row, depth, stop, end)
            break
    return released


@kernel("int64(int64[::1], int64[::1], int64[::1], int64, int32[::1])")
def sharing_commit_cpu(pool, tables, prefix, row, tokens):
    if not try_lock(pool):
        return fail(BUSY, 0)
    known = tables_column(tables, KNOWN)
    at = first_difference(pool, tables, prefix, row, tokens)
    status = fail(TOKEN_DIFFERS, at) if at >= 0 else np.int64(0)
    if status == 0:
        status = negative_token(tokens, np.int64(0))
    if status < 0:
        unlock(pool)
        return status
    if tokens.size > known[row] and tables_column(tables, GAP)[row] == 0:
        write_tokens(tables, prefix, row, known[row], tokens[known[row] :])
        known[row] = tokens.size
    row_commit(pool, tables, prefix, row)
    pool[STEP] += 1
    cached = tables_column(tables, LOCKED)[row]
    if is_cut(tables, row):  # what the window left of the path
        cached = min(cached, known[row] // tables[ROW_PAGE_SIZE])
    unlock(pool)
    return cached


@kernel("int64(int64[::1], int64[::1], int64[::1])")
def sharing_pages_cpu(pool, prefix, out):
    # out: pages that are free, reclaimable and held.
    if not try_lock(pool):
        return fail(BUSY, 0)
    out[0] = pool[FREE] + pool[RELEASED]
    out[1] = prefix_evictable(prefix) if has_prefix(prefix) else 0
    out[2] = pages_held(pool, prefix)
    unlock(pool)
    return np.int64(0)


@kernel("int64(int64[::1], int64[::1], int64[::1], int32[::1])")
def sharing_check_cpu(pool, tables, prefix, locks):
    # After the checks of both parts alone. `locks` is int32[num_pages] of zeros.
    if not try_lock(pool):
        return fail(BUSY, 0)
    status = np.int64(0)
    for row in range(tables[NUM_ROWS]):
        if status == 0 and row_lock_fault(tables, prefix, row, locks):
            status = fail(BAD_ROW_LOCK, row)
    runs, nexts = run_records(prefix), next_pages(prefix)
    for page in range(nexts.size):
        if status == 0 and nexts[page] != UNCACHED and nexts[page] < 0:
            if runs[~nexts[page], RUN_LOCKS] < locks[page]:
                status = fail(LOCKS_MISSING, page)
    unlock(pool)
    return status


@kernel("int64(int64[::1], int64[::1])")
def sharing_relock_cpu(tables, prefix):
    # For a cache just restored, whose locks have been taken away, and that nobody else has yet.
    for row in range(tables[NUM_ROWS]):
        if tables_column(tables, LOCKED)[row] > 0:
            path_lock(prefix, tables_column(tables, LOCK_END)[row], NO_PAGE, UNUSED)
    demote(prefix)  # only now: what is locked is not
    return np.int64(0)
