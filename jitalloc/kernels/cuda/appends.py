"""What `sequences_append_cuda` is made of: looking, sharing last pages, failing, writing."""

from __future__ import annotations

import numpy as np

from jitalloc._cuda import device_helper, gpu
from jitalloc.errors import (
    NEGATIVE,
    NEGATIVE_TOKEN,
    STATUS_BITS,
    STATUS_MASK,
    TABLE_WIDTH,
    TOKENS_MISFIT,
    TOO_MANY,
)
from jitalloc.kernels.cuda.owners import page_of
from jitalloc.kernels.cuda.pool import (
    block_total,
    fail,
    fault_key,
    fill_null,
    pool_views,
    ring_place,
)
from jitalloc.kernels.cuda.row_batches import (
    claims,
    row_fault,
    tables_column,
    tables_pages,
    tables_pages_of,
    tables_row_code,
    touch,
)
from jitalloc.kernels.cuda.scan import (
    NONE,
    any_thread,
    block_min,
    block_scan,
    own_part,
    warp_place,
)
from jitalloc.state import (
    HEAD,
    INT32_MAX,
    LAST_USED,
    LENGTH,
    MAX_PAGES,
    NULL,
    NUM_PAGES,
    NUM_ROWS,
    ROW_PAGE_SHIFT,
    ROW_PAGE_SIZE,
    STEP,
)

FEW = 4  # tokens that a thread appends to a row by itself


@device_helper
def growth(tables, row, n):
    """Return the page of `row` at which an append of `n` tokens begins, and how many it adds."""
    tokens = tables_column(tables, LENGTH)[row]
    before = tables_pages_of(tables, tokens)
    return before, tables_pages_of(tables, tokens + n) - before


@device_helper
def too_long(tables, row, n):
    """Return whether `n` more tokens are more than `row` has room for."""
    before, new = growth(tables, row, n)
    tokens = tables_column(tables, LENGTH)[row] + n
    return before + new > tables[MAX_PAGES] or tokens > INT32_MAX


@device_helper
def append_look(pool, tables, rows, counts, src):
    """Look at the rows of this thread, and mark them.

    `src[i]` becomes the last page of a row where that is written to and has other owners, else
    NULL. Returns `(whether all is sound, whether there is such a page, tokens, pages)`.
    """
    _free_pages, refcount, _released = pool_views(pool)
    length, pages = tables_column(tables, LENGTH), tables_pages(tables)
    size, width = tables[ROW_PAGE_SIZE], tables[MAX_PAGES]
    sound, shares = True, False
    tokens, need = np.int64(0), np.int64(0)
    begin, end = own_part(rows.size)
    for i in range(begin, end):
        row, n = np.int64(rows[i]), counts[i if counts.size > 1 else 0]
        src[i] = NULL
        if n < 0 or n > INT32_MAX or tables_row_code(tables, row) != 0:
            sound = False
            continue
        mine = claims(tables, row)
        before, new = growth(tables, row, n)
        if n > 0 and length[row] < before * size:
            last = pages[row * width + before - 1]
            if refcount[last] > 1:
                src[i] = last
                shares = True
        sound = sound and mine and not too_long(tables, row, n)
        tokens += n
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
            refcount[src[i]] = 1
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
def lowest_fault(shared, tables, rows, counts, tokens):
    """Return the key of the first failure of rows, tokens or lengths, in this order, or NONE."""
    me, step = gpu.threadIdx.x, gpu.blockDim.x
    key = NONE
    for i in range(me, rows.size, step):
        key = min(key, row_fault(tables, rows, np.int64(i)))
    key = block_min(shared, key)
    if key != NONE:
        return key
    for i in range(me, tokens.size, step):
        if tokens[i] < 0:
            key = min(key, fault_key(NEGATIVE_TOKEN, np.int64(i)))
    key = block_min(shared, key)
    if key != NONE:
        return key
    for i in range(me, rows.size, step):
        if too_long(tables, np.int64(rows[i]), counts[i if counts.size > 1 else 0]):
            key = min(key, fault_key(TABLE_WIDTH, np.int64(i)))
    return block_min(shared, key)


@device_helper
def fault_facts(tables, rows, counts, tokens, status):
    """Return `(value, wanted)` of a failure about one element, for the record."""
    code, at = -status & STATUS_MASK, -status >> STATUS_BITS
    if code == NEGATIVE or code == TOO_MANY:
        return counts[at], np.int64(0)
    if code == NEGATIVE_TOKEN:
        return np.int64(tokens[at]), np.int64(0)
    if code == TABLE_WIDTH:
        n = counts[at if counts.size > 1 else 0]
        before, new = growth(tables, np.int64(rows[at]), n)
        return n, (before + new) << np.int64(31) | tables[MAX_PAGES]
    return np.int64(rows[at]), tables[NUM_ROWS]


@device_helper
def append_fault(shared, tables, rows, counts, tokens):
    """Return `(status word, value, wanted)` of the first failure of a batch that is not sound."""
    total = block_total(shared, counts, 0, np.int64(counts.size))
    if total >= 0 and counts.size == 1:
        total *= rows.size
    if total >= 0 and tokens.size > 0 and tokens.size != total:
        return fail(TOKENS_MISFIT, tokens.size), np.int64(0), total
    status = total if total < 0 else -lowest_fault(shared, tables, rows, counts, tokens)
    value, wanted = fault_facts(tables, rows, counts, tokens, status)
    return status, value, wanted


@device_helper
def append_row(pool, tables, row, n, copying, slots, place, alone):
    """Write the slots of `n` new tokens and the pages begun, by a thread alone or by a warp.

    `place`: how many slots (upper half) and pages the rows before take. Returns the page that
    the last one is to be copied to, where `copying`.
    """
    free_pages, refcount, _released = pool_views(pool)
    pages = tables_pages(tables)
    size, shift, ring = tables[ROW_PAGE_SIZE], tables[ROW_PAGE_SHIFT], pool[NUM_PAGES]
    length = tables_column(tables, LENGTH)[row]
    before, new = growth(tables, row, n)
    first, step = np.int64(0), np.int64(1)
    if not alone:
        _warp, _warps, first, step = warp_place()
    put = place >> np.int64(32)
    head = ring_place(pool[HEAD] + (place & np.int64(0xFFFFFFFF)), ring)
    at = row * tables[MAX_PAGES]
    taken = before - 1 if copying else before  # the block of the first page taken
    for block in range(taken + first, before + new, step):
        page = free_pages[ring_place(head + block - taken, ring)]
        refcount[page] = 1
        pages[at + block] = page
    for token in range(length + first, length + n, step):
        block = page_of(token, size, shift)
        page = np.int64(0)
        if block >= taken:
            page = np.int64(free_pages[ring_place(head + block - taken, ring)])
        else:
            page = np.int64(pages[at + block])
        slots[put + token - length] = page * size + token - block * size
    return np.int64(free_pages[head]) if copying else np.int64(NULL)


@device_helper
def append_end(pool, tables, row, n):
    """Book `n` tokens more in `row`."""
    tables_column(tables, LENGTH)[row] += n
    touch(tables, row, pool[STEP] + 1)


@device_helper
def append_rows(pool, tables, rows, counts, copied, slots, place):
    """Write slots, pages and facts of a valid batch; `place`: where the rows of a thread begin."""
    src, dst = copied[: rows.size], copied[rows.size :]
    begin, end = own_part(rows.size)
    many = False
    for i in range(begin, end):
        many = many or counts[i if counts.size > 1 else 0] > FEW
    stash = tables_column(tables, LAST_USED)  # what every row is about to get anew
    many = any_thread(many)
    for i in range(begin, end):
        row, n = np.int64(rows[i]), counts[i if counts.size > 1 else 0]
        _before, new = growth(tables, row, n)
        copying = src[i] != NULL
        if many:
            stash[row] = place
        else:
            dst[i] = append_row(pool, tables, row, n, copying, slots, place, True)
            append_end(pool, tables, row, n)
        place += n << np.int64(32) | (new + 1 if copying else new)
    gpu.syncthreads()
    if many:
        warp, warps, _lane, _lanes = warp_place()
        for i in range(warp, rows.size, warps):
            row, n = np.int64(rows[i]), counts[i if counts.size > 1 else 0]
            dst[i] = append_row(pool, tables, row, n, src[i] != NULL, slots, stash[row], False)
        gpu.syncthreads()
        for i in range(begin, end):
            append_end(pool, tables, np.int64(rows[i]), counts[i if counts.size > 1 else 0])
        gpu.syncthreads()


@device_helper
def pack_copies(shared, src, dst):
    """Move the copies to the front of both, NULL behind them; return how many there are."""
    count = np.int64(0)
    for begin in range(0, src.size, gpu.blockDim.x):
        i = np.int64(begin + gpu.threadIdx.x)
        page = src[i] if i < src.size else np.int32(NULL)
        copy = dst[i] if i < src.size else np.int32(NULL)
        before, total = block_scan(shared, np.int64(1) if page != NULL else np.int64(0))
        if page != NULL:  # what is overwritten has been read: it stands here or before
            src[count + before] = page
            dst[count + before] = copy
        count += total
    gpu.syncthreads()
    fill_null(src, count, gpu.threadIdx.x, gpu.blockDim.x)
    fill_null(dst, count, gpu.threadIdx.x, gpu.blockDim.x)
    return count
