"""Loops that export all that one paged attention call reads: new tokens, pages, lengths."""

from __future__ import annotations

import numpy as np

from jitalloc._intrinsics import fail
from jitalloc._jit import helper, kernel
from jitalloc.errors import CHANGED, NEGATIVE, OUT_SHORT, POSITION_RANGE, TOO_MANY
from jitalloc.pool.loops.tokens import tokens_fill
from jitalloc.sequences.loops.tables import (
    copy_pages,
    tables_column,
    tables_pages,
    tables_pages_of,
    tables_row_code,
)
from jitalloc.sequences.state import LENGTH, MAX_PAGES, ROW_PAGE_SHIFT, ROW_PAGE_SIZE
from jitalloc.state import INT32_MAX, NULL


@helper
def attention_sums(tables, rows, counts):
    """Return `(new tokens, pages)` of a batch, or `(status word, 0)`.

    Detail of a status word: the position, plus the size of the batch where it is one of `counts`.
    """
    length = tables_column(tables, LENGTH)
    pages, tokens = np.int64(0), np.int64(0)
    for i in range(rows.size):
        code = tables_row_code(tables, rows[i])
        if code != 0:
            return fail(code, i), np.int64(0)
        pages += tables_pages_of(tables, length[rows[i]])
        if pages > INT32_MAX:
            return fail(TOO_MANY, i), np.int64(0)
    for i in range(rows.size):
        n = counts[i if counts.size > 1 else 0]
        if n < 0:
            return fail(NEGATIVE, rows.size + i), np.int64(0)
        if n > length[rows[i]]:
            return fail(POSITION_RANGE, rows.size + i), np.int64(0)
        tokens += n
        if tokens > INT32_MAX:
            return fail(TOO_MANY, rows.size + i), np.int64(0)
    return tokens, pages


@kernel("int64(int64[::1], int32[:], int64[:], int64[::1])")
def attention_total_cpu(tables, rows, counts, out):
    """Mutates `out`: how many tokens of the rows are new, and how many pages the rows have.

    Reads the tables, `rows` and `counts` (one a row or one for all), requires two words of `out`,
    and takes no lock.
    """
    tokens, pages = attention_sums(tables, rows, counts)
    if tokens < 0:
        return tokens
    out[0] = tokens
    out[1] = pages
    return np.int64(0)


@helper
def fill_new(tables, pages, row, tokens, n, put, positions, slots):
    """Write positions and slots of the last `n` of the `tokens` tokens of `row` from `put` on."""
    size, shift = tables[ROW_PAGE_SIZE], tables[ROW_PAGE_SHIFT]
    position, left = tokens - n, n
    block = position >> shift if shift >= 0 else position // size
    while left > 0:
        offset = position - block * size
        run = min(size - offset, left)
        slot = np.int64(pages[row * tables[MAX_PAGES] + block]) * size + offset
        tokens_fill(slots, put, slot, run)
        tokens_fill(positions, put, position, run)
        put += run
        position += run
        left -= run
        block += 1


@kernel("int64(int64[::1], int32[:], int64[:], UniTuple(int32[::1], 5), int64[::1], int64[::1])")
def attention_export_cpu(tables, rows, counts, batch, positions, slots):
    """Mutates `batch` (of an `AttentionBatch`, what is int32 in its order), `positions` and
    `slots`; behind the last token and page, position 0, slot NULL and page NULL. Nothing is
    written where rows, counts or sizes are wrong.

    Reads the tables, `rows` and `counts` (one a row or one for all), requires buffers that fit the
    batch, and as many `positions` as `slots`; where a sequence has changed meanwhile, it fails.
    Takes no lock. Detail of a status word: as of `attention_sums`; where a buffer is short, 0 for
    tokens and 1 for pages.
    """
    qo_indptr, kv_indptr, kv_indices, last_page_len, seq_lens = batch
    # Are rows and counts sound, and is there room?
    total, held = attention_sums(tables, rows, counts)
    if total < 0:
        return total
    if total > slots.size:
        return fail(OUT_SHORT, 0)
    if held > kv_indices.size:
        return fail(OUT_SHORT, 1)
    # Row by row: its pages, its new tokens, its length.
    length, pages = tables_column(tables, LENGTH), tables_pages(tables)
    size, width, shift = tables[ROW_PAGE_SIZE], tables[MAX_PAGES], tables[ROW_PAGE_SHIFT]
    put, first = np.int64(0), np.int64(0)
    qo_indptr[0] = 0
    kv_indptr[0] = 0
    for i in range(rows.size):
        row = np.int64(rows[i])
        tokens, n = length[row], counts[i if counts.size > 1 else 0]
        count = tables_pages_of(tables, tokens)
        if put + n > slots.size or first + count > kv_indices.size or n > tokens:
            return fail(CHANGED, i)
        start = row * width
        copy_pages(pages[start : start + count], kv_indices[first : first + count])
        if n == 1 and shift >= 0:  # a step: 256 of them in half the time
            block = (tokens - 1) >> shift
            positions[put] = tokens - 1
            slots[put] = (np.int64(pages[start + block]) << shift) + tokens - 1 - (block << shift)
        else:
            fill_new(tables, pages, row, tokens, n, put, positions, slots)
        put += n
        first += count
        qo_indptr[i + 1] = put
        kv_indptr[i + 1] = first
        # An empty sequence has no page: (0 - 1) * size + size is its length, 0, as well.
        last_page_len[i] = tokens - (count - 1) * size
        seq_lens[i] = tokens
    for k in range(put, slots.size):
        positions[k] = 0
        slots[k] = NULL
    for k in range(first, kv_indices.size):
        kv_indices[k] = NULL
    return np.int64(0) if put == total and first == held else fail(CHANGED, 0)
