"""Twins of the loops over block tables: the layouts that attention kernels read, renaming.

A layout is written while its rows are looked at. Where one of them is refused, the block that ends
last writes NULL over all of it. Loops are of `while`: a `range` divides to know how often it runs,
and written so, CSR needs 58 registers and not 88.
"""

from __future__ import annotations

import numpy as np

from jitalloc.errors import (
    OUT_SHORT,
    POSITION_RANGE,
    STATUS_BITS,
    STATUS_MASK,
    TABLE_WIDTH,
    TOO_MANY,
)
from jitalloc.gpu.calls import end_read, fail, fault_key, fill_null, integer, put_integer
from jitalloc.gpu.kernel import MOST_THREADS, cuda_kernel, device_helper, gpu
from jitalloc.gpu.record import CALL_KINDS
from jitalloc.gpu.scan import (
    NOWHERE,
    SHARED_WORDS,
    any_thread,
    block_min,
    block_scan,
    call_min,
    owner_of,
)
from jitalloc.pool.loops.pool_cuda import page_of
from jitalloc.sequences.loops.row_facts_cuda import (
    column_start,
    live_row,
    pages_of,
    row_key,
    table_pages,
    table_shape,
)
from jitalloc.sequences.loops.tables import (
    tables_csr_cpu,
    tables_lengths_cpu,
    tables_padded_cpu,
    tables_rename_cpu,
    tables_slots_cpu,
    tables_total_cpu,
    tables_width_cpu,
)
from jitalloc.sequences.state import LENGTH, LOCK_END, LOCKED, NUM_ROWS
from jitalloc.state import INT32_MAX, NULL

BLOCK_TABLES = CALL_KINDS.index("block_tables")
SLOT_MAPPING = CALL_KINDS.index("slot_mapping")
PAGE_TABLE_CSR = CALL_KINDS.index("page_table_csr")
SEQ_LENS = CALL_KINDS.index("seq_lens")

TILE_ROWS = 2 * MOST_THREADS  # two of a thread: 1,024 sequences are one tile of 512 threads
WARP = 32


@device_helper
def value_at(key, values):
    """Return the element that a failure is about, or 0 where there is none."""
    return np.int64(0) if key == NOWHERE else np.int64(values[key >> STATUS_BITS])


@device_helper
def end_layout(record, kind, key, value, wanted, out):
    """Book the end of an export by its last block, `key` the first failure or NOWHERE."""
    status = np.int64(0)
    if key != NOWHERE:
        status = -key
        gpu.syncthreads()  # all have read the value, perhaps from `out`
        fill_null(out, 0, gpu.threadIdx.x, gpu.blockDim.x)
    if gpu.threadIdx.x == 0:
        end_read(record, kind, status, value, wanted)


@cuda_kernel("void(int64[::1], int64[::1], int32[::1], int32[::1])", twin=tables_lengths_cpu)
def tables_lengths_cuda(record, tables, rows, out):
    """Mutates the record and `out`, how many tokens each row has, or NULL where the call fails.

    Reads the tables and `rows`, requires `out` as long as `rows`. A thread reads rows[i] before it
    writes out[i]: they may be the same.
    """
    shared = gpu.shared.array(SHARED_WORDS, np.int64)
    key, shape = NOWHERE, table_shape(tables)
    i = np.int64(gpu.grid(1))
    while i < rows.size:
        lives, tokens, _row = live_row(tables, shape, np.int64(rows[i]))
        if lives:
            out[i] = tokens
        else:
            key = min(key, row_key(tables, shape, rows, i))
        i += gpu.gridsize(1)
    last, key = call_min(record, shared, key)
    if last:
        end_layout(record, SEQ_LENS, key, value_at(key, rows), shape[0], out)


@cuda_kernel(
    "void(int64[::1], int64[::1], int32[::1], int32[::1], int32[::1], int64)",
    twin=tables_slots_cpu,
)
def tables_slots_cuda(record, tables, rows, positions, out, out_wide):
    """Mutates the record and `out`, the slot at which each position of its row lies, or NULL where
    the call fails. `out_wide`: 1 where it is int64, as pairs.

    Reads the tables, `rows` and `positions`, requires all three arrays of one length. A thread
    reads position i before it writes out[i]: they may be the same.
    """
    shared = gpu.shared.array(SHARED_WORDS, np.int64)
    key, shape = NOWHERE, table_shape(tables)
    _rows, width, size, shift = shape
    wide = 1 if positions.size > rows.size else 0
    (pages,) = table_pages(tables, shape)
    i = np.int64(gpu.grid(1))
    while i < rows.size:
        position = integer(positions, wide, i)
        lives, tokens, row = live_row(tables, shape, np.int64(rows[i]))
        block = page_of(position & INT32_MAX, size, shift)
        # It is read before anybody knows whether it is there: of a sequence, no page is NULL.
        page = np.int64(pages[row * width + min(block, width - 1)])
        fits = lives & (position >= 0) & (position < tokens)
        if fits & (page >= 0):
            put_integer(out, out_wide, i, page * size + position - block * size)
        elif rows[i] == NULL:
            put_integer(out, out_wide, i, np.int64(NULL))
        elif lives:
            key = min(key, fault_key(POSITION_RANGE, i))
        else:
            key = min(key, row_key(tables, shape, rows, i))
        i += gpu.gridsize(1)
    last, key = call_min(record, shared, key)
    if last:
        value = value_at(key, rows)
        if key & STATUS_MASK == POSITION_RANGE:
            value = integer(positions, wide, key >> STATUS_BITS)
        end_layout(record, SLOT_MAPPING, key, value, shape[0], out)


@device_helper
def group_shift(width):
    """Return log2 of how many threads stand side by side in a row of `width` columns."""
    shift = np.int64(0)
    while (1 << shift) < min(width, WARP) and (2 << shift) <= gpu.blockDim.x:
        shift += 1
    return shift


@device_helper
def page_or(pages, start, column, count, pad):
    """Return page `column` of the row that begins at `start`, or `pad` behind its last page."""
    return np.int64(pages[start + column]) if column < count else pad


@device_helper
def padded_part(pages, start, count, out, end, column, step):
    """Write four columns of a row, `step` apart, from `column` on; `end`: `(width, put, pad)`."""
    width, put, pad = end
    # All are read before one is written: else each would wait for the one before.
    a = page_or(pages, start, column, count, pad)
    b = page_or(pages, start, column + step, count, pad)
    c = page_or(pages, start, column + 2 * step, count, pad)
    d = page_or(pages, start, column + 3 * step, count, pad)
    if column < width:
        out[put + column] = a
    if column + step < width:
        out[put + column + step] = b
    if column + 2 * step < width:
        out[put + column + 2 * step] = c
    if column + 3 * step < width:
        out[put + column + 3 * step] = d


@cuda_kernel(
    "void(int64[::1], int64[::1], int32[::1], int32[::1], int64, int64)", twin=tables_padded_cpu
)
def tables_padded_cuda(record, tables, rows, out, width, pad):
    """Mutates the record and `out`: the page ids of each row, and `pad` behind them; NULL where the
    call fails.

    Reads the tables and `rows`, requires `out` of `width` elements for each. Up to 32 threads write
    a part of a row, each of them four of its columns.
    """
    shared = gpu.shared.array(SHARED_WORDS, np.int64)
    me, key, shape = np.int64(gpu.grid(1)), NOWHERE, table_shape(tables)
    (pages,) = table_pages(tables, shape)
    group = group_shift(width)
    threads = np.int64(1) << group
    parts = max((width + 4 * threads - 1) >> (group + 2), np.int64(1))  # one to look at the row
    lane = me & (threads - 1)
    part = me >> group
    while part < rows.size * parts:
        i = part // parts
        lives, tokens, row = live_row(tables, shape, np.int64(rows[i]))
        count = pages_of(tokens, shape)
        if lives & (count <= width):
            column = ((part - i * parts) << (group + 2)) + lane
            end = width, i * width, pad
            padded_part(pages, row * shape[1], count, out, end, column, threads)
        elif lives:
            key = min(key, fault_key(TABLE_WIDTH, i))
        else:
            key = min(key, row_key(tables, shape, rows, i))
        part += gpu.gridsize(1) >> group
    last, key = call_min(record, shared, key)
    if last:
        wanted = width if key & STATUS_MASK == TABLE_WIDTH else shape[0]
        end_layout(record, BLOCK_TABLES, key, value_at(key, rows), wanted, out)


@cuda_kernel("void(int64[::1], int64[::1], int32[::1], int64[::1])", twin=tables_width_cpu)
def tables_width_cuda(record, tables, rows, out):
    """Mutates the record and `out[0]`, the most pages that one of the rows has, or NULL.

    Reads the tables and `rows`, requires one block.
    """
    shared = gpu.shared.array(SHARED_WORDS, np.int64)
    me, key, longest, shape = gpu.threadIdx.x, NOWHERE, np.int64(0), table_shape(tables)
    for i in range(me, rows.size, gpu.blockDim.x):
        lives, tokens, _row = live_row(tables, shape, np.int64(rows[i]))
        longest = max(longest, tokens)
        if not lives:
            key = min(key, row_key(tables, shape, rows, i))
    key, longest = block_min(shared, key), -block_min(shared, -longest)
    if me == 0:
        out[0] = pages_of(longest, shape)
    end_layout(record, BLOCK_TABLES, key, value_at(key, rows), shape[0], out)


@device_helper
def row_pages(tables, shape, rows, i):
    """Return the pages of `rows[i]`, -1 where no sequence lives there, 0 behind the last row."""
    if i >= rows.size:
        return np.int64(0)
    lives, tokens, _row = live_row(tables, shape, np.int64(rows[i]))
    return pages_of(tokens, shape) if lives else np.int64(-1)


@device_helper
def csr_key(tables, shape, rows, i, pages, upto):
    """Return the key of why `rows[i]` is refused, or NOWHERE; `upto`: the pages up to its last."""
    if pages < 0:
        return row_key(tables, shape, rows, i)
    return fault_key(TOO_MANY, i) if upto > INT32_MAX else NOWHERE


@device_helper
def csr_tile(tables, shape, shared, rows, begin, put, starts):
    """Put where the pages of each row of a tile begin into `starts`, from 0 on, by one block.

    `put` pages come before. Returns `(pages of the tile, key of a row that is refused or NOWHERE)`.
    """
    j = 2 * gpu.threadIdx.x
    i = np.int64(begin + j)
    a, b = row_pages(tables, shape, rows, i), row_pages(tables, shape, rows, i + 1)
    before, total = block_scan(shared, max(a, np.int64(0)) + max(b, np.int64(0)))
    middle = before + max(a, np.int64(0))
    starts[j] = min(before, np.int64(INT32_MAX))
    starts[j + 1] = min(middle, np.int64(INT32_MAX))
    key = csr_key(tables, shape, rows, i, a, put + middle)
    key = min(key, csr_key(tables, shape, rows, i + 1, b, put + middle + b))
    gpu.syncthreads()
    return total, key


@device_helper
def csr_total(tables, shape, shared, rows, starts):
    """Return the pages of all rows, or a status word. `starts` is that of the last tile."""
    begin, total = np.int64(0), np.int64(0)
    while begin < rows.size:
        count, key = csr_tile(tables, shape, shared, rows, begin, total, starts)
        total += count
        if any_thread(key != NOWHERE):
            return -block_min(shared, key)
        begin += 2 * gpu.blockDim.x
    return total


@device_helper
def csr_ends(tables, shape, rows, span, starts, indptr, last_page_len):
    """Write where the pages of each row of a tile end, by one block.

    `span`: the first row of the tile, the rows of it, the pages before and behind it.
    """
    begin, count, put, end = span
    j = np.int64(gpu.threadIdx.x)
    while j < count:
        behind = put + starts[j + 1] if j + 1 < count else end
        _lives, tokens, _row = live_row(tables, shape, np.int64(rows[begin + j]))
        indptr[begin + j + 1] = behind
        # An empty sequence has no page: (0 - 1) * size + size is its length, 0, as well.
        last_page_len[begin + j] = tokens - (behind - put - starts[j] - 1) * shape[2]
        j += gpu.blockDim.x


@device_helper
def csr_pages(tables, shape, rows, span, starts, indices):
    """Copy the pages of the rows of a tile, by all blocks; `span` as above."""
    begin, count, put, end = span
    (pages,) = table_pages(tables, shape)
    at = np.int64(gpu.grid(1))
    while at < end - put:
        j = owner_of(starts, at, count)
        indices[put + at] = pages[np.int64(rows[begin + j]) * shape[1] + at - starts[j]]
        at += gpu.gridsize(1)


@cuda_kernel(
    "void(int64[::1], int64[::1], int32[::1], int32[::1], int32[::1], int32[::1])",
    twin=tables_csr_cpu,
)
def tables_csr_cuda(record, tables, rows, indptr, indices, last_page_len):
    """Mutates the record, `indptr`, `indices` (NULL behind the last page) and `last_page_len`, the
    pages of the rows one behind the other; NULL where the call fails.

    Reads the tables and `rows`, requires `indptr` one longer than `rows`; with too short `indices`
    it fails. Each block adds up all rows, so each knows where its pages go, and whether the call
    fails.
    """
    shared = gpu.shared.array(SHARED_WORDS, np.int64)
    starts = gpu.shared.array(TILE_ROWS, np.int32)
    first, step, n = gpu.grid(1), gpu.gridsize(1), np.int64(rows.size)
    shape = table_shape(tables)
    # Do all rows live, and does it all fit?
    total = csr_total(tables, shape, shared, rows, starts)
    status, value, wanted = np.int64(0), np.int64(0), tables[NUM_ROWS]
    if total < 0:
        status, value = total, np.int64(rows[-total >> STATUS_BITS])
    elif total > indices.size:
        status, wanted = fail(OUT_SHORT, indices.size), total
    if status < 0:
        fill_null(indptr, 0, first, step)
        fill_null(indices, 0, first, step)
        fill_null(last_page_len, 0, first, step)
    else:
        # Tile by tile: where rows end, by one block, and their pages, by all.
        put, tile = np.int64(0), np.int64(2 * gpu.blockDim.x)
        begin = np.int64(0)
        while begin < n:
            count = total
            if n > tile:  # else the only tile is still there
                count, _key = csr_tile(tables, shape, shared, rows, begin, put, starts)
            span = begin, min(tile, n - begin), put, put + count
            if gpu.blockIdx.x == 0:
                csr_ends(tables, shape, rows, span, starts, indptr, last_page_len)
            csr_pages(tables, shape, rows, span, starts, indices)
            put += count
            begin += tile
            gpu.syncthreads()
        fill_null(indices, total, first, step)
    if first == 0:
        if status >= 0:
            indptr[0] = 0
        end_read(record, PAGE_TABLE_CSR, status, value, wanted)


@cuda_kernel("void(int64[::1], int64[::1], int32[::1], int64[::1])", twin=tables_total_cpu)
def tables_total_cuda(record, tables, rows, out):
    """Mutates the record and `out[0]`, how many pages the rows have, or NULL.

    Reads the tables and `rows`, requires one block.
    """
    shared = gpu.shared.array(SHARED_WORDS, np.int64)
    starts = gpu.shared.array(TILE_ROWS, np.int32)
    total = csr_total(tables, table_shape(tables), shared, rows, starts)
    if gpu.threadIdx.x == 0:
        out[0] = max(total, np.int64(NULL))
        value = np.int64(rows[-total >> STATUS_BITS]) if total < 0 else np.int64(0)
        end_read(record, PAGE_TABLE_CSR, min(total, np.int64(0)), value, tables[NUM_ROWS])


@cuda_kernel("void(int64[::1], int32[::1])", twin=tables_rename_cpu)
def tables_rename_cuda(tables, names):
    """Mutates the tables: the pages of all rows, and the ends of what they lock, get new ids.

    Reads `names`, the new id of each page, requires a call that moves pages and books its own end:
    this is a part of it.
    """
    shape = table_shape(tables)
    count, width, _size, _shift = shape
    (pages,) = table_pages(tables, shape)
    lengths, locked = column_start(shape, LENGTH), column_start(shape, LOCKED)
    ends = column_start(shape, LOCK_END)
    row, at, step = np.int64(gpu.grid(1)), np.int64(gpu.grid(1)), gpu.gridsize(1)
    while row < count:
        if tables[locked + row] > 0:
            tables[ends + row] = names[tables[ends + row]]
        row += step
    while at < count * width:
        row = at // width
        if at - row * width < pages_of(tables[lengths + row], shape):
            pages[at] = names[pages[at]]
        at += step
