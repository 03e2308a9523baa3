"""What `sequences_append_cuda` is made of: looking, sharing last pages, writing.

`known` are the token ids that the prefix cache has beside the pool, one a slot; empty where there
is no prefix cache.
"""

from __future__ import annotations

import numpy as np

from jitalloc.errors import (
    NEGATIVE,
    NEGATIVE_TOKEN,
    STATUS_BITS,
    STATUS_MASK,
    TABLE_WIDTH,
    TOKENS_MISFIT,
    TOO_MANY,
)
from jitalloc.gpu.calls import fail, fault_key
from jitalloc.gpu.kernel import device_helper, gpu
from jitalloc.gpu.scan import NOWHERE, block_min, own_part
from jitalloc.pool.loops.merging_cuda import pool_views
from jitalloc.pool.loops.pool_cuda import block_total, page_of
from jitalloc.sequences.loops.row_batches_cuda import count_of, rows_fault
from jitalloc.sequences.loops.row_facts_cuda import (
    claims,
    column_start,
    pages_of,
    row_code,
    table_pages,
)
from jitalloc.sequences.state import LENGTH, MAX_PAGES, NUM_ROWS
from jitalloc.state import INT32_MAX, NULL

KEPT = -2  # less a page: what a row that keeps it has noted meanwhile


@device_helper
def growth(tables, shape, row, n):
    """Return the page of `row` at which an append of `n` tokens begins, and how many it adds."""
    tokens = tables[column_start(shape, LENGTH) + row]
    before = pages_of(tokens, shape)
    return before, (page_of(tokens + n + shape[2] - 1, shape[2], shape[3])) - before


@device_helper
def too_long(tables, shape, row, n):
    """Return whether `n` more tokens are more than `row` has room for."""
    before, new = growth(tables, shape, row, n)
    tokens = tables[column_start(shape, LENGTH) + row] + n
    return before + new > shape[1] or tokens > INT32_MAX


@device_helper
def append_look(pool, tables, shape, rows, counts, src):
    """Look at the rows of this thread, and mark them.

    `src[i]` becomes the last page of a row where that is written to and has other owners, else
    NULL. Returns `(whether all is sound, whether there is such a page, tokens, pages)`.
    """
    _free_pages, refcount, _released = pool_views(pool)
    (pages,) = table_pages(tables, shape)
    sound, shares = True, False
    tokens, need = np.int64(0), np.int64(0)
    begin, end = own_part(rows.size)
    for i in range(begin, end):
        row, n = np.int64(rows[i]), count_of(counts, rows.size, i)
        src[i] = NULL
        if n < 0 or n > INT32_MAX:
            sound = False
            continue
        tokens += n
        if row == NULL:
            continue
        if row_code(tables, shape, row) != 0:
            sound = False
            continue
        mine = claims(tables, shape, row)
        before, new = growth(tables, shape, row, n)
        if n > 0 and tables[column_start(shape, LENGTH) + row] < before * shape[2]:
            last = pages[row * shape[1] + before - 1]
            if refcount[last] > 1:
                src[i] = last
                shares = True
        sound = sound and mine and not too_long(tables, shape, row, n)
        need += new
    return sound, shares, tokens, need


@device_helper
def settle_shares(pool, src):
    """Let all rows give up their share of a last page but the one that finds itself alone.

    As the rows take their turn, that is the last of them, where nobody else owns the page: it
    writes in place, so its `src[i]` becomes NULL. Returns how many rows of this thread copy.
    """
    _free_pages, refcount, _released = pool_views(pool)
    begin, end = own_part(src.size)
    for i in range(begin, end):
        if src[i] != NULL:
            gpu.atomic.sub(refcount, np.int64(src[i]), np.int32(1))
    gpu.syncthreads()
    for i in range(begin, end):  # below zero, a count tells which row is the last
        if src[i] != NULL and refcount[src[i]] <= 0:
            gpu.atomic.min(refcount, np.int64(src[i]), np.int32(-1 - i))
    gpu.syncthreads()
    copies = np.int64(0)
    for i in range(begin, end):
        if src[i] != NULL and refcount[src[i]] == -1 - i:
            gpu.atomic.exch(refcount, np.int64(src[i]), np.int32(1))  # the others look meanwhile
            src[i] = NULL
        elif src[i] != NULL:
            copies += 1
    gpu.syncthreads()
    return copies


@device_helper
def unsettle(pool, src):
    """Give back the shares that `settle_shares` took."""
    _free_pages, refcount, _released = pool_views(pool)
    begin, end = own_part(src.size)
    for i in range(begin, end):
        if src[i] != NULL:
            gpu.atomic.add(refcount, np.int64(src[i]), np.int32(1))


@device_helper
def counts_total(shared, rows, counts):
    """Return the sum of the counts, or a status word where one is negative or it is past int32."""
    batch = np.int64(rows.size)
    if counts.size != 1:
        return block_total(shared, counts, 1 if counts.size > batch else 0, batch)
    each = block_total(shared, counts, 0, min(batch, np.int64(1)))  # one for all
    if each > 0 and each * batch > INT32_MAX:
        return -fault_key(TOO_MANY, INT32_MAX // each)
    return each * batch if each > 0 else each


@device_helper
def lowest_fault(shared, tables, shape, rows, counts, tokens):
    """Return the key of the first failure of rows, tokens or lengths, in this order, or NOWHERE."""
    me, step = gpu.threadIdx.x, gpu.blockDim.x
    key = rows_fault(shared, tables, shape, rows)
    if key != NOWHERE:
        return key
    for i in range(me, tokens.size, step):
        if tokens[i] < 0:
            key = min(key, fault_key(NEGATIVE_TOKEN, np.int64(i)))
    key = block_min(shared, key)
    if key != NOWHERE:
        return key
    for i in range(me, rows.size, step):
        row = np.int64(rows[i])
        if row != NULL and too_long(tables, shape, row, count_of(counts, rows.size, i)):
            key = min(key, fault_key(TABLE_WIDTH, np.int64(i)))
    return block_min(shared, key)


@device_helper
def append_fault(shared, tables, shape, rows, counts, tokens):
    """Return `(status word, value, wanted)` of the first failure of a batch that is not sound."""
    total = counts_total(shared, rows, counts)
    if total >= 0 and tokens.size > 0 and tokens.size != total:
        return fail(TOKENS_MISFIT, tokens.size), np.int64(0), total
    status = total
    if total >= 0:
        status = -lowest_fault(shared, tables, shape, rows, counts, tokens)
    code, at = -status & STATUS_MASK, -status >> STATUS_BITS
    if code == NEGATIVE or code == TOO_MANY:
        return status, count_of(counts, rows.size, at), np.int64(0)
    if code == NEGATIVE_TOKEN:
        return status, np.int64(tokens[at]), np.int64(0)
    if code == TABLE_WIDTH:
        n = count_of(counts, rows.size, at)
        before, new = growth(tables, shape, np.int64(rows[at]), n)
        return status, n, (before + new) << np.int64(31) | tables[MAX_PAGES]
    return status, np.int64(rows[at]), tables[NUM_ROWS]
