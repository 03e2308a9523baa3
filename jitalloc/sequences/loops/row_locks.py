"""Locks that sequences hold on cached pages, for the loops of sequences that share them.

`prefix` is the slab of the prefix cache, or an array of one element where there is none.
"""

from __future__ import annotations

import numpy as np

from jitalloc._intrinsics import bit
from jitalloc._jit import counting, helper
from jitalloc.pool.loops.pool import pool_views
from jitalloc.pool.state import STEP
from jitalloc.prefix.loops.nodes import following_column, previous_column
from jitalloc.prefix.loops.paths import NO_PAGE, UNUSED, path_lock, path_release
from jitalloc.prefix.loops.split_join import split_after
from jitalloc.prefix.state import UNCACHED
from jitalloc.sequences.loops.tables import tables_column, tables_row, tables_taken
from jitalloc.sequences.state import (
    COMPUTED,
    GAP,
    KNOWN,
    LENGTH,
    LOCK_END,
    LOCKED,
    NAMESPACE,
    NUM_ROWS,
    ROW_PAGE_SIZE,
)

SHARED_FACTS = (KNOWN, NAMESPACE, LOCKED, LOCK_END, GAP)


@helper
def has_prefix(prefix):
    """Return whether a prefix cache stands behind the sequences."""
    return prefix.size > 1


@helper
def is_cached(prefix, page):
    """Return whether the prefix cache, where there is one, holds `page`."""
    return has_prefix(prefix) and following_column(prefix)[page] != UNCACHED


@helper
def shortened(tables, prefix, row, keep):
    """Return `(depth, end)` of the path that `row` locks where only its first `keep` pages stay."""
    depth, end = tables_column(tables, LOCKED)[row], tables_column(tables, LOCK_END)[row]
    if keep >= depth:
        return depth, end
    if keep == 0:
        return np.int64(0), np.int64(0)
    above = np.int64(end)
    for _ in range(depth - keep):
        above = np.int64(previous_column(prefix)[above])
    if above != tables_row(tables, row)[keep - 1]:
        return depth, end  # a window has cut the row: what lies behind the gap needs the whole path
    return keep, above


@helper
def row_lock(tables, prefix, src, dst, keep):
    """Let the sequence in `dst` know the tokens that the one in `src` does, and lock what that one
    would lock of its first `keep` pages.
    """
    if has_prefix(prefix):
        for column in SHARED_FACTS:
            facts = tables_column(tables, column)
            facts[dst] = facts[src]
        depth, end = shortened(tables, prefix, src, keep)
        tables_column(tables, LOCKED)[dst] = depth
        tables_column(tables, LOCK_END)[dst] = end
        if depth > 0:
            split_after(prefix, end)
            path_lock(prefix, end, NO_PAGE, UNUSED)


@helper
def row_unlock(pool, tables, prefix, row):
    """Give back the locks of the sequence in `row`."""
    locked, lock_end = tables_column(tables, LOCKED), tables_column(tables, LOCK_END)
    if locked[row] > 0:
        path_release(prefix, lock_end[row], pool[STEP])
        locked[row] = 0
        lock_end[row] = 0


@helper
def row_shorten(pool, tables, prefix, row, keep):
    """Lock only the first `keep` cached pages, if they still are the first of the row."""
    locked, lock_end = tables_column(tables, LOCKED), tables_column(tables, LOCK_END)
    depth, above = shortened(tables, prefix, row, keep)
    end = lock_end[row]
    if depth < locked[row]:
        if depth > 0:
            split_after(prefix, above)
            path_lock(prefix, above, NO_PAGE, UNUSED)
        lock_end[row] = above
        locked[row] = depth
        path_release(prefix, end, pool[STEP])


@helper
def is_cut(tables, row):
    """Return whether a window has cut `row` above the end of the path that it locks."""
    depth = tables_column(tables, LOCKED)[row]
    end = tables_column(tables, LOCK_END)[row]
    return depth > 0 and tables_row(tables, row)[depth - 1] != end


@helper
def common_pages(tables, row, other, start, stop):
    """Return the first page from `start` to `stop` in which two rows differ, or `stop`."""
    mine, theirs = tables_row(tables, row), tables_row(tables, other)
    page = start
    while page < stop and theirs[page] == mine[page]:
        page += 1
    return page


@helper
def same_pages(tables, row, other, depth, full, end):
    """Return up to which page, from `depth` on, the row `other` has those of `row`.

    0 where it does not lock the same path up to `end`: then it is no fork that could lock on.
    """
    locked, lock_end = tables_column(tables, LOCKED), tables_column(tables, LOCK_END)
    if tables_taken(tables)[other >> 6] & bit(other) == np.uint64(0) or other == row:
        return np.int64(0)
    if locked[other] != depth or (depth > 0 and lock_end[other] != end):
        return np.int64(0)
    return common_pages(tables, row, other, depth, full)


@counting
def lockable(pool, tables, prefix, row, depth, start, full, end):
    """Return the first page of `row`, from `start` on, with an owner that could not lock it.

    Such a page must not be cached: it would seem to give way, and yet not go free. Its owners
    may be the row and forks that have all pages before it too; not a fork that a window has
    cut, and not the user.
    """
    _free_pages, refcount, _released = pool_views(pool)
    pages = tables_row(tables, row)
    parting = np.zeros(full - depth + 1, np.int64)  # how many forks have so many pages in common
    forks = np.int64(0)
    for other in range(tables[NUM_ROWS]):
        same = same_pages(tables, row, other, depth, full, end)
        if same > depth:
            parting[same - depth] += 1
            forks += 1
    for page in range(depth, full):
        if page >= start and refcount[pages[page]] != 1 + forks:
            return np.int64(page)
        forks -= parting[page + 1 - depth]
    return full


@helper
def lock_sharers(tables, prefix, row, depth, full, end):
    """Let the forks of `row` lock the cached pages `depth .. full-1` that they share with it."""
    locked, lock_end = tables_column(tables, LOCKED), tables_column(tables, LOCK_END)
    computed, length = tables_column(tables, COMPUTED), tables_column(tables, LENGTH)
    pages, size = tables_row(tables, row), tables[ROW_PAGE_SIZE]
    for other in range(tables[NUM_ROWS]):
        same = same_pages(tables, row, other, depth, full, end)
        if same > depth:
            last = np.int64(pages[same - 1])
            split_after(prefix, last)
            path_lock(prefix, last, end, UNUSED)
            locked[other] = same
            lock_end[other] = last
            computed[other] = max(computed[other], min(same * size, length[other]))


@helper
def row_lock_fault(tables, prefix, row, locks):
    """Return whether `row` contradicts the path that it locks; count its locks in `locks`."""
    following_pages, previous_pages = following_column(prefix), previous_column(prefix)
    depth, page = tables_column(tables, LOCKED)[row], tables_column(tables, LOCK_END)[row]
    if depth == 0:
        return False
    if page < 0 or page >= following_pages.size or following_pages[page] >= 0:
        return True
    sure = tables_column(tables, KNOWN)[row] // tables[ROW_PAGE_SIZE]
    pages = tables_row(tables, row)
    for i in range(depth - 1, -1, -1):
        if page < 0 or following_pages[page] == UNCACHED or (i < sure and pages[i] != page):
            return True
        locks[page] += np.int32(1)
        page = np.int64(previous_pages[page])
    return page >= 0
