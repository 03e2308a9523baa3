"""Loops over block tables: the layouts that attention kernels read, renaming, checking."""

from __future__ import annotations

import numpy as np

from jitalloc._intrinsics import bit, bit_count, fail
from jitalloc._jit import counting, helper, kernel
from jitalloc.errors import (
    BAD_ROW_COLUMN,
    BAD_ROW_COUNT,
    BAD_ROW_PAGES,
    BAD_TABLE_HEADER,
    CHANGED,
    MARKS_LEFT,
    POSITION_RANGE,
    ROW_FREE,
    ROW_PAGE_FREE,
    ROW_RANGE,
    TABLE_WIDTH,
    TOO_MANY,
)
from jitalloc.pool.loops.pool import pool_views
from jitalloc.pool.state import FIRST_PAGE, NUM_PAGES, STEP
from jitalloc.sequences.state import (
    ACTIVE,
    BORN,
    COMPUTED,
    EVICTIONS,
    GAP,
    KNOWN,
    LAST_USED,
    LENGTH,
    LOCK_END,
    LOCKED,
    MAX_PAGES,
    NAMESPACE,
    NUM_ROWS,
    PAGE_COPIES,
    PEAK_ACTIVE,
    PINNED,
    PRIORITY,
    ROW_COLUMNS,
    ROW_PAGE_SHIFT,
    ROW_PAGE_SIZE,
    SEQ_ALLOCATIONS,
    SEQ_FORKS,
    SEQ_FREES,
    TOKENS_DROPPED,
    USES,
)
from jitalloc.state import HEADER_SLOTS, INT32_MAX, NULL


@counting
def tables_taken(tables):
    """Return the bitmap of rows that a sequence lives in."""
    return tables[HEADER_SLOTS : HEADER_SLOTS + ((tables[NUM_ROWS] + 63) >> 6)].view(np.uint64)


@counting
def tables_marks(tables):
    """Return the scratch bitmap of rows."""
    w = (tables[NUM_ROWS] + 63) >> 6
    return tables[HEADER_SLOTS + w : HEADER_SLOTS + 2 * w].view(np.uint64)


@counting
def tables_column(tables, column):
    """Return one column of facts, `int64[rows]`."""
    rows = tables[NUM_ROWS]
    start = HEADER_SLOTS + 2 * ((rows + 63) >> 6) + column * rows
    return tables[start : start + rows]


@counting
def tables_pages(tables):
    """Return the page ids of all rows, `int32[rows * max_pages]`.

    Loops make this view once, not for each row.
    """
    rows = tables[NUM_ROWS]
    return tables[HEADER_SLOTS + 2 * ((rows + 63) >> 6) + ROW_COLUMNS * rows :].view(np.int32)


@counting
def tables_row(tables, row):
    """Return the page ids of `row`, `int32[max_pages]`."""
    width = tables[MAX_PAGES]
    return tables_pages(tables)[row * width : (row + 1) * width]


@helper
def tables_pages_of(tables, tokens):
    """Return how many pages `tokens` tokens fill, the last one perhaps in part."""
    shift = tables[ROW_PAGE_SHIFT]
    size = tables[ROW_PAGE_SIZE]
    return (tokens + size - 1) >> shift if shift >= 0 else (tokens + size - 1) // size


@helper
def tables_row_code(tables, row):
    """Return why `row` names no live sequence, or 0."""
    if row < 0 or row >= tables[NUM_ROWS]:
        return ROW_RANGE
    # Straight from the slab, because this runs once a row of every batch.
    return 0 if (tables[HEADER_SLOTS + (row >> 6)] >> np.int64(row & 63)) & 1 else ROW_FREE


@helper
def copy_pages(pages, out):
    """Copy `pages` to the front of `out`. Views that begin at 0, else it does not vectorise."""
    for j in range(pages.size):
        out[j] = pages[j]


@kernel("int64(int64[::1], int32[:])")
def tables_width_cpu(tables, rows):
    """Mutates nothing.

    Reads the tables and `rows`, requires nothing, and takes no lock; returns the most pages that
    one of the rows has.
    """
    length = tables_column(tables, LENGTH)
    widest = np.int64(0)
    for i in range(rows.size):
        code = tables_row_code(tables, rows[i])
        if code != 0:
            return fail(code, i)
        widest = max(widest, length[rows[i]])
    return tables_pages_of(tables, widest)


@kernel("int64(int64[::1], int32[:], int32[:, ::1], int64)")
def tables_padded_cpu(tables, rows, out, pad):
    """Mutates `out`: the page ids of each row, and `pad` behind them.

    Reads the tables and `rows`, requires a line of `out` for each; where one is too short it fails
    before anything is written. Takes no lock.
    """
    length = tables_column(tables, LENGTH)
    width = out.shape[1]
    for i in range(rows.size):
        code = tables_row_code(tables, rows[i])
        if code != 0:
            return fail(code, i)
        if tables_pages_of(tables, length[rows[i]]) > width:
            return fail(TABLE_WIDTH, i)
    pages = tables_pages(tables)
    for i in range(rows.size):
        n = min(tables_pages_of(tables, length[rows[i]]), width)
        start = rows[i] * tables[MAX_PAGES]
        copy_pages(pages[start : start + n], out[i])
        for j in range(n, width):
            out[i, j] = pad
    return np.int64(0)


@kernel("int64(int64[::1], int32[:], int64[:], int64[::1])")
def tables_slots_cpu(tables, rows, positions, out):
    """Mutates `out`, the slot at which each position of its row lies.

    Reads the tables, `rows` and `positions`, requires all three arrays of one length. Takes no
    lock.
    """
    length = tables_column(tables, LENGTH)
    size = tables[ROW_PAGE_SIZE]
    for i in range(rows.size):
        code = tables_row_code(tables, rows[i])
        if code != 0:
            return fail(code, i)
        if positions[i] < 0 or positions[i] >= length[rows[i]]:
            return fail(POSITION_RANGE, i)
    pages = tables_pages(tables)
    for i in range(rows.size):
        block = positions[i] // size
        page = np.int64(pages[rows[i] * tables[MAX_PAGES] + block])
        out[i] = page * size + positions[i] - block * size
    return np.int64(0)


@kernel("int64(int64[::1], int32[:])")
def tables_total_cpu(tables, rows):
    """Mutates nothing.

    Reads the tables and `rows`, requires nothing, and takes no lock; returns how many pages the
    rows have.
    """
    length = tables_column(tables, LENGTH)
    total = np.int64(0)
    for i in range(rows.size):
        code = tables_row_code(tables, rows[i])
        if code != 0:
            return fail(code, i)
        total += tables_pages_of(tables, length[rows[i]])
        if total > INT32_MAX:
            return fail(TOO_MANY, i)
    return total


@kernel("int64(int64[::1], int32[:], int32[::1], int32[::1], int32[::1])")
def tables_csr_cpu(tables, rows, indptr, indices, last_page_len):
    """Mutates `indptr`, `indices` and `last_page_len`, the pages of the rows one behind the other.

    Reads the tables and `rows`, requires `indices` as long as `tables_total_cpu` has said, and
    `indptr` one longer than `rows`; where a sequence has changed since, it fails. Takes no lock.
    """
    length = tables_column(tables, LENGTH)
    size = tables[ROW_PAGE_SIZE]
    pages = tables_pages(tables)
    put = np.int64(0)
    indptr[0] = 0
    for i in range(rows.size):
        if tables_row_code(tables, rows[i]) != 0:
            return fail(CHANGED, i)
        tokens = length[rows[i]]
        n = tables_pages_of(tables, tokens)
        if put + n > indices.size:  # a sequence has grown since tables_total_cpu
            return fail(CHANGED, i)
        start = rows[i] * tables[MAX_PAGES]
        copy_pages(pages[start : start + n], indices[put : put + n])
        put += n
        indptr[i + 1] = put
        # An empty sequence has no page: (0 - 1) * size + size is its length, 0, as well.
        last_page_len[i] = tokens - (n - 1) * size
    return np.int64(0) if put == indices.size else fail(CHANGED, 0)


@kernel("int64(int64[::1], int32[:], int32[::1])")
def tables_lengths_cpu(tables, rows, out):
    """Mutates `out`, how many tokens each row has.

    Reads the tables and `rows`, requires `out` as long as `rows`. Takes no lock.
    """
    length = tables_column(tables, LENGTH)
    for i in range(rows.size):
        code = tables_row_code(tables, rows[i])
        if code != 0:
            return fail(code, i)
    for i in range(rows.size):
        out[i] = length[rows[i]]
    return np.int64(0)


@kernel("int64(int64[::1], int32[::1])")
def tables_rename_cpu(tables, names):
    """Mutates the tables: the pages of all rows, and the ends of what they lock, get new ids.

    Reads `names`, the new id of each page, requires the caller to hold the lock of the pool.
    """
    length = tables_column(tables, LENGTH)
    locked, end = tables_column(tables, LOCKED), tables_column(tables, LOCK_END)
    for row in range(tables[NUM_ROWS]):
        if locked[row] > 0:
            end[row] = names[end[row]]
        pages = tables_row(tables, row)
        for j in range(tables_pages_of(tables, length[row])):
            pages[j] = names[pages[j]]
    return np.int64(0)


@helper
def tables_header_fault(tables):
    """Return the header slot that contradicts the others, or -1."""
    if tables[ACTIVE] < 0 or tables[ACTIVE] > tables[NUM_ROWS]:
        return ACTIVE
    if tables[PEAK_ACTIVE] < tables[ACTIVE] or tables[PEAK_ACTIVE] > tables[NUM_ROWS]:
        return PEAK_ACTIVE
    if tables[SEQ_FREES] < 0 or tables[SEQ_ALLOCATIONS] - tables[SEQ_FREES] != tables[ACTIVE]:
        return SEQ_ALLOCATIONS
    for slot in (SEQ_FORKS, PAGE_COPIES, EVICTIONS, TOKENS_DROPPED):
        if tables[slot] < 0:
            return slot
    for unused in range(ROW_PAGE_SHIFT + 1, HEADER_SLOTS):
        if tables[unused] != 0:
            return unused
    return -1


@helper
def tables_row_fault(pool, tables, row, live, owners):
    """Return the code of what is broken in `row`, or 0; count its pages in `owners`."""
    _free_pages, refcount, _released = pool_views(pool)
    length = tables_column(tables, LENGTH)[row]
    if length < 0 or (not live and length != 0):
        return BAD_ROW_COLUMN
    step = pool[STEP]
    born, used = tables_column(tables, BORN)[row], tables_column(tables, LAST_USED)[row]
    if born < 0 or used < born or used > step or tables_column(tables, USES)[row] < 0:
        return BAD_ROW_COLUMN
    pinned = tables_column(tables, PINNED)[row]
    if pinned < 0 or pinned > 1:
        return BAD_ROW_COLUMN
    idle = pinned == 0 and used == 0 and tables_column(tables, PRIORITY)[row] == 0
    uses = tables_column(tables, USES)[row]
    if abs(tables_column(tables, PRIORITY)[row]) > INT32_MAX:
        return BAD_ROW_COLUMN
    if (live and (uses == 0 or born == 0)) or (not live and not (idle and uses == 0)):
        return BAD_ROW_COLUMN
    known, locked = tables_column(tables, KNOWN)[row], tables_column(tables, LOCKED)[row]
    if known < 0 or known > length or locked < 0 or (length == 0 and locked > 0):
        return BAD_ROW_COLUMN
    gap = tables_column(tables, GAP)[row]
    if gap < 0 or gap > length:
        return BAD_ROW_COLUMN
    computed, cached = tables_column(tables, COMPUTED)[row], locked * tables[ROW_PAGE_SIZE]
    if computed < 0 or computed > length or (gap == 0 and computed < min(cached, length)):
        return BAD_ROW_COLUMN
    end, namespace = tables_column(tables, LOCK_END)[row], tables_column(tables, NAMESPACE)[row]
    if end < 0 or end >= pool[NUM_PAGES] or (locked == 0 and end != 0):
        return BAD_ROW_COLUMN
    if namespace < 0 or namespace > INT32_MAX or (not live and namespace != 0):
        return BAD_ROW_COLUMN
    n = tables_pages_of(tables, length)
    if n > tables[MAX_PAGES] or locked > tables[MAX_PAGES]:
        return BAD_ROW_COLUMN
    pages = tables_row(tables, row)
    for j in range(pages.size):
        page = pages[j]
        if j >= n:
            if page != NULL:
                return BAD_ROW_PAGES
            continue
        if page < pool[FIRST_PAGE] or page >= pool[NUM_PAGES]:
            return BAD_ROW_PAGES
        owners[page] += np.int32(1)
        if owners[page] > refcount[page]:
            return ROW_PAGE_FREE
    return 0


@kernel("int64(int64[::1], int64[::1], int32[::1])")
def tables_check_cpu(pool, tables, owners):
    """Mutates `owners`, in how many rows each page stands.

    Reads the pool and the tables, requires `owners` of zeros, one a page, and that the caller keeps
    all others out; returns the first fault.
    """
    slot = tables_header_fault(tables)
    if slot >= 0:
        return fail(BAD_TABLE_HEADER, slot)
    taken, marks = tables_taken(tables), tables_marks(tables)
    rows = tables[NUM_ROWS]
    live = np.int64(0)
    for w in range(taken.size):
        live += np.int64(bit_count(taken[w]))
        if marks[w] != np.uint64(0):
            return fail(MARKS_LEFT, w)
    if live != tables[ACTIVE]:
        return fail(BAD_ROW_COUNT, live)
    if rows & 63 and taken[taken.size - 1] >> np.uint64(rows & 63) != np.uint64(0):
        return fail(BAD_ROW_COUNT, live)
    for row in range(rows):
        lives = taken[row >> 6] & bit(row) != np.uint64(0)
        code = tables_row_fault(pool, tables, row, lives, owners)
        if code != 0:
            return fail(code, row)
    return np.int64(0)
