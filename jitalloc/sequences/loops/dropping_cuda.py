"""How the rows of a batch give pages up: a run of each, which their other owners keep.

`starts[i]` tells how many pages the rows before row `i` give up, `starts[rows.size]` all of them;
`firsts[i]` is the first page of row `i` that it gives up, by its place in the row.
"""

from __future__ import annotations

import numpy as np

from jitalloc.gpu.calls import bit
from jitalloc.gpu.kernel import device_helper, gpu
from jitalloc.gpu.scan import block_scan, owner_of
from jitalloc.pool.loops.merging_cuda import pool_views
from jitalloc.pool.loops.releasing_cuda import release_tile
from jitalloc.pool.state import ORDER, SORTED
from jitalloc.sequences.loops.row_batches_cuda import team_place
from jitalloc.sequences.loops.row_facts_cuda import table_pages
from jitalloc.state import NULL

LONG = 8  # pages that a row gives up on average, for a team to work on each


@device_helper
def dropped_place(shape, rows, starts, firsts, at):
    """Return where page `at` of those given up stands among the page ids of all rows."""
    i = owner_of(starts, at, np.int64(rows.size))
    return np.int64(rows[i]) * shape[1] + firsts[i] + at - starts[i]


@device_helper
def are_short(rows, starts):
    """Return whether the rows give up so few pages that threads share them out by pages."""
    return starts[rows.size] <= LONG * rows.size


@device_helper
def lose_owner(refcount, released, page, ring):
    """Take one owner off a page; return whether it is released now, which a ring is later."""
    if gpu.atomic.sub(refcount, page, np.int32(1)) != 1 or ring:
        return np.int64(0)
    gpu.atomic.or_(released, page >> 6, bit(page))
    return np.int64(1)


@device_helper
def drop_pages(pool, shared, tables, shape, rows, starts, firsts):
    """Take one owner off each page given up; return how many go free.

    In a freelist that is a ring they stand in the order in which each lost its last owner.
    """
    _free_pages, refcount, released = pool_views(pool)
    (pages,) = table_pages(tables, shape)
    ring, count = pool[ORDER] != SORTED, np.int64(0)
    if are_short(rows, starts):
        at = np.int64(gpu.threadIdx.x)
        while at < starts[rows.size]:
            page = pages[dropped_place(shape, rows, starts, firsts, at)]
            count += lose_owner(refcount, released, np.int64(page), ring)
            at += gpu.blockDim.x
    else:
        team, teams, place, size = team_place(rows.size)
        for i in range(team, rows.size, teams):
            at, j = np.int64(rows[i]) * shape[1] + firsts[i], place
            while j < starts[i + 1] - starts[i]:
                count += lose_owner(refcount, released, np.int64(pages[at + j]), ring)
                j += size
    _before, count = block_scan(shared, count)
    if ring:
        count = order_dropped(pool, shared, tables, shape, rows, starts, firsts)
    return count


@device_helper
def mention(refcount, page, at):
    """Note that page `at` of all is one without owners: below zero, a count tells the last one."""
    if refcount[page] <= 0:
        gpu.atomic.min(refcount, page, np.int32(-1 - at))


@device_helper
def order_dropped(pool, shared, tables, shape, rows, starts, firsts):
    """Put the pages that have lost all owners into the ring, by their last mentions."""
    _free_pages, refcount, _released = pool_views(pool)
    (pages,) = table_pages(tables, shape)
    me, step, total = np.int64(gpu.threadIdx.x), gpu.blockDim.x, starts[rows.size]
    if are_short(rows, starts):
        at = me
        while at < total:
            page = pages[dropped_place(shape, rows, starts, firsts, at)]
            mention(refcount, np.int64(page), at)
            at += step
    else:
        team, teams, place, size = team_place(rows.size)
        for i in range(team, rows.size, teams):
            at, j = np.int64(rows[i]) * shape[1] + firsts[i], place
            while j < starts[i + 1] - starts[i]:
                mention(refcount, np.int64(pages[at + j]), starts[i] + j)
                j += size
    gpu.syncthreads()
    count, begin = np.int64(0), np.int64(0)
    while begin < total:
        at = begin + me
        page, gone = np.int64(0), False
        if at < total:
            page = np.int64(pages[dropped_place(shape, rows, starts, firsts, at)])
            gone = refcount[page] == -1 - at
        gpu.syncthreads()  # all have read the counts, some of them the same one
        if gone:
            refcount[page] = 0
        count += release_tile(pool, shared, page, gone, count)
        begin += step
    return count


@device_helper
def clear_pages(tables, shape, rows, starts, firsts):
    """Write NULL where the pages stood that are given up."""
    (pages,) = table_pages(tables, shape)
    if are_short(rows, starts):
        at = np.int64(gpu.threadIdx.x)
        while at < starts[rows.size]:
            pages[dropped_place(shape, rows, starts, firsts, at)] = NULL
            at += gpu.blockDim.x
        return
    team, teams, place, size = team_place(rows.size)
    for i in range(team, rows.size, teams):
        at, j = np.int64(rows[i]) * shape[1] + firsts[i], place
        while j < starts[i + 1] - starts[i]:
            pages[at + j] = NULL
            j += size


@device_helper
def close_gaps(shared, tables, shape, rows, starts, firsts, moved):
    """Move the pages behind those given up to their place, NULL behind them; `firsts` go along.

    `moved[i]` tells how many pages of the rows before row `i` move, `moved[rows.size]` all.
    """
    (pages,) = table_pages(tables, shape)
    batch = np.int64(rows.size)
    for begin in range(0, moved[batch], gpu.blockDim.x):
        at = np.int64(begin + gpu.threadIdx.x)
        put, page = np.int64(NULL), np.int32(NULL)
        if at < moved[batch]:
            i = owner_of(moved, at, batch)
            put = np.int64(rows[i]) * shape[1] + firsts[i] + at - moved[i]
            page = pages[put + starts[i + 1] - starts[i]]
        gpu.syncthreads()  # what is overwritten has been read: it stands before, in the row
        if put != NULL:
            pages[put] = page
    gpu.syncthreads()
    for i in range(gpu.threadIdx.x, batch, gpu.blockDim.x):
        firsts[i] += moved[i + 1] - moved[i]
    gpu.syncthreads()
    clear_pages(tables, shape, rows, starts, firsts)
