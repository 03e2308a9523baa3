"""Twin of the loop that tells how many sequences of a batch can grow."""

from __future__ import annotations

import numpy as np

from jitalloc.errors import STATUS_BITS
from jitalloc.gpu.calls import end_read
from jitalloc.gpu.kernel import cuda_kernel, device_helper, gpu
from jitalloc.gpu.record import CALL_KINDS, RECORD_SLOTS
from jitalloc.gpu.scan import (
    SHARED_WORDS,
    any_thread,
    block_min,
    block_scan,
    own_part,
)
from jitalloc.pool.loops.merging_cuda import pool_views
from jitalloc.pool.state import FREE, RELEASED
from jitalloc.sequences.loops.appends_cuda import (
    counts_total,
    growth,
    settle_shares,
    too_long,
    unsettle,
)
from jitalloc.sequences.loops.room import room_count_cpu
from jitalloc.sequences.loops.row_batches_cuda import count_of, rows_fault
from jitalloc.sequences.loops.row_facts_cuda import (
    claims,
    column_start,
    row_code,
    table_pages,
    table_shape,
    unclaim,
)
from jitalloc.sequences.state import LENGTH
from jitalloc.state import NULL

ROOM_FOR = CALL_KINDS.index("room_for")


@device_helper
def room_look(pool, tables, shape, rows, counts, src):
    """Look at the rows of this thread; return whether they are sound.

    `src[i]` becomes the last page of a row where that is written to and has other owners, else
    NULL.
    """
    _free_pages, refcount, _released = pool_views(pool)
    (pages,) = table_pages(tables, shape)
    sound = True
    begin, end = own_part(rows.size)
    for i in range(begin, end):
        row = np.int64(rows[i])
        src[i] = NULL
        if row == NULL:
            continue
        if row_code(tables, shape, row) != 0:
            sound = False
            continue
        sound = claims(tables, shape, row) and sound
        before, _new = growth(tables, shape, row, np.int64(0))
        tokens = tables[column_start(shape, LENGTH) + row]
        if count_of(counts, rows.size, i) > 0 and tokens < before * shape[2]:
            last = pages[row * shape[1] + before - 1]
            if refcount[last] > 1:
                src[i] = last
    return sound


@device_helper
def pages_taken(tables, shape, rows, counts, src, i):
    """Return how many pages row `i` takes as it grows; -1: it is too long."""
    row, n = np.int64(rows[i]), count_of(counts, rows.size, i)
    if row == NULL:
        return np.int64(0)
    if too_long(tables, shape, row, n):
        return np.int64(-1)
    _before, new = growth(tables, shape, row, n)
    return new + 1 if src[i] != NULL else new


@device_helper
def first_without_room(shared, tables, shape, pairs, src, room):
    """Return the first row that cannot grow, or the size of the batch; `pairs`: rows and counts."""
    rows, counts = pairs
    begin, end = own_part(rows.size)
    need = np.int64(0)
    for i in range(begin, end):
        need += max(pages_taken(tables, shape, rows, counts, src, i), np.int64(0))
    need, _total = block_scan(shared, need)
    first = np.int64(rows.size)
    for i in range(begin, end):
        taken = pages_taken(tables, shape, rows, counts, src, i)
        need += taken
        if taken < 0 or need > room:
            first = min(first, np.int64(i))
            break
    return block_min(shared, first)


@cuda_kernel(
    "void(int64[::1], int64[::1], int32[::1], int32[::1], int32[::1], int64[::1], int64)",
    twin=room_count_cpu,
)
def room_count_cuda(words, tables, rows, counts, src, out, spare):
    """Mutates the record (in `words`, before the pool), `src`, scratch, and `out[0]`, how many of
    the first rows can grow, or NULL; until it ends, the owners of pages that rows would copy.

    Reads `rows`, `counts` (see `count_of`) and `spare`: the cached pages that would give way, less
    those that are to be left. Requires just one element of `src` a row, and one block.
    """
    shared = gpu.shared.array(SHARED_WORDS, np.int64)
    pool, shape = words[RECORD_SLOTS:], table_shape(tables)
    # Is the batch sound?
    status, value = counts_total(shared, rows, counts), np.int64(0)
    sound = room_look(pool, tables, shape, rows, counts, src)
    sound = not any_thread(not sound)  # all marks are set behind it
    unclaim(tables, shape, rows)
    gpu.syncthreads()
    if status < 0:
        value = count_of(counts, rows.size, -status >> STATUS_BITS)
    elif not sound:
        key = rows_fault(shared, tables, shape, rows)
        status, value = -key, np.int64(rows[key >> STATUS_BITS])
    else:
        settle_shares(pool, src)
        room = max(pool[FREE] + pool[RELEASED] + spare, np.int64(0))
        pairs = rows, counts
        status = first_without_room(shared, tables, shape, pairs, src, room)
        unsettle(pool, src)
    if gpu.threadIdx.x == 0:
        out[0] = max(status, np.int64(NULL))
        end_read(words, ROOM_FOR, min(status, np.int64(0)), value, shape[0])
