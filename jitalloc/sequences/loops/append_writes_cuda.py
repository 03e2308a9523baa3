"""How an append writes what it makes: slots, pages, copies and token ids."""

from __future__ import annotations

import numpy as np

from jitalloc.gpu.calls import fill_null, ring_place
from jitalloc.gpu.kernel import device_helper, gpu
from jitalloc.gpu.scan import any_thread, block_scan, own_part
from jitalloc.pool.loops.merging_cuda import pool_views
from jitalloc.pool.loops.pool_cuda import page_of
from jitalloc.pool.state import HEAD, NUM_PAGES, STEP
from jitalloc.sequences.loops.appends_cuda import growth
from jitalloc.sequences.loops.row_batches_cuda import count_of, team_place
from jitalloc.sequences.loops.row_facts_cuda import (
    column_start,
    shorten_lock,
    table_pages,
    table_shape,
    touch,
)
from jitalloc.sequences.state import COMPUTED, KNOWN, LAST_USED, LENGTH, LOCKED
from jitalloc.state import NULL

FEW = 4  # tokens that a thread appends to a row by itself


@device_helper
def append_row(pool, tables, shape, row, n, slots, place):
    """Write the slots of `n` new tokens and the pages begun, by some threads of a team.

    `place`: how many slots (upper half) and pages the rows before take, whether the last page is
    copied, and which of how many threads this one is. Returns the page that it is copied to.
    """
    free_pages, refcount, _released = pool_views(pool)
    (pages,) = table_pages(tables, shape)
    both, copying, first, step = place
    _rows, width, size, shift = shape
    length = tables[column_start(shape, LENGTH) + row]
    before, new = growth(tables, shape, row, n)
    ring = pool[NUM_PAGES]
    put = both >> np.int64(32)
    head = ring_place(pool[HEAD] + (both & np.int64(0xFFFFFFFF)), ring)
    at = row * width
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
def skip_row(slots, n, place):
    """Write NULL to the slots that a row of NULL leaves out."""
    both, _copying, first, step = place
    for j in range(first, n, step):
        slots[(both >> np.int64(32)) + j] = NULL


@device_helper
def append_teams(pool, tables, rows, counts, slots, src, dst):
    """Write slots and pages of rows some of which get many tokens, a team for each."""
    shape, batch = table_shape(tables), np.int64(rows.size)
    team, teams, me, size = team_place(batch)
    for i in range(team, batch, teams):
        row = np.int64(rows[i])
        if row != NULL:
            at = tables[column_start(shape, LAST_USED) + row]
            mine = at, src[i] != NULL, me, size
            n = count_of(counts, batch, i)
            copy = append_row(pool, tables, shape, row, n, slots, mine)
            if me == 0:
                dst[i] = copy


@device_helper
def copy_known(shape, known, src, dst):
    """Copy the token ids of the pages that are copied."""
    team, teams, place, size = team_place(src.size)
    for i in range(team, src.size, teams):
        if src[i] != NULL:
            source, target = np.int64(src[i]) * shape[2], np.int64(dst[i]) * shape[2]
            for j in range(place, shape[2], size):
                known[target + j] = known[source + j]


@device_helper
def tell_tokens(tables, shape, known, row, n, told, place):
    """Write the ids of the new tokens of a row where all before them are known.

    `told`: the ids of all, and their slots.
    """
    tokens, slots = told
    both, _copying, first, step = place
    put = both >> np.int64(32)
    before = tables[column_start(shape, LENGTH) + row]
    if tokens.size > 0 and tables[column_start(shape, KNOWN) + row] == before:
        for j in range(first, n, step):
            known[slots[put + j]] = tokens[put + j]


@device_helper
def tell_rows(tables, known, rows, counts, news, many, place):
    """Write the ids of the new tokens, by the threads that have written their slots."""
    shape, batch = table_shape(tables), np.int64(rows.size)
    if many:
        team, teams, me, size = team_place(batch)
        for i in range(team, batch, teams):
            row = np.int64(rows[i])
            if row != NULL:
                mine = tables[column_start(shape, LAST_USED) + row], False, me, size
                n = count_of(counts, batch, i)
                tell_tokens(tables, shape, known, row, n, news, mine)
        return
    begin, end = own_part(batch)
    at = place
    for i in range(begin, end):
        row, n = np.int64(rows[i]), count_of(counts, batch, i)
        if row != NULL:
            mine = at, False, np.int64(0), np.int64(1)
            tell_tokens(tables, shape, known, row, n, news, mine)
        at += n << np.int64(32)


@device_helper
def append_end(pool, tables, shape, known, row, n, facts):
    """Book `n` tokens more in `row`.

    `facts`: whether their ids are told, and whether what stands before them is computed.
    """
    told, computed = facts
    before = tables[column_start(shape, LENGTH) + row]
    tables[column_start(shape, LENGTH) + row] = before + n
    if computed and n > 0:
        tables[column_start(shape, COMPUTED) + row] = before
    touch(tables, shape, row, pool[STEP] + 1)
    if known.size > 0:
        (pages,) = table_pages(tables, shape)
        if told and tables[column_start(shape, KNOWN) + row] == before:
            tables[column_start(shape, KNOWN) + row] = before + n
        # A cached page that was cut short by a truncation has just been replaced by a copy.
        if n > 0 and tables[column_start(shape, LOCKED) + row] * shape[2] > before:
            shorten_lock(tables, shape, pages, row, page_of(before, shape[2], shape[3]))


@device_helper
def append_rows(pool, tables, known, call, news, copied, place, shares):
    """Write slots, pages and facts of a valid batch.

    `call`: rows, counts, and whether what they have is computed; `news`: the token ids and the
    slots of what is new; `place`: where the rows of a thread begin; `shares`: whether pages are
    copied.
    """
    rows, counts, computed = call
    tokens, slots = news
    shape, batch = table_shape(tables), np.int64(rows.size)
    src, dst = copied[:batch], copied[batch:]
    begin, end = own_part(batch)
    many = False
    for i in range(begin, end):
        many = many or count_of(counts, batch, i) > FEW
    many = any_thread(many)
    at = place
    for i in range(begin, end):
        row, n = np.int64(rows[i]), count_of(counts, batch, i)
        mine = at, src[i] != NULL, np.int64(0), np.int64(1)
        new = np.int64(0)
        if row == NULL:
            dst[i] = NULL
            skip_row(slots, n, mine)
        else:
            _before, new = growth(tables, shape, row, n)
            if many:  # the column is about to be written anew
                tables[column_start(shape, LAST_USED) + row] = at
            else:
                dst[i] = append_row(pool, tables, shape, row, n, slots, mine)
        at += n << np.int64(32) | (new + 1 if src[i] != NULL else new)
    if many:
        gpu.syncthreads()
        append_teams(pool, tables, rows, counts, slots, src, dst)
    if known.size > 0:
        if shares:
            gpu.syncthreads()
            copy_known(shape, known, src, dst)
            gpu.syncthreads()
        tell_rows(tables, known, rows, counts, news, many, place)
    if many:
        gpu.syncthreads()
    for i in range(begin, end):
        if rows[i] != NULL:
            n = count_of(counts, batch, i)
            facts = tokens.size > 0, computed
            append_end(pool, tables, shape, known, np.int64(rows[i]), n, facts)
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
