"""Loops of sequences that share cached pages: look-ups, room made by eviction, locks.

`prefix` is the slab of the prefix cache, or an array of one element where there is none.
"""

from __future__ import annotations

import numpy as np

from jitalloc._intrinsics import fail, try_lock, unlock
from jitalloc._jit import helper, kernel
from jitalloc.errors import (
    BAD_ROW_LOCK,
    BUSY,
    LOCKS_MISSING,
    OUT_OF_PAGES,
    REFCOUNT_OVERFLOW,
    STATUS_BITS,
)
from jitalloc.pool.loops.pool import pool_take, pool_views
from jitalloc.pool.state import FIRST_PAGE, FREE, NUM_PAGES, RELEASED, STEP
from jitalloc.prefix.loops.freeing import reclaimable
from jitalloc.prefix.loops.nodes import following_column, node_records
from jitalloc.prefix.loops.paths import (
    NO_PAGE,
    UNUSED,
    USED,
    demote,
    path_lock,
    path_put_back,
    path_release,
    path_unlock,
)
from jitalloc.prefix.loops.prefix import count_lookup, negative_token
from jitalloc.prefix.loops.reclaim import reclaim
from jitalloc.prefix.loops.search import find
from jitalloc.prefix.loops.split_join import split_after
from jitalloc.prefix.state import NODE_LOCKS, NUM_CACHED, PREFIX_PAGE_SIZE, UNCACHED
from jitalloc.sequences.loops.committing import (
    commit_rows,
    write_tokens,
)
from jitalloc.sequences.loops.row_locks import has_prefix, row_lock_fault
from jitalloc.sequences.loops.tables import tables_column, tables_pages_of, tables_row
from jitalloc.sequences.state import (
    COMPUTED,
    KNOWN,
    LOCK_END,
    LOCKED,
    NAMESPACE,
    NUM_ROWS,
    ROW_PAGE_SIZE,
)
from jitalloc.state import INT32_MAX, NULL


@helper
def pages_held(pool, prefix):
    """Return how many pages are neither free nor to be had by evicting cached ones."""
    used = pool[NUM_PAGES] - pool[FIRST_PAGE] - pool[FREE] - pool[RELEASED]
    return used - reclaimable(pool, prefix) if has_prefix(prefix) else used


@helper
def make_room(pool, prefix, need):
    """Let cached pages give way until `need` pages are available; return 0 or a status word.

    Nothing gives way where that could not suffice.
    """
    available = pool[FREE] + pool[RELEASED]
    if need > available and has_prefix(prefix):
        return reclaim(pool, prefix, need - available, available)
    return np.int64(0) if need <= available else fail(OUT_OF_PAGES, available)


@helper
def begin_share(prefix, root, tokens, compute, pages):
    """Find and lock the cached pages that `tokens` begin with; `end_share` has to follow.

    Of the tokens `compute` are left. Returns `(status word, number of pages, end)`. What is locked
    stays when room is made.
    """
    count, end = find(prefix, root, tokens[: max(tokens.size - compute, 0)], pages)
    # Cached tokens are not negative.
    status = negative_token(tokens, count * prefix[PREFIX_PAGE_SIZE])
    path_lock(prefix, end, NO_PAGE, UNUSED)
    return status, count, end


@helper
def end_share(prefix, tokens, count, end, shared):
    """Book the look-up whose `count` pages a sequence shares now; where not, unlock them."""
    if shared != 0:
        path_lock(prefix, end, NO_PAGE, USED)
        path_unlock(prefix, end)
        count_lookup(prefix, end, tokens, count)
    else:
        path_unlock(prefix, end)
        path_put_back(prefix, end)


@helper
def name_prefix(tables, prefix, row, tokens, namespace, count, end):
    """Let `row` know its `tokens`, of which the first `count` pages, up to `end`, are cached."""
    start = count * tables[ROW_PAGE_SIZE]
    tables_column(tables, KNOWN)[row] = tokens.size
    tables_column(tables, COMPUTED)[row] = start
    tables_column(tables, NAMESPACE)[row] = namespace
    tables_column(tables, LOCKED)[row] = count
    tables_column(tables, LOCK_END)[row] = max(end, 0)
    write_tokens(tables, prefix, row, start, tokens[start:])


@helper
def share_prefix(pool, tables, prefix, row, tokens, namespace, compute):
    """Give the free row `row` the cached pages that `tokens` begin with, and new ones behind.

    Returns 0 or a status word; then nothing has changed.
    """
    _free_pages, refcount, _released = pool_views(pool)
    pages = tables_row(tables, row)[: tables_pages_of(tables, tokens.size)]
    status, count, end = begin_share(prefix, -2 - namespace, tokens, compute, pages)
    for j in range(count):
        if refcount[pages[j]] == INT32_MAX:
            status = fail(REFCOUNT_OVERFLOW, 0)
    if status == 0:
        status = make_room(pool, prefix, pages.size - count)
        if status < 0:  # what can be shared is at hand too
            status = fail(OUT_OF_PAGES, (-status >> STATUS_BITS) + count)
    end_share(prefix, tokens, count, end, np.int64(status == 0))
    if status < 0:
        for j in range(pages.size):
            pages[j] = NULL
        return status
    for j in range(count):
        refcount[pages[j]] += np.int32(1)
    pool_take(pool, pages[count:])
    name_prefix(tables, prefix, row, tokens, namespace, count, end)
    return np.int64(0)


@kernel("int64(int64[::1], int64[::1], int64)")
def sharing_room_cpu(pool, prefix, need):
    """Mutates pool and prefix cache: cached pages give way until `need` are available.

    Reads nothing else, requires nothing; returns how many have given way.
    """
    if not try_lock(pool):
        return fail(BUSY, 0)
    before = prefix[NUM_CACHED] if has_prefix(prefix) else np.int64(0)
    status = make_room(pool, prefix, need)
    if status == 0 and has_prefix(prefix):  # else there is nothing that could change
        pool[STEP] += 1
        status = before - prefix[NUM_CACHED]
    unlock(pool)
    return status


# For sequences of another device: `held` has what the index has locked for each row, first how many
# pages, then the last page of each path.


@kernel("int64(int64[::1], int64[::1], int64[::1], int64[::1])")
def sharing_follow_cpu(pool, prefix, held, locks):
    """Mutates the prefix cache: it locks what `locks` say instead of what `held` says; `held` then
    says the same.

    Reads `locks`, requires both to have two words a row, and pages there that are cached.
    """
    if not try_lock(pool):
        return fail(BUSY, 0)
    rows = held.size // 2
    for row in range(rows):
        same = held[row] == locks[row] and held[rows + row] == locks[rows + row]
        if not same and locks[row] > 0:
            split_after(prefix, locks[rows + row])
            path_lock(prefix, locks[rows + row], NO_PAGE, UNUSED)
    for row in range(rows):
        same = held[row] == locks[row] and held[rows + row] == locks[rows + row]
        if not same and held[row] > 0:
            path_release(prefix, held[rows + row], pool[STEP])
        held[row] = locks[row]
        held[rows + row] = locks[rows + row]
    unlock(pool)
    return np.int64(0)


@kernel("int64(int64[::1], int64[::1], int64[::1], int64, int64, int32[::1], int64, int32[::1])")
def sharing_find_cpu(pool, prefix, held, row, root, tokens, compute, out):
    """Mutates the prefix cache, `held` and `out`: the cached pages that `tokens` begin with are
    locked for `row`, `compute` of them being left.

    Reads `tokens`, requires `out` with room for every whole page of them, and a row that has
    nothing locked; returns how many pages are found.
    """
    if not try_lock(pool):
        return fail(BUSY, 0)
    status, count, end = begin_share(prefix, root, tokens, compute, out)
    if status < 0:
        end_share(prefix, tokens, count, end, np.int64(0))
    else:
        held[row] = status = count
        held[held.size // 2 + row] = max(end, 0)
    unlock(pool)
    return status


@kernel("int64(int64[::1], int64[::1], int64[::1], int64, int64, int32[::1], int64)")
def sharing_use_cpu(pool, prefix, held, row, root, tokens, shared):
    """Mutates the prefix cache: the look-up is booked where the sequence begins (`shared` is 1),
    and else undone, in `held` too.

    Reads `tokens`, requires `sharing_find_cpu` of the same before it.
    """
    if not try_lock(pool):
        return fail(BUSY, 0)
    count = held[row]
    end = held[held.size // 2 + row] if count > 0 else root
    end_share(prefix, tokens, count, end, shared)
    if shared == 0:
        held[row] = 0
        held[held.size // 2 + row] = 0
    unlock(pool)
    return np.int64(0)


@kernel("int64(int64[::1], int64[::1], int64[::1], int32[::1])")
def sharing_leave_cpu(pool, tables, prefix, rows):
    """Mutates pool, tables and prefix cache: full pages of known tokens enter the cache, as
    `rows_free_cpu` does it first. The clock is as before: its step is yet to come.

    Reads `rows`, requires live ones, each named once; returns how many pages went free.
    """
    if not try_lock(pool):
        return fail(BUSY, 0)
    pool[STEP] += 1
    released = commit_rows(pool, tables, prefix, rows)
    pool[STEP] -= 1
    unlock(pool)
    return released


@kernel("int64(int64[::1], int64[::1], int64[::1], int32[::1])")
def sharing_unlock_cpu(pool, prefix, held, rows):
    """Mutates the prefix cache and `held`: what was locked for `rows` is given back.

    Reads `rows`, requires their sequences to have ended.
    """
    if not try_lock(pool):
        return fail(BUSY, 0)
    for i in range(rows.size):
        row = rows[i]
        if held[row] > 0:
            path_release(prefix, held[held.size // 2 + row], pool[STEP])
            held[row] = 0
            held[held.size // 2 + row] = 0
    unlock(pool)
    return np.int64(0)


@kernel("int64(int64[::1], int64[::1], int64[::1])")
def sharing_pages_cpu(pool, prefix, out):
    """Mutates `out`: how many pages are free, reclaimable and held.

    Reads pool and prefix cache, requires three words.
    """
    if not try_lock(pool):
        return fail(BUSY, 0)
    held = pages_held(pool, prefix)
    out[0] = pool[FREE] + pool[RELEASED]
    out[1] = pool[NUM_PAGES] - pool[FIRST_PAGE] - out[0] - held
    out[2] = held
    unlock(pool)
    return np.int64(0)


@kernel("int64(int64[::1], int64[::1], int64[::1], int32[::1])")
def sharing_check_cpu(pool, tables, prefix, locks):
    """Mutates `locks`, how often rows lock each page.

    Reads all three slabs, requires `locks` of zeros, one a page, and that the checks of both parts
    alone have found nothing; returns the first fault.
    """
    if not try_lock(pool):
        return fail(BUSY, 0)
    status = np.int64(0)
    for row in range(tables[NUM_ROWS]):
        if status == 0 and row_lock_fault(tables, prefix, row, locks):
            status = fail(BAD_ROW_LOCK, row)
    nodes, following_pages = node_records(prefix), following_column(prefix)
    for page in range(following_pages.size):
        if status == 0 and following_pages[page] != UNCACHED and following_pages[page] < 0:
            if nodes[~following_pages[page], NODE_LOCKS] < locks[page]:
                status = fail(LOCKS_MISSING, page)
    unlock(pool)
    return status


@kernel("int64(int64[::1], int64[::1])")
def sharing_relock_cpu(tables, prefix):
    """Mutates the prefix cache: it locks what the rows lock.

    Reads the tables, requires a cache just restored, whose locks have been taken away, and that
    nobody else has yet: no lock is taken.
    """
    for row in range(tables[NUM_ROWS]):
        if tables_column(tables, LOCKED)[row] > 0:
            path_lock(prefix, tables_column(tables, LOCK_END)[row], NO_PAGE, UNUSED)
    demote(prefix)  # only now: what is locked is not
    return np.int64(0)
