"""Loops of sequences on a pool: grow, fork, reorder and truncate them.

Each kernel works on the slab of a pool and the slab of a block table, under the pool's lock.
"""

from __future__ import annotations

import numpy as np

from jitalloc._intrinsics import bit, fail, try_lock, unlock
from jitalloc._jit import helper, kernel
from jitalloc.errors import (
    BUSY,
    CHANGED,
    NEGATIVE,
    POSITION_RANGE,
    REFCOUNT_OVERFLOW,
    ROW_NOT_EMPTY,
)
from jitalloc.pool.loops.pool import pool_reserve, pool_views
from jitalloc.pool.state import NUM_PAGES, STEP
from jitalloc.prefix.loops.paths import NO_PAGE, UNUSED, path_lock, path_release, path_unlock
from jitalloc.prefix.loops.prefix import negative_token
from jitalloc.sequences.loops.appending import (
    append_claim,
    append_need,
    append_tokens,
    append_undo,
)
from jitalloc.sequences.loops.committing import copy_tokens
from jitalloc.sequences.loops.row_locks import SHARED_FACTS, has_prefix, row_shorten
from jitalloc.sequences.loops.rows import (
    cap_facts,
    copy_row,
    drop_pages,
    live_rows,
    lowest_free_row,
    mark_rows,
    open_row,
    share_row,
    touch,
    unmark_rows,
)
from jitalloc.sequences.loops.sharing import make_room
from jitalloc.sequences.loops.tables import (
    tables_column,
    tables_marks,
    tables_pages_of,
    tables_row,
    tables_row_code,
)
from jitalloc.sequences.state import (
    COMPUTED,
    LENGTH,
    LOCK_END,
    LOCKED,
    PRIORITY,
    SEQ_FORKS,
)
from jitalloc.state import NULL

# What a sequence takes over from the one that it continues.
INHERITED = (LENGTH, COMPUTED, *SHARED_FACTS)


@helper
def append_all(pool, tables, prefix, batch, tokens, slots, copied):
    """Append as `sequences_append_cpu` does; `batch`: rows, counts, and whether what stands before
    the new tokens is computed.
    """
    rows, counts, _computed = batch
    if not try_lock(pool):
        return fail(BUSY, 0)
    # Is the batch sound? Rows give up their share of last pages, to be copied.
    status = live_rows(tables, rows)
    if status == 0:
        status = negative_token(tokens, np.int64(0))
    if status == 0:
        need = append_need(pool, tables, rows, counts, copied[0])
        total = np.int64(0)
        for i in range(rows.size):
            total += counts[i if counts.size > 1 else 0]
        status = need
        if need >= 0:
            # More than the whole pool is refused for that, however small the buffer is.
            fits = total == slots.size or need > pool[NUM_PAGES]
            status = np.int64(0) if fits else fail(CHANGED, 0)
        # Are the pages there?
        if status == 0:
            status = make_room(pool, prefix, need)
        # Slots and pages are written, then what is known of the tokens.
        if status == 0:
            pool_reserve(pool, need)
            status = append_claim(pool, tables, batch, slots, copied)
            pool[STEP] += 1
            if has_prefix(prefix):
                for i in range(status):
                    copy_tokens(tables, prefix, copied[0, i], copied[1, i])
                append_tokens(pool, tables, prefix, rows, counts, tokens)
        else:
            append_undo(pool, copied[0])
    unlock(pool)
    return status


@kernel(
    "int64(int64[::1], int64[::1], int64[::1], int32[:], int64[:], int32[::1], int64[::1],"
    "int32[:, ::1])"
)
def sequences_append_cpu(pool, tables, prefix, rows, counts, tokens, slots, copied):
    """Mutates pool, tables and prefix cache (its token ids, and where cached pages give way),
    `slots` of the new tokens, and `copied`: first scratch, then the pages copied, from where to
    where. What stands before new tokens counts as computed.

    Reads `rows`; `counts`, one a row or one for all; `tokens`, an id a slot or none. Requires
    `slots` for all new tokens, and a column of `copied` a row; returns how many pages are copied.
    """
    return append_all(pool, tables, prefix, (rows, counts, True), tokens, slots, copied)


@kernel(
    "int64(int64[::1], int64[::1], int64[::1], int32[:], int64[:], int32[::1], int64[::1],"
    "int32[:, ::1])"
)
def sequences_append_ahead_cpu(pool, tables, prefix, rows, counts, tokens, slots, copied):
    """Mutates what `sequences_append_cpu` does, but that nothing counts as computed by it.

    Reads and requires the same. A kernel of its own: its twin on the GPU has no argument to spare.
    """
    return append_all(pool, tables, prefix, (rows, counts, False), tokens, slots, copied)


@kernel("int64(int64[::1], int64[::1], int64[::1], int64, int64)")
def sequences_fork_cpu(pool, tables, prefix, src, num_tokens):
    """Mutates pool, tables and prefix cache: a sequence begins in the lowest free row that shares
    pages and locks of the first `num_tokens` tokens of `src`, or of all where that is below 0.

    Reads nothing else, requires `src` to be a live row; returns the new one.
    """
    if not try_lock(pool):
        return fail(BUSY, 0)
    row = lowest_free_row(tables)
    length = tables_column(tables, LENGTH)[src]
    kept = num_tokens if num_tokens >= 0 else length
    if row >= 0 and kept > length:
        row = fail(POSITION_RANGE, length)
    if row >= 0:
        if share_row(pool, tables, src, np.int64(1)):
            priority = tables_column(tables, PRIORITY)[src]
            open_row(pool, tables, row, np.int64(0), priority)
            copy_row(pool, tables, prefix, src, row, kept)
            tables[SEQ_FORKS] += 1
            pool[STEP] += 1
        else:
            row = fail(REFCOUNT_OVERFLOW, 0)
    unlock(pool)
    return row


@kernel("int64(int64[::1], int64[::1], int64[::1], int32[:], int32[:])")
def sequences_fork_batch_cpu(pool, tables, prefix, src_rows, dst_rows):
    """Mutates pool, tables and prefix cache: each of `dst_rows`, live and empty, shares all pages
    and locks of its source, or none does.

    Reads both arrays, requires them of one length. Detail of a status word: the position, plus the
    size of the batch where it is one of `src_rows`.
    """
    if not try_lock(pool):
        return fail(BUSY, 0)
    batch = dst_rows.size
    length = tables_column(tables, LENGTH)
    # Are all pairs sound, and all pages to be shared?
    status = live_rows(tables, dst_rows)
    for i in range(batch):
        if status == 0 and length[dst_rows[i]] != 0:
            status = fail(ROW_NOT_EMPTY, i)
    for i in range(batch):
        if status == 0:
            src = np.int64(src_rows[i])
            code = tables_row_code(tables, src)
            if code == 0 and not share_row(pool, tables, src, batch):
                code = REFCOUNT_OVERFLOW
            if code != 0:
                status = fail(code, batch + i)
    if status == 0:
        # A destination is empty, so a row that is both is copied as it was before the call.
        mark_rows(tables, dst_rows)
        marks = tables_marks(tables)
        for i in range(batch):
            src, dst = np.int64(src_rows[i]), np.int64(dst_rows[i])
            if marks[src >> 6] & bit(src) == np.uint64(0):
                copy_row(pool, tables, prefix, src, dst, length[src])
            touch(tables, dst, pool[STEP] + 1)
        unmark_rows(tables, dst_rows, batch)
        tables[SEQ_FORKS] += batch
        pool[STEP] += 1
    unlock(pool)
    return status


@kernel(
    "int64(int64[::1], int64[::1], int64[::1], int32[:], int32[:], int64[:, ::1], int32[:, ::1])"
)
def sequences_reorder_cpu(pool, tables, prefix, rows, parents, facts, pages):
    """Mutates pool, tables and prefix cache: each of `rows` goes on as its parent was before the
    call, or none does; and `facts` and `pages`, scratch for what the parents had.

    Reads `rows` and `parents`, requires them of one length, a line of scratch for each, and lines
    of `pages` as wide as the longest parent: it fails where that has grown.
    """
    if not try_lock(pool):
        return fail(BUSY, 0)
    _free_pages, refcount, _released = pool_views(pool)
    batch = rows.size
    length = tables_column(tables, LENGTH)
    # Are all pairs sound, and all pages to be shared?
    status = live_rows(tables, rows)
    for i in range(batch):
        if status == 0:
            parent = np.int64(parents[i])
            code = tables_row_code(tables, parent)
            if code == 0 and not share_row(pool, tables, parent, batch):
                code = REFCOUNT_OVERFLOW
            elif code == 0 and tables_pages_of(tables, length[parent]) > pages.shape[1]:
                code = CHANGED
            if code != 0:
                status = fail(code, batch + i)
    if status < 0:
        unlock(pool)
        return status
    # What the parents have is kept aside, and owned and locked once more.
    locked = tables_column(tables, LOCKED)
    for i in range(batch):
        parent = np.int64(parents[i])
        for k in range(len(INHERITED)):
            facts[i, k] = tables_column(tables, INHERITED[k])[parent]
        if locked[parent] > 0:
            path_lock(prefix, tables_column(tables, LOCK_END)[parent], NO_PAGE, UNUSED)
        source = tables_row(tables, parent)
        for j in range(tables_pages_of(tables, facts[i, 0])):
            refcount[source[j]] += np.int32(1)
            pages[i, j] = source[j]
    # The rows give up what they have, and take that over.
    for i in range(batch):
        row = np.int64(rows[i])
        end = tables_column(tables, LOCK_END)[row] if locked[row] > 0 else np.int64(NULL)
        drop_pages(pool, tables, row, np.int64(0), tables_pages_of(tables, length[row]))
        target = tables_row(tables, row)
        for j in range(tables_pages_of(tables, facts[i, 0])):
            target[j] = pages[i, j]
        for k in range(len(INHERITED)):
            tables_column(tables, INHERITED[k])[row] = facts[i, k]
        touch(tables, row, pool[STEP] + 1)
        facts[i, 0] = end
    pool[STEP] += 1
    for i in range(batch):  # last: what a parent and its child lock both stays locked throughout
        row, end = np.int64(rows[i]), facts[i, 0]
        if end != NULL and locked[row] > 0 and tables_column(tables, LOCK_END)[row] == end:
            path_unlock(prefix, end)  # it locks the same path as before
        elif end != NULL:
            path_release(prefix, end, pool[STEP])
    unlock(pool)
    return np.int64(0)


@helper
def cut_tail(pool, tables, prefix, row, num_tokens):
    """Keep the first `num_tokens` tokens of `row`, the clock being advanced; return pages freed."""
    length = tables_column(tables, LENGTH)
    start, stop = tables_pages_of(tables, num_tokens), tables_pages_of(tables, length[row])
    released = drop_pages(pool, tables, row, start, stop)
    touch(tables, row, pool[STEP])
    cap_facts(tables, row, num_tokens)
    row_shorten(pool, tables, prefix, row, start)
    return released


@kernel("int64(int64[::1], int64[::1], int64[::1], int64, int64)")
def sequences_truncate_cpu(pool, tables, prefix, row, num_tokens):
    """Mutates pool, tables and prefix cache: `row` keeps its first `num_tokens` tokens.

    Reads nothing else, requires a live row and no number below 0; returns how many pages went free.
    """
    if not try_lock(pool):
        return fail(BUSY, 0)
    length = tables_column(tables, LENGTH)
    if num_tokens > length[row]:
        status = fail(POSITION_RANGE, length[row])
    else:
        pool[STEP] += 1
        status = cut_tail(pool, tables, prefix, row, num_tokens)
    unlock(pool)
    return status


@kernel("int64(int64[::1], int64[::1], int64[::1], int32[:], int64[:], int64)")
def sequences_truncate_batch_cpu(pool, tables, prefix, rows, counts, drops):
    """Mutates pool, tables and prefix cache: each of `rows` is cut short, or none is.

    Reads `rows` and `counts`, one a row or one for all: tokens that stay or, with `drops`, go.
    Requires nothing of them; returns how many pages went free.
    """
    if not try_lock(pool):
        return fail(BUSY, 0)
    length = tables_column(tables, LENGTH)
    status = live_rows(tables, rows)
    for i in range(rows.size if status == 0 else 0):
        n = counts[i if counts.size > 1 else 0]
        if status == 0 and (n < 0 or n > length[rows[i]]):
            status = fail(NEGATIVE if n < 0 else POSITION_RANGE, i)
    if status == 0:
        pool[STEP] += 1
        for i in range(rows.size):
            row, n = np.int64(rows[i]), counts[i if counts.size > 1 else 0]
            kept = length[row] - n if drops != 0 else n
            status += cut_tail(pool, tables, prefix, row, kept)
    unlock(pool)
    return status
