"""Loops over rows of a block table that sequences live in: open, share, cut and close them."""

from __future__ import annotations

import numpy as np

from jitalloc._intrinsics import ALL_ONES, bit, fail, trailing_zeros, try_lock, unlock
from jitalloc._jit import helper, kernel
from jitalloc.errors import (
    BUSY,
    OUT_OF_ROWS,
    PAGE_CACHED,
    PAGE_FREE,
    ROW_REPEATED,
    TABLE_WIDTH,
)
from jitalloc.pool.loops.owners import page_fault, pool_release
from jitalloc.pool.loops.pool import pool_take, pool_views
from jitalloc.pool.state import FIRST_PAGE, NUM_PAGES, STEP
from jitalloc.prefix.loops.prefix import negative_token
from jitalloc.sequences.loops.committing import commit_rows, write_tokens
from jitalloc.sequences.loops.row_locks import has_prefix, is_cached, row_lock, row_unlock
from jitalloc.sequences.loops.sharing import make_room, pages_held, share_prefix
from jitalloc.sequences.loops.tables import (
    tables_column,
    tables_marks,
    tables_pages_of,
    tables_row,
    tables_row_code,
    tables_taken,
)
from jitalloc.sequences.state import (
    ACTIVE,
    BORN,
    COMPUTED,
    EVICTIONS,
    GAP,
    KNOWN,
    LAST_USED,
    LENGTH,
    MAX_PAGES,
    NAMESPACE,
    NUM_ROWS,
    PEAK_ACTIVE,
    PRIORITY,
    ROW_COLUMNS,
    SEQ_ALLOCATIONS,
    SEQ_FREES,
    TOKENS_DROPPED,
    USES,
)
from jitalloc.state import INT32_MAX, NULL


@helper
def lowest_free_row(tables):
    """Return the lowest row without a sequence, or a status word."""
    taken = tables_taken(tables)
    for w in range(taken.size):
        if taken[w] != ALL_ONES:
            row = w * 64 + trailing_zeros(~taken[w])
            if row < tables[NUM_ROWS]:
                return np.int64(row)
    return fail(OUT_OF_ROWS, 0)


@helper
def free_rows(tables, out):
    """Write the lowest rows without a sequence to `out`; return how many there are for it."""
    taken, count = tables_taken(tables), np.int64(0)
    for w in range(taken.size):
        word = ~taken[w]
        while word != np.uint64(0) and count < out.size:
            row = np.int64(w * 64) + trailing_zeros(word)
            if row >= tables[NUM_ROWS]:
                break
            out[count] = row
            count += 1
            word &= ~bit(row)
    return count


@helper
def touch(tables, row, step):
    """Book one write to the sequence in `row`."""
    tables_column(tables, LAST_USED)[row] = step
    tables_column(tables, USES)[row] += 1


@helper
def open_row(pool, tables, row, length, priority):
    """Let a new sequence of `length` tokens live in `row`."""
    tables_taken(tables)[row >> 6] |= bit(row)
    tables_column(tables, LENGTH)[row] = length
    tables_column(tables, PRIORITY)[row] = priority
    tables_column(tables, BORN)[row] = pool[STEP] + 1
    touch(tables, row, pool[STEP] + 1)
    tables[SEQ_ALLOCATIONS] += 1
    tables[ACTIVE] += 1
    tables[PEAK_ACTIVE] = max(tables[PEAK_ACTIVE], tables[ACTIVE])


@helper
def drop_pages(pool, tables, row, start, stop):
    """Give up the pages `start .. stop-1` of `row` and close the gap; return how many went free."""
    length = tables_column(tables, LENGTH)[row]
    pages = tables_row(tables, row)
    end = tables_pages_of(tables, length)
    released = pool_release(pool, pages[start:stop])
    gap = stop - start
    for j in range(stop, end):
        pages[j - gap] = pages[j]
    for j in range(end - gap, end):
        pages[j] = NULL
    return released


@helper
def close_row(pool, tables, prefix, row):
    """End the sequence in `row`; return how many of its pages went free."""
    row_unlock(pool, tables, prefix, row)
    end = tables_pages_of(tables, tables_column(tables, LENGTH)[row])
    released = drop_pages(pool, tables, row, np.int64(0), end)
    for column in range(ROW_COLUMNS):
        tables_column(tables, column)[row] = 0
    tables_taken(tables)[row >> 6] &= ~bit(row)
    tables[SEQ_FREES] += 1
    tables[ACTIVE] -= 1
    return released


@helper
def mark_rows(tables, rows):
    """Mark live, distinct rows; return 0, or a status word with nothing marked."""
    marks = tables_marks(tables)
    for i in range(rows.size):
        row = np.int64(rows[i])
        code = tables_row_code(tables, row)
        if code == 0 and marks[row >> 6] & bit(row) != np.uint64(0):
            code = ROW_REPEATED
        if code != 0:
            unmark_rows(tables, rows, i)
            return fail(code, i)
        marks[row >> 6] |= bit(row)
    return np.int64(0)


@helper
def unmark_rows(tables, rows, n):
    """Take the marks off the first `n` rows."""
    marks = tables_marks(tables)
    for i in range(n):
        marks[rows[i] >> 6] &= ~bit(rows[i])


@helper
def live_rows(tables, rows):
    """Return 0 if all rows are live and distinct, else a status word."""
    status = mark_rows(tables, rows)
    if status == 0:
        unmark_rows(tables, rows, rows.size)
    return status


@helper
def share_row(pool, tables, row, owners):
    """Return whether every page of `row` can take `owners` more owners."""
    _free_pages, refcount, _released = pool_views(pool)
    pages = tables_row(tables, row)
    for j in range(tables_pages_of(tables, tables_column(tables, LENGTH)[row])):
        if refcount[pages[j]] > INT32_MAX - owners:
            return False
    return True


@helper
def cap_facts(tables, row, num_tokens):
    """Let `row` be `num_tokens` tokens long, and what is said of its tokens hold for these."""
    tables_column(tables, LENGTH)[row] = num_tokens
    for column in (KNOWN, COMPUTED):
        facts = tables_column(tables, column)
        facts[row] = min(facts[row], num_tokens)
    if num_tokens < tables_column(tables, GAP)[row]:
        tables_column(tables, GAP)[row] = 0


@helper
def copy_row(pool, tables, prefix, src, dst, num_tokens):
    """Let the empty row `dst` share the pages of the first `num_tokens` tokens of `src`, and be as
    far computed.
    """
    n = tables_pages_of(tables, num_tokens)
    row_lock(tables, prefix, src, dst, n)
    _free_pages, refcount, _released = pool_views(pool)
    pages, target = tables_row(tables, src), tables_row(tables, dst)
    for j in range(n):
        refcount[pages[j]] += np.int32(1)
        target[j] = pages[j]
    tables_column(tables, COMPUTED)[dst] = tables_column(tables, COMPUTED)[src]
    cap_facts(tables, dst, num_tokens)


@kernel("int64(int64[::1], int64[::1], int64[::1], int64, int64, int64)")
def rows_allocate_cpu(pool, tables, prefix, num_tokens, namespace, priority):
    """Mutates pool and tables: a sequence begins in the lowest free row; and the prefix cache,
    where cached pages give way.

    Reads its other arguments, requires no number below 0; returns the row.
    """
    if not try_lock(pool):
        return fail(BUSY, 0)
    n = tables_pages_of(tables, num_tokens)
    row = fail(TABLE_WIDTH, 0) if n > tables[MAX_PAGES] else lowest_free_row(tables)
    if row >= 0:
        status = make_room(pool, prefix, n)
        if status == 0:
            status = pool_take(pool, tables_row(tables, row)[:n])
        if status < 0:
            row = status
        else:
            open_row(pool, tables, row, num_tokens, priority)
            tables_column(tables, NAMESPACE)[row] = namespace  # of tokens told later
            pool[STEP] += 1
    unlock(pool)
    return row


@kernel("int64(int64[::1], int64[::1], int64[::1], int32[::1], int64, int64, int64)")
def rows_allocate_tokens_cpu(pool, tables, prefix, tokens, namespace, priority, compute):
    """Mutates pool, tables and prefix cache: a sequence begins in the lowest free row with the
    cached pages that `tokens` begin with, and new ones behind.

    Reads `tokens`, of which `compute` are left to be computed, requires a prefix cache and no
    number but the priority below 0; returns the row.
    """
    if not try_lock(pool):
        return fail(BUSY, 0)
    n = tables_pages_of(tables, tokens.size)
    row = fail(TABLE_WIDTH, 0) if n > tables[MAX_PAGES] else lowest_free_row(tables)
    if row >= 0:
        status = share_prefix(pool, tables, prefix, row, tokens, namespace, compute)
        if status < 0:
            row = status
        else:
            open_row(pool, tables, row, tokens.size, priority)
            pool[STEP] += 1
    unlock(pool)
    return row


@helper
def adoptable(pool, prefix, pages):
    """Return 0 where each of `pages` is held, named once and not cached, else a status word."""
    _free_pages, refcount, _released = pool_views(pool)
    status, seen = np.int64(0), np.int64(0)
    for i in range(pages.size):
        page, code = np.int64(pages[i]), 0
        if page < pool[FIRST_PAGE] or page >= pool[NUM_PAGES]:
            code = page_fault(pool, page)
        elif refcount[page] == 0:
            code = PAGE_FREE
        elif refcount[page] < 0 or is_cached(prefix, page):
            code = PAGE_CACHED
        if code != 0:
            status = fail(code, i)
            break
        refcount[page] = -refcount[page]  # seen
        seen += 1
    for i in range(seen):
        refcount[pages[i]] = -refcount[pages[i]]
    return status


@kernel("int64(int64[::1], int64[::1], int64[::1], int32[::1], int32[:], int64, int64, int64)")
def rows_adopt_cpu(pool, tables, prefix, tokens, pages, namespace, priority, computed):
    """Mutates pool, tables and prefix cache (its token ids): a sequence of known `tokens`, the
    first `computed` of them computed, begins in the lowest free row with `pages`, each of which
    passes from the caller to it.

    Reads its other arguments, requires as many pages as the tokens need; returns the row.
    """
    if not try_lock(pool):
        return fail(BUSY, 0)
    row = fail(TABLE_WIDTH, 0) if pages.size > tables[MAX_PAGES] else lowest_free_row(tables)
    if row >= 0:
        status = negative_token(tokens, np.int64(0))
        if status == 0:
            status = adoptable(pool, prefix, pages)
        if status < 0:
            row = status
        else:
            target = tables_row(tables, row)
            for j in range(pages.size):
                target[j] = pages[j]
            open_row(pool, tables, row, tokens.size, priority)
            tables_column(tables, COMPUTED)[row] = computed
            tables_column(tables, NAMESPACE)[row] = namespace
            if has_prefix(prefix):
                tables_column(tables, KNOWN)[row] = tokens.size
                write_tokens(tables, prefix, row, np.int64(0), tokens)
            pool[STEP] += 1
    unlock(pool)
    return row


@kernel("int64(int64[::1], int64[::1], int64[::1], int32[:], int64, int64)")
def rows_free_cpu(pool, tables, prefix, rows, commit, evicted):
    """Mutates pool, tables and prefix cache: the sequences in `rows` end, or none of them does.

    Reads `rows`, requires nothing of them. `commit` is 1 where full pages of known and computed
    tokens shall enter the cache first. Returns how many pages went free; with `evicted`, where the
    sequences give way to others, what can be reclaimed counts too.
    """
    if not try_lock(pool):
        return fail(BUSY, 0)
    status = live_rows(tables, rows)
    if status == 0:
        pool[STEP] += 1
        held = pages_held(pool, prefix) if evicted != 0 else np.int64(0)
        length = tables_column(tables, LENGTH)
        if commit != 0:
            status = commit_rows(pool, tables, prefix, rows)
        for i in range(rows.size):
            row = np.int64(rows[i])
            tables[TOKENS_DROPPED] += evicted * length[row]
            status += close_row(pool, tables, prefix, row)
        tables[EVICTIONS] += evicted * rows.size
        if evicted != 0:
            status = held - pages_held(pool, prefix)
    unlock(pool)
    return status
