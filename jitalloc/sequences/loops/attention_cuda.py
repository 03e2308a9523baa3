"""Twins of the loops that export all that one paged attention call reads.

As in the layouts of `tables_cuda`, each block adds up all rows, tile by tile, so that each knows
where its pages and new tokens go, and whether the call fails. `new` is `(counts, each)`: how many
tokens of each row are new, int32 or int64, or one number for all, where that is not negative.
"""

from __future__ import annotations

import numpy as np

from jitalloc.errors import (
    NEGATIVE,
    OUT_SHORT,
    POSITION_RANGE,
    STATUS_BITS,
    STATUS_MASK,
    TOO_MANY,
)
from jitalloc.gpu.calls import end_read, fail, fault_key, fill_null, integer, put_integer
from jitalloc.gpu.kernel import cuda_kernel, device_helper, gpu
from jitalloc.gpu.record import CALL_KINDS
from jitalloc.gpu.scan import NOWHERE, SHARED_WORDS, block_min, block_scan, owner_of
from jitalloc.pool.loops.pool_cuda import page_of
from jitalloc.sequences.loops.attention import attention_export_cpu, attention_total_cpu
from jitalloc.sequences.loops.row_facts_cuda import live_row, table_pages, table_shape
from jitalloc.sequences.loops.tables_cuda import TILE_ROWS, csr_ends, csr_pages, csr_tile
from jitalloc.state import INT32_MAX, NULL

ATTENTION_BATCH = CALL_KINDS.index("attention_batch")


@device_helper
def new_count(rows, new, i):
    """Return how many tokens of row `i` are said to be new; 0 behind the last row."""
    counts, each = new
    if i >= rows.size:
        return np.int64(0)
    return each if each >= 0 else integer(counts, 1 if counts.size > rows.size else 0, i)


@device_helper
def new_key(tables, shape, rows, i, n, upto):
    """Return the key of why row `i` has no `n` new tokens, or NOWHERE.

    `upto`: the tokens up to its last. A row that is NULL may have as many as you like.
    """
    if i >= rows.size:
        return NOWHERE
    lives, tokens, _row = live_row(tables, shape, np.int64(rows[i]))
    if n < 0:
        return fault_key(NEGATIVE, rows.size + i)
    if lives & (rows[i] != NULL) & (n > tokens):
        return fault_key(POSITION_RANGE, rows.size + i)
    return fault_key(TOO_MANY, rows.size + i) if upto > INT32_MAX else NOWHERE


@device_helper
def within_int32(n):
    """Return `n` where a sum of a tile of it is sound, else what makes any sum too large."""
    return min(max(n, np.int64(0)), np.int64(INT32_MAX) + 1)


@device_helper
def new_tile(tables, shape, shared, rows, new, span, firsts):
    """Put where the new tokens of each row of a tile begin into `firsts`, from 0 on, by one block.

    `span`: the first row of the tile, the new tokens before it. Returns `(new tokens of the tile,
    key of a row that has not so many or NOWHERE)`.
    """
    begin, put = span
    j = 2 * gpu.threadIdx.x
    i = np.int64(begin + j)
    a, b = new_count(rows, new, i), new_count(rows, new, i + 1)
    before, total = block_scan(shared, within_int32(a) + within_int32(b))
    middle = before + within_int32(a)
    firsts[j] = min(before, np.int64(INT32_MAX))
    firsts[j + 1] = min(middle, np.int64(INT32_MAX))
    key = new_key(tables, shape, rows, i, a, put + middle)
    key = min(key, new_key(tables, shape, rows, i + 1, b, put + middle + within_int32(b)))
    gpu.syncthreads()
    return total, key


@device_helper
def attention_sums(tables, shape, shared, rows, new, starts, firsts):
    """Return `(new tokens, pages, key of the first failure or NOWHERE)`.

    `starts` and `firsts` are those of the last tile. All rows are looked at, whatever is wrong:
    a row that is wrong goes before a number that is, wherever they stand.
    """
    begin, pages, tokens, key = np.int64(0), np.int64(0), np.int64(0), NOWHERE
    while begin < rows.size:
        count, wrong = csr_tile(tables, shape, shared, rows, begin, pages, starts)
        key = min(key, wrong)
        pages += count
        span = begin, tokens
        count, wrong = new_tile(tables, shape, shared, rows, new, span, firsts)
        key = min(key, wrong)
        tokens += count
        begin += 2 * gpu.blockDim.x
    return tokens, pages, block_min(shared, key)


@device_helper
def attention_fault(tables, shape, rows, new, key):
    """Return `(offending element, what the record is to know beside it)` of a failure.

    The latter: the rows of the table, or the tokens of the sequence that has not so many new ones,
    and above them the size of the batch.
    """
    code, at = key & STATUS_MASK, key >> STATUS_BITS
    wanted = np.int64(rows.size) << np.int64(32)
    if at < rows.size:
        return np.int64(rows[at]), wanted | shape[0]
    at -= rows.size
    if code == POSITION_RANGE:
        _lives, tokens, _row = live_row(tables, shape, np.int64(rows[at]))
        wanted |= tokens
    return new_count(rows, new, at), wanted


@device_helper
def attention_ends(tables, shape, rows, span, firsts, qo_indptr, seq_lens):
    """Write where the new tokens of each row of a tile end, and its length, by one block.

    `span`: the first row of the tile, the rows of it, the new tokens before and behind it.
    """
    begin, count, put, end = span
    j = np.int64(gpu.threadIdx.x)
    while j < count:
        row = np.int64(rows[begin + j])
        _lives, tokens, _row = live_row(tables, shape, row)
        qo_indptr[begin + j + 1] = put + firsts[j + 1] if j + 1 < count else end
        seq_lens[begin + j] = tokens
        j += gpu.blockDim.x


@device_helper
def attention_tokens(tables, shape, rows, span, firsts, places, wide):
    """Write positions and slots of the new tokens of a tile, by all blocks; `span` as above.

    `places`: the arrays of both.
    """
    begin, count, put, end = span
    positions, slots = places
    _rows, width, size, shift = shape
    (pages,) = table_pages(tables, shape)
    at = np.int64(gpu.grid(1))
    while at < end - put:
        j = owner_of(firsts, at, count)
        behind = np.int64(firsts[j + 1]) if j + 1 < count else end - put
        named = np.int64(rows[begin + j])
        _lives, tokens, row = live_row(tables, shape, named)
        position = tokens - behind + at
        slot = np.int64(NULL)
        if named == NULL:
            position = np.int64(0)
        else:
            block = page_of(position & INT32_MAX, size, shift)
            slot = np.int64(pages[row * width + block]) * size + position - block * size
        put_integer(positions, wide, put + at, position)
        put_integer(slots, wide, put + at, slot)
        at += gpu.gridsize(1)


@device_helper
def attention_padding(positions, slots, wide, start):
    """Write position 0 and slot NULL behind the last token, by all blocks.

    A position of NULL would be a trap: models look up what they rotate keys by at each of them.
    """
    i, step = np.int64(gpu.grid(1)), np.int64(gpu.gridsize(1))
    while start + i < slots.size >> wide:
        put_integer(positions, wide, start + i, np.int64(0))
        put_integer(slots, wide, start + i, np.int64(NULL))
        i += step


@cuda_kernel(
    "void(int64[::1], int64[::1], int32[::1], int32[::1], UniTuple(int32[::1], 7), int64, int64)",
    twin=attention_export_cpu,
)
def attention_export_cuda(record, tables, rows, counts, batch, each, wide):
    """Mutates the record and `batch`, an `AttentionBatch` in its order (`wide`: 1 where positions
    and slots are int64, as pairs); behind the last token and page, position 0, slot NULL and page
    NULL. All of it is NULL where the call fails.

    Reads the tables, `rows` and `counts` (`each`: the number of all where that is not negative),
    requires buffers that fit the batch; with too short `slots` or `kv_indices` it fails.
    """
    qo_indptr, positions, slots, kv_indptr, kv_indices, last_page_len, seq_lens = batch
    shared = gpu.shared.array(SHARED_WORDS, np.int64)
    starts = gpu.shared.array(TILE_ROWS, np.int32)
    firsts = gpu.shared.array(TILE_ROWS, np.int32)
    first, step, n = gpu.grid(1), gpu.gridsize(1), np.int64(rows.size)
    shape, new = table_shape(tables), (counts, each)
    # Do all rows live, have they so many tokens, and does it all fit?
    tokens, pages, key = attention_sums(tables, shape, shared, rows, new, starts, firsts)
    status, value, wanted = np.int64(0), np.int64(0), np.int64(0)
    room = np.int64(slots.size) >> wide
    if key != NOWHERE:
        status = -key
        value, wanted = attention_fault(tables, shape, rows, new, key)
    elif tokens > room:
        status, wanted = fail(OUT_SHORT, room), tokens
    elif pages > kv_indices.size:
        status, value, wanted = fail(OUT_SHORT, kv_indices.size), np.int64(1), pages
    if status < 0:
        for out in batch:
            fill_null(out, 0, first, step)
    else:
        # Tile by tile: where rows end, by one block, and their tokens and pages, by all.
        put, held, tile = np.int64(0), np.int64(0), np.int64(2 * gpu.blockDim.x)
        begin = np.int64(0)
        while begin < n:
            some, count = tokens, pages
            if n > tile:  # else the only tile is still there
                count, _key = csr_tile(tables, shape, shared, rows, begin, held, starts)
                some, _key = new_tile(tables, shape, shared, rows, new, (begin, put), firsts)
            size = min(tile, n - begin)
            of_pages, of_tokens = (begin, size, held, held + count), (begin, size, put, put + some)
            if gpu.blockIdx.x == 0:
                csr_ends(tables, shape, rows, of_pages, starts, kv_indptr, last_page_len)
                attention_ends(tables, shape, rows, of_tokens, firsts, qo_indptr, seq_lens)
            csr_pages(tables, shape, rows, of_pages, starts, kv_indices)
            places = positions, slots
            attention_tokens(tables, shape, rows, of_tokens, firsts, places, wide)
            put += some
            held += count
            begin += tile
            gpu.syncthreads()
        fill_null(kv_indices, pages, first, step)
        attention_padding(positions, slots, wide, tokens)
    if first == 0:
        if status >= 0:
            qo_indptr[0] = 0
            kv_indptr[0] = 0
        end_read(record, ATTENTION_BATCH, status, value, wanted)


@cuda_kernel(
    "void(int64[::1], int64[::1], int32[::1], int32[::1], int64[::1], int64)",
    twin=attention_total_cpu,
)
def attention_total_cuda(record, tables, rows, counts, out, each):
    """Mutates the record and `out`: how many tokens of the rows are new, and how many pages the
    rows have, or NULL.

    Reads the tables, `rows` and `counts` as above, requires two words of `out` and one block.
    """
    shared = gpu.shared.array(SHARED_WORDS, np.int64)
    starts = gpu.shared.array(TILE_ROWS, np.int32)
    firsts = gpu.shared.array(TILE_ROWS, np.int32)
    shape, new = table_shape(tables), (counts, each)
    tokens, pages, key = attention_sums(tables, shape, shared, rows, new, starts, firsts)
    if gpu.threadIdx.x == 0:
        status, value, wanted = np.int64(0), np.int64(0), np.int64(0)
        if key != NOWHERE:
            status = -key
            value, wanted = attention_fault(tables, shape, rows, new, key)
            tokens, pages = np.int64(NULL), np.int64(NULL)
        out[0] = tokens
        out[1] = pages
        end_read(record, ATTENTION_BATCH, status, value, wanted)
