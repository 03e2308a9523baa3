"""The loop that tells how many sequences of a batch can grow, and takes nothing."""

from __future__ import annotations

import numpy as np

from jitalloc._intrinsics import fail, try_lock, unlock
from jitalloc._jit import helper, kernel
from jitalloc.errors import BUSY, NEGATIVE
from jitalloc.pool.loops.pool import pool_views
from jitalloc.pool.state import FREE, RELEASED
from jitalloc.prefix.loops.freeing import reclaimable
from jitalloc.sequences.loops.appending import append_undo
from jitalloc.sequences.loops.row_locks import has_prefix
from jitalloc.sequences.loops.rows import live_rows
from jitalloc.sequences.loops.tables import tables_column, tables_pages, tables_pages_of
from jitalloc.sequences.state import LENGTH, MAX_PAGES, ROW_PAGE_SIZE
from jitalloc.state import INT32_MAX, NULL


@helper
def rows_that_fit(pool, tables, rows, counts, copies, room):
    """Return how many of the first rows can grow with `room` pages; `copies` is scratch.

    Row by row, as an append takes pages: those that share a last page give up their share, and
    have it back in the end.
    """
    _free_pages, refcount, _released = pool_views(pool)
    length, pages = tables_column(tables, LENGTH), tables_pages(tables)
    size, width = tables[ROW_PAGE_SIZE], tables[MAX_PAGES]
    need, fit = np.int64(0), np.int64(0)
    for i in range(rows.size):
        row, n = np.int64(rows[i]), counts[i if counts.size > 1 else 0]
        before = tables_pages_of(tables, length[row])
        after = tables_pages_of(tables, length[row] + n)
        if after > width or length[row] + n > INT32_MAX:
            break
        need += after - before
        if n > 0 and length[row] < before * size:
            last = pages[row * width + before - 1]
            if refcount[last] > 1:
                refcount[last] -= np.int32(1)
                copies[i] = last
                need += 1
        if need > max(room, np.int64(0)):
            break
        fit += 1
    append_undo(pool, copies)
    return fit


@kernel("int64(int64[::1], int64[::1], int64[::1], int32[:], int64[:], int32[::1], int64)")
def room_count_cpu(pool, tables, prefix, rows, counts, copies, reserve):
    """Mutates `copies`, scratch, and until it ends the owners of pages that rows would copy.

    Reads `rows`, `counts` (one a row or one for all) and `reserve`, the pages that are to be left;
    requires an element of `copies` a row. Returns how many of the first rows can grow.
    """
    if not try_lock(pool):
        return fail(BUSY, 0)
    # Is the batch sound?
    status = live_rows(tables, rows)
    for i in range(rows.size):
        copies[i] = NULL
        if status == 0 and counts[i if counts.size > 1 else 0] < 0:
            status = fail(NEGATIVE, i)
    if status == 0:
        room = pool[FREE] + pool[RELEASED] - reserve
        status = rows_that_fit(pool, tables, rows, counts, copies, room)
        # To count what cached pages would free is a look at all of them: only where it matters.
        if status < rows.size and has_prefix(prefix):
            for i in range(rows.size):
                copies[i] = NULL
            room += reclaimable(pool, prefix)
            status = rows_that_fit(pool, tables, rows, counts, copies, room)
    unlock(pool)
    return status
