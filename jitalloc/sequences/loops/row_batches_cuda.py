"""What the kernels of a batch of rows, which one block runs, look at and write.

No two threads are to decide who comes first: a mark or a count that several change tells by its
final value alone. A row that is NULL fills the batch up, and is passed over.
"""

from __future__ import annotations

import numpy as np

from jitalloc.errors import (
    NEGATIVE,
    POSITION_RANGE,
    REFCOUNT_OVERFLOW,
    ROW_NOT_EMPTY,
    ROW_REPEATED,
)
from jitalloc.gpu.calls import fault_key, integer
from jitalloc.gpu.kernel import device_helper, gpu
from jitalloc.gpu.record import CALLS, FAULT_STATUS
from jitalloc.gpu.scan import NOWHERE, block_min, block_scan, own_part
from jitalloc.pool.loops.merging_cuda import pool_views
from jitalloc.pool.loops.pool_cuda import end_call
from jitalloc.pool.state import STEP
from jitalloc.sequences.loops.row_facts_cuda import (
    claims,
    column_start,
    length_of,
    pages_of,
    row_code,
    row_key,
    table_pages,
)
from jitalloc.sequences.state import LENGTH
from jitalloc.state import INT32_MAX, NULL

# Flags of a call.
ASKS = 1  # the host waits for its answer: what fails is told there, and not kept for later
OPTION = 2  # what it means is up to the kernel
PREFIX = 4  # a prefix cache stands behind the sequences

# Who lives in the first row of a pair.
NOBODY = 0
SOMEBODY = 1
EMPTY = 2


@device_helper
def may_run(record, flags):
    """Return whether a call runs: one that the host waits for not behind a failure."""
    return flags & ASKS == 0 or record[FAULT_STATUS] == 0


@device_helper
def end_batch(pool, words, answer, call, status, fact):
    """Book the end of a call on rows, by one thread.

    `call`: its kind and flags; `status`: the result or a status word; `fact`: the offending
    element and what was wanted. `answer`: the result or NULL; where the host asks, the result, or
    the status word and what was wanted.
    """
    kind, flags = call
    value, wanted = fact
    if flags & ASKS == 0:
        answer[0] = max(status, np.int64(NULL))
        end_call(pool, words, kind, min(status, np.int64(0)), value, wanted)
    else:
        answer[0] = status
        words[CALLS] += 1
        if status >= 0:
            pool[STEP] += 1
        else:
            answer[1] = wanted


@device_helper
def count_of(counts, batch, i):
    """Return the number of row `i`: one of int32 or int64 for each, or one for all."""
    if counts.size == 1:
        return np.int64(counts[0])
    return integer(counts, 1 if counts.size > batch else 0, i)


@device_helper
def team_place(n):
    """Return `(team, teams, place, size)` of this thread, where teams share `n` rows out.

    A team is as many threads as are there for a row, a warp at least.
    """
    threads, me = np.int64(gpu.blockDim.x), np.int64(gpu.threadIdx.x)
    teams = max(min(threads // min(np.int64(32), threads), np.int64(n)), np.int64(1))
    size = threads // teams
    team = me // size
    return team if team < teams else np.int64(n), teams, me - team * size, size


@device_helper
def rows_sound(tables, shape, rows):
    """Mark the rows of this thread; return whether all are live and named for the first time."""
    sound = True
    for i in range(gpu.threadIdx.x, rows.size, gpu.blockDim.x):
        row = np.int64(rows[i])
        if row != NULL:
            lives = row_code(tables, shape, row) == 0
            sound = lives and claims(tables, shape, row) and sound
    return sound


@device_helper
def row_fault(tables, shape, rows, i):
    """Return the key of why `rows[i]` is no live row named for the first time, or NOWHERE."""
    row = np.int64(rows[i])
    if row == NULL:
        return NOWHERE
    if row_code(tables, shape, row) != 0:
        return row_key(tables, shape, rows, i)
    for j in range(i):
        if rows[j] == row:
            return fault_key(ROW_REPEATED, i)
    return NOWHERE


@device_helper
def rows_fault(shared, tables, shape, rows):
    """Return the key of the first row of a batch that is refused, or NOWHERE."""
    key = NOWHERE
    for i in range(gpu.threadIdx.x, rows.size, gpu.blockDim.x):
        key = min(key, row_fault(tables, shape, rows, np.int64(i)))
    return block_min(shared, key)


@device_helper
def lengths_fault(shared, tables, shape, rows, counts):
    """Return the key of the first row that is refused, or else of the first number of tokens that
    its row does not have.
    """
    key = rows_fault(shared, tables, shape, rows)
    if key != NOWHERE:
        return key
    for i in range(gpu.threadIdx.x, rows.size if counts.size > 0 else 0, gpu.blockDim.x):
        row, n = np.int64(rows[i]), count_of(counts, rows.size, i)
        if row != NULL and n < 0:
            key = min(key, fault_key(NEGATIVE, np.int64(i)))
        elif row != NULL and n > length_of(tables, shape, row):
            key = min(key, fault_key(POSITION_RANGE, np.int64(i)))
    return block_min(shared, key)


@device_helper
def running_starts(shared, starts, n):
    """Make of the counts in `starts[:n]` the sums before each, and of `starts[n]` that of all.

    Each thread has written its `own_part` of the counts. Returns the sum of all.
    """
    begin, end = own_part(n)
    mine = np.int64(0)
    for i in range(begin, end):
        mine += starts[i]
    before, total = block_scan(shared, mine)
    for i in range(begin, end):
        count = starts[i]
        starts[i] = before
        before += count
    if gpu.threadIdx.x == 0:
        starts[n] = total
    gpu.syncthreads()
    return total


@device_helper
def page_starts(shared, tables, shape, rows, starts):
    """Write how many pages the rows before each one have, and at the end all."""
    begin, end = own_part(rows.size)
    for i in range(begin, end):
        starts[i] = pages_of(length_of(tables, shape, np.int64(rows[i])), shape)
    running_starts(shared, starts, rows.size)


# Pairs of a row and of one whose pages it takes over. Where the first is NULL, there is no pair.


@device_helper
def pairs_sound(tables, shape, rows, others, wanted):
    """Mark the `rows` of this thread; return whether its pairs are all as they must be.

    Somebody lives in `others`; in `rows` nobody, somebody or an empty sequence, as is `wanted`.
    """
    length = column_start(shape, LENGTH)
    sound = True
    for i in range(gpu.threadIdx.x, rows.size, gpu.blockDim.x):
        row = np.int64(rows[i])
        if row != NULL:
            sound = sound and row_code(tables, shape, np.int64(others[i])) == 0
            if wanted != NOBODY:
                lives = row_code(tables, shape, row) == 0
                sound = lives and claims(tables, shape, row) and sound
                sound = sound and (wanted != EMPTY or tables[length + row] == 0)
    return sound


@device_helper
def pages_full(pool, tables, shape, rows, others):
    """Return whether a page of live rows could not take as many owners more as there are rows."""
    _free_pages, refcount, _released = pool_views(pool)
    (pages,) = table_pages(tables, shape)
    team, teams, place, size = team_place(others.size)
    full = False
    for i in range(team, others.size, teams):
        if rows[i] != NULL:
            other = np.int64(others[i])
            for j in range(place, pages_of(length_of(tables, shape, other), shape), size):
                full = full or refcount[pages[other * shape[1] + j]] > INT32_MAX - others.size
    return full


@device_helper
def other_fault(pool, tables, shape, others, i):
    """Return the key of why `others[i]` cannot be shared by all of a batch, or NOWHERE."""
    _free_pages, refcount, _released = pool_views(pool)
    (pages,) = table_pages(tables, shape)
    other, batch = np.int64(others[i]), np.int64(others.size)
    code = row_code(tables, shape, other)
    if code == 0:
        for j in range(pages_of(length_of(tables, shape, other), shape)):
            if refcount[pages[other * shape[1] + j]] > INT32_MAX - batch:
                code = np.int64(REFCOUNT_OVERFLOW)
    return fault_key(code, batch + i) if code != 0 else NOWHERE


@device_helper
def pairs_fault(pool, shared, tables, shape, rows, others, wanted):
    """Return the key of the first failure of a batch of pairs that is not sound.

    Its position runs through `rows`, then through `others`. `wanted`: as in `pairs_sound`.
    """
    length, batch = column_start(shape, LENGTH), np.int64(rows.size)
    me, step = gpu.threadIdx.x, gpu.blockDim.x
    key = NOWHERE
    if wanted != NOBODY:
        key = rows_fault(shared, tables, shape, rows)
    if key != NOWHERE:
        return key
    for i in range(me, batch if wanted == EMPTY else 0, step):
        if rows[i] != NULL and tables[length + np.int64(rows[i])] != 0:
            key = min(key, fault_key(ROW_NOT_EMPTY, np.int64(i)))
    key = block_min(shared, key)
    if key != NOWHERE:
        return key
    for i in range(me, batch, step):
        if rows[i] != NULL:
            key = min(key, other_fault(pool, tables, shape, others, np.int64(i)))
    return block_min(shared, key)
