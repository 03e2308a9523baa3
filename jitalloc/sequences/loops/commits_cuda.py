"""Twin of the loop over commits: what of sequences is computed, and is cached."""

from __future__ import annotations

import numpy as np

from jitalloc.errors import NEGATIVE, POSITION_RANGE, STATUS_BITS, STATUS_MASK
from jitalloc.gpu.calls import fill_null
from jitalloc.gpu.kernel import cuda_kernel, device_helper, gpu
from jitalloc.gpu.record import CALL_KINDS, RECORD_SLOTS
from jitalloc.gpu.scan import SHARED_WORDS, any_thread
from jitalloc.sequences.loops.commits import commits_batch_cpu
from jitalloc.sequences.loops.row_batches_cuda import (
    count_of,
    end_batch,
    lengths_fault,
    may_run,
    rows_sound,
)
from jitalloc.sequences.loops.row_facts_cuda import (
    column_start,
    length_of,
    table_pages,
    table_shape,
    unclaim,
)
from jitalloc.sequences.state import COMPUTED, KNOWN, LENGTH, LOCK_END, LOCKED, NUM_ROWS
from jitalloc.state import NULL

COMMIT = CALL_KINDS.index("commit_batch")


@device_helper
def wanted_of(tables, shape, rows, counts, i):
    """Return how many tokens of row `i` of a batch are computed; without `counts` all are."""
    if counts.size > 0:
        return count_of(counts, rows.size, i)
    return length_of(tables, shape, np.int64(rows[i]))


@device_helper
def cached_of(tables, shape, row):
    """Return how many tokens of `row` stand in the prefix cache."""
    (pages,) = table_pages(tables, shape)
    locked, end = tables[column_start(shape, LOCKED) + row], column_start(shape, LOCK_END) + row
    cached = locked * shape[2]
    if locked > 0 and pages[row * shape[1] + locked - 1] != tables[end]:  # cut by a window
        known = tables[column_start(shape, KNOWN) + row]
        cached = min(cached, known - known % shape[2])
    return min(cached, tables[column_start(shape, LENGTH) + row])


@cuda_kernel(
    "void(int64[::1], int64[::1], int32[::1], int32[::1], int64[::1], int64[::1], int64)",
    twin=commits_batch_cpu,
)
def commits_batch_cuda(words, tables, rows, counts, cached, answer, flags):
    """Mutates the clock and record of the pool (`words`), tables, `answer` and `cached`, how many
    tokens of each row are cached: the first tokens of each of `rows` are computed, or of none.

    Reads `rows` and `counts` (see `count_of`; all tokens where it is empty), requires nothing of
    them and one block. What is to enter a prefix cache has entered it: the index is the host's.
    """
    shared = gpu.shared.array(SHARED_WORDS, np.int64)
    pool, shape, batch = words[RECORD_SLOTS:], table_shape(tables), np.int64(rows.size)
    me, step = gpu.threadIdx.x, gpu.blockDim.x
    if not may_run(words, flags):
        return
    # Are all rows live, named once, and long enough?
    sound = rows_sound(tables, shape, rows)
    for i in range(me, batch if sound else 0, step):
        row, n = np.int64(rows[i]), wanted_of(tables, shape, rows, counts, i)
        sound = sound and (row == NULL or 0 <= n <= length_of(tables, shape, row))
    sound = not any_thread(not sound)
    unclaim(tables, shape, rows)
    if not sound:
        key = lengths_fault(shared, tables, shape, rows, counts)
        at, code = key >> STATUS_BITS, key & STATUS_MASK
        fill_null(cached, 0, me, step)
        gpu.syncthreads()
        if me == 0:
            fact = np.int64(rows[at]), tables[NUM_ROWS]
            if code == NEGATIVE or code == POSITION_RANGE:
                fact = count_of(counts, batch, at), length_of(tables, shape, np.int64(rows[at]))
            end_batch(pool, words, answer, (COMMIT, flags), -key, fact)
        return
    for i in range(me, batch, step):
        row = np.int64(rows[i])
        cached[i] = NULL
        if row != NULL:
            computed = column_start(shape, COMPUTED) + row
            n = wanted_of(tables, shape, rows, counts, i)
            tables[computed] = max(tables[computed], n)
            cached[i] = cached_of(tables, shape, row)
    gpu.syncthreads()
    if me == 0:
        end_batch(pool, words, answer, (COMMIT, flags), np.int64(0), (np.int64(0), np.int64(0)))
