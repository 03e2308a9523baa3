"""Where the facts of a row of a block table stand, which rows live, and what every change books.

Facts are read as words of the slab: a view of a column costs a kernel more than the read. `shape`
is what `table_shape` returns; behind a store, the compiler would read the header again.
"""

from __future__ import annotations

import numpy as np

from jitalloc.errors import ROW_FREE, ROW_RANGE
from jitalloc.gpu.calls import fault_key
from jitalloc.gpu.kernel import device_helper, gpu
from jitalloc.gpu.views import int32_column
from jitalloc.pool.loops.pool_cuda import page_of
from jitalloc.sequences.state import (
    GAP,
    LAST_USED,
    LENGTH,
    LOCK_END,
    LOCKED,
    MAX_PAGES,
    NUM_ROWS,
    ROW_COLUMNS,
    ROW_PAGE_SHIFT,
    ROW_PAGE_SIZE,
    USES,
)
from jitalloc.state import HEADER_SLOTS, INT32_MAX, NULL


@device_helper
def table_shape(tables):
    """Return `(rows, page ids a row, page size, log2 of it or -1)`."""
    # What has no sign is divided in a third of the time.
    size = tables[ROW_PAGE_SIZE] & INT32_MAX
    return tables[NUM_ROWS], tables[MAX_PAGES], size, tables[ROW_PAGE_SHIFT]


@device_helper
def column_start(shape, column):
    """Return the word at which a column of facts begins; the page ids come behind the last."""
    return HEADER_SLOTS + 2 * ((shape[0] + 63) >> 6) + column * shape[0]


@device_helper
def table_pages(tables, shape):
    """Return `(page ids of all rows, )`."""
    return (int32_column(tables, column_start(shape, ROW_COLUMNS), shape[0] * shape[1]),)


@device_helper
def pages_of(tokens, shape):
    """Return how many pages `tokens` tokens fill, the last one perhaps in part."""
    _rows, _width, size, shift = shape
    return page_of((tokens & INT32_MAX) + size - 1, size, shift)


@device_helper
def row_code(tables, shape, row):
    """Return why `row` names no live sequence, or 0."""
    if row < 0 or row >= shape[0]:
        return np.int64(ROW_RANGE)
    taken = tables[HEADER_SLOTS + (row >> 6)]
    return np.int64(0) if (taken >> (row & 63)) & 1 != 0 else np.int64(ROW_FREE)


@device_helper
def row_key(tables, shape, rows, i):
    """Return the key of the failure that no sequence lives in `rows[i]`."""
    return fault_key(row_code(tables, shape, np.int64(rows[i])), i)


@device_helper
def live_row(tables, shape, row):
    """Return `(whether a sequence lives in row, its tokens, row or else 0)`.

    Without a branch, so that no load waits for another one: those of a wrong row are of row 0.
    NULL, which fills a batch up, is like a sequence without tokens.
    """
    inside = (row >= 0) & (row < shape[0])
    at = row if inside else np.int64(0)
    taken = tables[HEADER_SLOTS + (at >> 6)]
    tokens = tables[column_start(shape, LENGTH) + at]
    lives = inside & ((taken >> (at & 63)) & 1 != 0) & (tokens >= 0)
    return lives | (row == NULL), tokens if inside else np.int64(0), at


@device_helper
def length_of(tables, shape, row):
    """Return how many tokens a row has; 0 for NULL, which is no row."""
    return tables[column_start(shape, LENGTH) + row] if row != NULL else np.int64(0)


@device_helper
def row_bit(row):
    """Return the mask of a row in its word of a bitmap, which the slab holds as int64."""
    return np.int64(1) << np.int64(row & 63)


@device_helper
def claims(tables, shape, row):
    """Mark a live row; return whether nobody had."""
    word = HEADER_SLOTS + ((shape[0] + 63) >> 6) + (row >> 6)
    return gpu.atomic.or_(tables, word, row_bit(row)) & row_bit(row) == 0


@device_helper
def is_marked(tables, shape, row):
    """Return whether somebody has marked a row."""
    word = HEADER_SLOTS + ((shape[0] + 63) >> 6) + (row >> 6)
    return tables[word] & row_bit(row) != 0


@device_helper
def unclaim(tables, shape, rows):
    """Take all marks away, once every thread has set its own."""
    marks = HEADER_SLOTS + ((shape[0] + 63) >> 6)
    for i in range(gpu.threadIdx.x, rows.size, gpu.blockDim.x):
        row = np.int64(rows[i])
        if row_code(tables, shape, row) == 0:
            tables[marks + (row >> 6)] = 0


@device_helper
def touch(tables, shape, row, step):
    """Book one write to the sequence in `row`."""
    tables[column_start(shape, LAST_USED) + row] = step
    tables[column_start(shape, USES) + row] += 1


@device_helper
def shorten_lock(tables, shape, pages, row, keep):
    """Lock only the first `keep` cached pages, if they still are the first of the row.

    Up to a gap they are: what lies behind one needs the whole path.
    """
    gap = tables[column_start(shape, GAP) + row]
    if keep < tables[column_start(shape, LOCKED) + row]:
        if keep == 0:
            tables[column_start(shape, LOCKED) + row] = 0
            tables[column_start(shape, LOCK_END) + row] = 0
        elif gap == 0 or keep * shape[2] < gap:
            tables[column_start(shape, LOCKED) + row] = keep
            tables[column_start(shape, LOCK_END) + row] = pages[row * shape[1] + keep - 1]
