"""Loops of eviction: which sequence gives way, and what it gives up."""

from __future__ import annotations

import numpy as np

from jitalloc._intrinsics import bit, fail, try_lock, unlock
from jitalloc._jit import helper, kernel
from jitalloc.errors import (
    BUSY,
)
from jitalloc.pool.loops.pool import pool_views
from jitalloc.pool.state import STEP
from jitalloc.sequences.loops.row_locks import has_prefix, is_cached, row_shorten
from jitalloc.sequences.loops.rows import close_row, drop_pages, live_rows, touch
from jitalloc.sequences.loops.sharing import pages_held
from jitalloc.sequences.loops.tables import (
    tables_column,
    tables_marks,
    tables_pages_of,
    tables_row,
    tables_taken,
)
from jitalloc.sequences.state import (
    BORN,
    COMPUTED,
    EVICTIONS,
    GAP,
    KNOWN,
    LAST_USED,
    LENGTH,
    LFU,
    LOCK_END,
    LOCKED,
    LONGEST,
    NUM_ROWS,
    PINNED,
    PRIORITY,
    PRIORITY_FIRST,
    ROW_PAGE_SIZE,
    STREAMING,
    TOKENS_DROPPED,
    USES,
)


@helper
def window_cut(tables, length, sink_tokens, window_tokens):
    """Return the range of pages between the sinks and the last `window_tokens` tokens."""
    end = tables_pages_of(tables, length)
    start = min(tables_pages_of(tables, sink_tokens), end)
    stop = max(length - window_tokens, np.int64(0)) // tables[ROW_PAGE_SIZE]
    if window_tokens == 0:
        stop = end
    return start, max(start, stop)


@helper
def cut_window(pool, tables, prefix, row, sink_tokens, window_tokens):
    """Drop the pages between sinks and window; return how many tokens that are.

    The row keeps its lock as long as the path that it locks goes on behind the gap: all of it is
    needed.
    """
    length = tables_column(tables, LENGTH)
    start, stop = window_cut(tables, length[row], sink_tokens, window_tokens)
    kept = length[row] - (stop - start) * tables[ROW_PAGE_SIZE]
    kept = max(kept, start * tables[ROW_PAGE_SIZE]) if stop > start else length[row]
    drop_pages(pool, tables, row, start, stop)
    dropped = length[row] - kept
    length[row] = kept
    tables[TOKENS_DROPPED] += dropped
    computed, sinks = tables_column(tables, COMPUTED), start * tables[ROW_PAGE_SIZE]
    left = min(computed[row], sinks)  # and those behind the gap, where all before them are computed
    computed[row] = max(left, computed[row] - (stop - start) * tables[ROW_PAGE_SIZE])
    if has_prefix(prefix) and stop > start:
        known = tables_column(tables, KNOWN)
        known[row] = min(known[row], sinks)
        # What stands behind a gap has seen tokens that are gone: it never enters the cache.
        gap, at = tables_column(tables, GAP), sinks + 1
        if gap[row] == 0 or at < gap[row]:
            gap[row] = at
        if kept < gap[row]:
            gap[row] = 0
        pages, end = tables_row(tables, row), tables_column(tables, LOCK_END)[row]
        for j in range(start, tables_pages_of(tables, kept)):
            if tables_column(tables, LOCKED)[row] > 0 and pages[j] == end:
                return dropped
        row_shorten(pool, tables, prefix, row, start)
    return dropped


@kernel("int64(int64[::1], int64[::1], int64[::1], int64[::1], int64, int64, int64, int64)")
def eviction_window_cpu(pool, tables, prefix, out, row, sink_tokens, window_tokens, evicted):
    """Mutates pool, tables and prefix cache: `row` keeps its sinks and its window; and `out`:
    tokens dropped, pages given up.

    Reads nothing else, requires a live row and two words. `evicted`: 1 where it is an eviction.
    """
    if not try_lock(pool):
        return fail(BUSY, 0)
    touch(tables, row, pool[STEP] + 1)
    pool[STEP] += 1
    held = pages_held(pool, prefix)
    out[0] = cut_window(pool, tables, prefix, row, sink_tokens, window_tokens)
    out[1] = held - pages_held(pool, prefix)
    tables[EVICTIONS] += evicted
    unlock(pool)
    return np.int64(0)


@kernel("int64(int64[::1], int64[::1], int64[::1], int32[:], int64[::1], int64, int64)")
def eviction_window_batch_cpu(pool, tables, prefix, rows, out, sink_tokens, window_tokens):
    """Mutates pool, tables and prefix cache: each of `rows` keeps its sinks and its window, or none
    is cut; and `out`, the tokens that each one drops.

    Reads `rows`, requires `out` of their length.
    """
    if not try_lock(pool):
        return fail(BUSY, 0)
    status = live_rows(tables, rows)
    if status == 0:
        pool[STEP] += 1
        for i in range(rows.size):
            row = np.int64(rows[i])
            touch(tables, row, pool[STEP])
            out[i] = cut_window(pool, tables, prefix, row, sink_tokens, window_tokens)
    unlock(pool)
    return status


@helper
def cut_range(tables, row, policy, sink_tokens, window_tokens):
    """Return the range of pages of `row` that its eviction gives up."""
    length = tables_column(tables, LENGTH)[row]
    if policy == STREAMING:
        return window_cut(tables, length, sink_tokens, window_tokens)
    return np.int64(0), tables_pages_of(tables, length)


@helper
def goes_first(tables, policy, row, best):
    """Return whether `row` gives way before `best`: by the policy, then the older one."""
    if policy == LFU:
        column, sign = USES, 1
    elif policy == LONGEST or policy == STREAMING:
        column, sign = LENGTH, -1
    elif policy == PRIORITY_FIRST:
        column, sign = PRIORITY, 1
    else:
        column, sign = LAST_USED, 1
    value = tables_column(tables, column)
    if value[row] != value[best]:
        return sign * value[row] < sign * value[best]
    value = tables_column(tables, LAST_USED)
    if value[row] != value[best]:
        return value[row] < value[best]
    return tables_column(tables, BORN)[row] < tables_column(tables, BORN)[best]


@helper
def next_victim(tables, policy, sink_tokens, window_tokens):
    """Return the unmarked, unpinned row that gives way first, or -1; ties go to the lower row."""
    taken, marks = tables_taken(tables), tables_marks(tables)
    pinned = tables_column(tables, PINNED)
    best = np.int64(-1)
    for row in range(tables[NUM_ROWS]):
        if (taken[row >> 6] & ~marks[row >> 6] & bit(row)) == np.uint64(0) or pinned[row] != 0:
            continue
        if policy == STREAMING:
            start, stop = cut_range(tables, row, policy, sink_tokens, window_tokens)
            if stop <= start:
                continue
        if best < 0 or goes_first(tables, policy, row, best):
            best = np.int64(row)
    return best


@kernel("int64(int64[::1], int64, int64, int64)")
def eviction_select_cpu(tables, policy, sink_tokens, window_tokens):
    """Mutates nothing.

    Reads the tables, requires that they stay as they are: no lock is taken. Returns the row that
    gives way first, or -1.
    """
    return next_victim(tables, policy, sink_tokens, window_tokens)


@helper
def count_cuts(tables, owners, policy, sink_tokens, window_tokens):
    """Count in `owners` how often evictions could take each page off a sequence."""
    taken = tables_taken(tables)
    pinned = tables_column(tables, PINNED)
    for row in range(tables[NUM_ROWS]):
        if taken[row >> 6] & bit(row) != np.uint64(0) and pinned[row] == 0:
            start, stop = cut_range(tables, row, policy, sink_tokens, window_tokens)
            pages = tables_row(tables, row)
            for j in range(start, stop):
                owners[pages[j]] += np.int32(1)


@kernel("int64(int64[::1], int64[::1], int64[::1], int32[::1], int64[:, ::1], int64, int64[::1])")
def eviction_to_cpu(pool, tables, prefix, owners, out, target, rule):
    """Mutates pool, tables and prefix cache: sequences give way until no more than `target` pages
    are held, or nobody is left whom it would help; `out[k]`: row, tokens dropped, pages given up;
    and `owners`, which is scratch.

    Reads `rule`: policy, sinks, window. Requires `owners` of zeros, one a page, and a line of `out`
    for each row; returns how many evictions there were.
    """
    if not try_lock(pool):
        return fail(BUSY, 0)
    policy, sink_tokens, window_tokens = rule[0], rule[1], rule[2]
    _free_pages, refcount, _released = pool_views(pool)
    marks = tables_marks(tables)
    # How many owners of each page could go?
    count_cuts(tables, owners, policy, sink_tokens, window_tokens)
    # One victim after the other; who would set no page free is passed over.
    victims = 0
    pool[STEP] += 1
    held = pages_held(pool, prefix)
    while held > target:
        row = next_victim(tables, policy, sink_tokens, window_tokens)
        if row < 0:
            break
        start, stop = cut_range(tables, row, policy, sink_tokens, window_tokens)
        pages = tables_row(tables, row)
        # A page is given up only if evictions could take all of its owners away; the prefix
        # cache is none of them, for what it alone holds can be reclaimed.
        useful = False
        for j in range(start, stop):
            cached = np.int32(is_cached(prefix, pages[j]))
            useful = useful or owners[pages[j]] + cached == refcount[pages[j]]
        if not useful:
            marks[row >> 6] |= bit(row)
            continue
        for j in range(start, stop):
            owners[pages[j]] -= np.int32(1)
        out[victims, 0] = row
        if policy == STREAMING:
            out[victims, 1] = cut_window(pool, tables, prefix, row, sink_tokens, window_tokens)
            touch(tables, row, pool[STEP])
        else:
            out[victims, 1] = tables_column(tables, LENGTH)[row]
            close_row(pool, tables, prefix, row)
            tables[TOKENS_DROPPED] += out[victims, 1]
        left = pages_held(pool, prefix)
        out[victims, 2] = held - left
        held = left
        tables[EVICTIONS] += 1
        victims += 1
    # The marks are scratch: zero again.
    for w in range(marks.size):
        marks[w] = np.uint64(0)
    unlock(pool)
    return np.int64(victims)
