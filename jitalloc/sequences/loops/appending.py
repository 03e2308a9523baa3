"""How an append of the CPU looks at its rows and writes what it makes: slots, pages, token ids."""

from __future__ import annotations

import numpy as np

from jitalloc._intrinsics import fail
from jitalloc._jit import helper
from jitalloc.errors import NEGATIVE, TABLE_WIDTH
from jitalloc.pool.loops.pool import pool_advance, pool_views
from jitalloc.pool.loops.tokens import claim_run, tokens_fill
from jitalloc.pool.state import HEAD, NUM_PAGES, STEP
from jitalloc.prefix.loops.nodes import token_column
from jitalloc.sequences.loops.committing import write_tokens
from jitalloc.sequences.loops.row_locks import row_shorten
from jitalloc.sequences.loops.tables import (
    tables_column,
    tables_pages,
    tables_pages_of,
)
from jitalloc.sequences.state import (
    COMPUTED,
    KNOWN,
    LAST_USED,
    LENGTH,
    LOCKED,
    MAX_PAGES,
    PAGE_COPIES,
    ROW_PAGE_SHIFT,
    ROW_PAGE_SIZE,
    USES,
)
from jitalloc.state import INT32_MAX, NULL


@helper
def append_need(pool, tables, rows, counts, copies):
    """Return how many pages an append takes, or a status word with nothing changed.

    Where the partly filled last page of a row has other owners, the row gives its share up
    (`copies[i]` is the page, else NULL): the last owner of a page in the batch finds it
    unshared and writes in place. `append_undo` takes that back.
    """
    _free_pages, refcount, _released = pool_views(pool)
    length, pages = tables_column(tables, LENGTH), tables_pages(tables)
    size, width = tables[ROW_PAGE_SIZE], tables[MAX_PAGES]
    need = np.int64(0)
    for i in range(rows.size):
        copies[i] = NULL
    for i in range(rows.size):
        row, n = np.int64(rows[i]), counts[i if counts.size > 1 else 0]
        if n < 0 or n > INT32_MAX:
            return fail(NEGATIVE, i)
        before = tables_pages_of(tables, length[row])
        after = tables_pages_of(tables, length[row] + n)
        if after > width or length[row] + n > INT32_MAX:
            return fail(TABLE_WIDTH, i)
        need += after - before
        if n > 0 and length[row] < before * size:
            last = pages[row * width + before - 1]
            if refcount[last] > 1:
                refcount[last] -= np.int32(1)
                copies[i] = last
                need += 1
    return need


@helper
def append_undo(pool, copies):
    """Give back the shares that `append_need` took."""
    _free_pages, refcount, _released = pool_views(pool)
    for i in range(copies.size):
        if copies[i] != NULL:
            refcount[copies[i]] += np.int32(1)


@helper
def append_claim(pool, tables, batch, slots, copied):
    """Write slots for new tokens, and pages into the rows; return how many pages were copied.

    `batch`: rows, counts, and whether what stands before new tokens counts as computed.

    `copied[0, i]` is the page that row i must not write to, or NULL; at the end `copied` holds
    the sources and destinations of the copies, one behind the other.
    """
    rows, counts, computed = batch
    src, dst = copied[0], copied[1]
    free_pages, refcount, _released = pool_views(pool)
    length, pages = tables_column(tables, LENGTH), tables_pages(tables)
    last_used, uses = tables_column(tables, LAST_USED), tables_column(tables, USES)
    done = tables_column(tables, COMPUTED)
    size, width, wrap = tables[ROW_PAGE_SIZE], tables[MAX_PAGES], pool[NUM_PAGES]
    head = pool[HEAD]
    put = np.int64(0)
    taken = np.int64(0)
    copies = np.int64(0)
    for i in range(rows.size):
        row, left = np.int64(rows[i]), counts[i if counts.size > 1 else 0]
        at = row * width + tables_pages_of(tables, length[row])
        used = length[row] - (at - row * width - 1) * size  # of the last page; `size` if none
        if computed and left > 0:
            done[row] = length[row]
        length[row] += left
        last_used[row] = pool[STEP] + 1
        uses[row] += 1
        copying = src[i] != NULL
        if used < size and not copying:
            n = min(size - used, left)
            tokens_fill(slots, put, pages[at - 1] * size + used, n)
            put += n
            left -= n
        if copying and left > 0:  # the copy of the last page comes first, and is filled up
            if head == wrap:
                head = np.int64(0)
            page = free_pages[head]
            refcount[page] = 1
            head += 1
            taken += 1
            src[copies] = src[i]  # copies <= i: what is overwritten has been read
            dst[copies] = page
            copies += 1
            pages[at - 1] = page
            n = min(size - used, left)
            tokens_fill(slots, put, page * size + used, n)
            put += n
            left -= n
        while left > 0:
            if head == wrap:
                head = np.int64(0)
            first = np.int64(free_pages[head])
            run = claim_run(free_pages, refcount, head, wrap, tables_pages_of(tables, left))
            for j in range(run):
                pages[at + j] = first + j
            at += run
            head += run
            taken += run
            n = min(run * size, left)
            tokens_fill(slots, put, first * size, n)
            put += n
            left -= n
    pool_advance(pool, head, taken)
    tables[PAGE_COPIES] += copies
    return copies


@helper
def append_tokens(pool, tables, prefix, rows, counts, tokens):
    """Book the ids of tokens just appended; nothing enters the cache."""
    length, known = tables_column(tables, LENGTH), tables_column(tables, KNOWN)
    locked, size = tables_column(tables, LOCKED), tables[ROW_PAGE_SIZE]
    shift, width = tables[ROW_PAGE_SHIFT], tables[MAX_PAGES]
    column, pages = token_column(prefix), tables_pages(tables)
    put = np.int64(0)
    for i in range(rows.size if tokens.size > 0 else 0):
        row, n = np.int64(rows[i]), counts[i if counts.size > 1 else 0]
        before = length[row] - n
        if known[row] == before:
            if n == 1 and shift >= 0:
                page = np.int64(pages[row * width + (before >> shift)])
                column[(page << shift) + (before & (size - 1))] = tokens[put]
            else:
                write_tokens(tables, prefix, row, before, tokens[put : put + n])
            known[row] = length[row]
        put += n
    for i in range(rows.size):
        row, n = np.int64(rows[i]), counts[i if counts.size > 1 else 0]
        before = length[row] - n
        # A cached page that was cut short by `truncate` has just been replaced by a copy.
        if n > 0 and locked[row] * size > before:
            row_shorten(pool, tables, prefix, row, before // size)
