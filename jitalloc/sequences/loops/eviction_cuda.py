"""Twins of the loops of eviction: sequences that keep their first and last tokens."""

from __future__ import annotations

import numpy as np

from jitalloc.errors import STATUS_BITS
from jitalloc.gpu.calls import fill_null
from jitalloc.gpu.kernel import cuda_kernel, device_helper, gpu
from jitalloc.gpu.record import CALL_KINDS, RECORD_SLOTS
from jitalloc.gpu.scan import SHARED_WORDS, any_thread, block_scan, own_part
from jitalloc.pool.loops.pool_cuda import page_of
from jitalloc.pool.loops.releasing_cuda import end_release
from jitalloc.pool.state import STEP
from jitalloc.sequences.loops.dropping_cuda import close_gaps, drop_pages
from jitalloc.sequences.loops.eviction import eviction_window_batch_cpu
from jitalloc.sequences.loops.row_batches_cuda import (
    OPTION,
    PREFIX,
    end_batch,
    may_run,
    rows_fault,
    rows_sound,
    running_starts,
    team_place,
)
from jitalloc.sequences.loops.row_facts_cuda import (
    column_start,
    length_of,
    pages_of,
    shorten_lock,
    table_pages,
    table_shape,
    touch,
    unclaim,
)
from jitalloc.sequences.state import (
    COMPUTED,
    EVICTIONS,
    GAP,
    KNOWN,
    LENGTH,
    LOCK_END,
    LOCKED,
    NUM_ROWS,
    TOKENS_DROPPED,
)
from jitalloc.state import INT32_MAX, NULL

WINDOW = CALL_KINDS.index("apply_streaming_llm_batch")


@device_helper
def window_cut(shape, length, rule):
    """Return the range of pages between the sinks (upper half of `rule`) and the window."""
    sinks, window = rule >> np.int64(32), rule & INT32_MAX
    end = pages_of(length, shape)
    start = min(pages_of(sinks, shape), end)
    stop = page_of(max(length - window, np.int64(0)), shape[2], shape[3])
    return start, max(start, end if window == 0 else stop)


@device_helper
def look_at_cuts(shared, tables, shape, rows, cuts, rule):
    """Write what each row gives up, from which page on, and how many pages move up behind it."""
    starts, firsts, moved = cuts
    begin, end = own_part(rows.size)
    for i in range(begin, end):
        length = length_of(tables, shape, np.int64(rows[i]))
        start, stop = window_cut(shape, length, rule)
        starts[i], firsts[i] = stop - start, start
        moved[i] = pages_of(length, shape) - stop if stop > start else np.int64(0)
    running_starts(shared, starts, rows.size)
    running_starts(shared, moved, rows.size)


@device_helper
def cut_row(pool, tables, shape, row, rule):
    """Book that `row` has lost what is between sinks and window; return how many tokens."""
    size, at = shape[2], column_start(shape, LENGTH) + row
    start, stop = window_cut(shape, tables[at], rule)
    kept = tables[at]
    if stop > start:
        kept = max(kept - (stop - start) * size, start * size)
        # What stands behind the gap is computed where all before it was.
        computed = column_start(shape, COMPUTED) + row
        left = min(tables[computed], start * size)
        tables[computed] = max(left, tables[computed] - (stop - start) * size)
    dropped = tables[at] - kept
    tables[at] = kept
    touch(tables, shape, row, pool[STEP] + 1)
    return dropped


@device_helper
def cut_facts(tables, shape, row, start, needs_path):
    """Book what is known of a row behind a prefix cache that was cut at page `start`."""
    size, gap = shape[2], column_start(shape, GAP) + row
    kept, known = tables[column_start(shape, LENGTH) + row], column_start(shape, KNOWN) + row
    tables[known] = min(tables[known], start * size)
    # What stands behind a gap has seen tokens that are gone: it never enters the cache.
    begins = tables[gap]
    if begins == 0 or start * size + 1 < begins:
        begins = start * size + 1
    tables[gap] = begins if kept >= begins else np.int64(0)
    (pages,) = table_pages(tables, shape)
    if not needs_path:
        shorten_lock(tables, shape, pages, row, start)


@device_helper
def look_behind_gaps(tables, shape, rows, firsts, moved, found):
    """Let `found[i]` be 1 where the path that a row locks goes on behind its gap, else 0.

    All of it is needed then.
    """
    (pages,) = table_pages(tables, shape)
    for i in range(gpu.threadIdx.x, rows.size, gpu.blockDim.x):
        found[i] = 0
    gpu.syncthreads()
    team, teams, place, size = team_place(rows.size)
    for i in range(team, rows.size, teams):
        count, row = moved[i + 1] - moved[i], np.int64(rows[i])
        if count > 0 and tables[column_start(shape, LOCKED) + row] > 0:
            end = tables[column_start(shape, LOCK_END) + row]
            at = row * shape[1] + firsts[i] - count
            for j in range(place, count, size):
                if pages[at + j] == end:
                    found[i] = 1
    gpu.syncthreads()


@cuda_kernel(
    "void(int64[::1], int64[::1], int32[::1], int64[::1], int64[::1], int64[::1], int64, int64)",
    twin=eviction_window_batch_cpu,
)
def eviction_window_batch_cuda(words, tables, rows, scratch, dropped, answer, rule, flags):
    """Mutates the pool and its record (`words`), tables, `scratch`, `answer` and `dropped`, the
    tokens that each row drops: each of `rows` keeps its sinks and its window, or none is cut.

    Reads `rows`, requires nothing of them, one block, and `scratch` of 3 B + 2 words. `rule`: sinks
    in the upper half, window in the lower. With OPTION it is an eviction.
    """
    shared = gpu.shared.array(SHARED_WORDS, np.int64)
    pool, shape, batch = words[RECORD_SLOTS:], table_shape(tables), np.int64(rows.size)
    me, step = gpu.threadIdx.x, gpu.blockDim.x
    if not may_run(words, flags):
        return
    # Are all rows live, and named once?
    sound = not any_thread(not rows_sound(tables, shape, rows))
    unclaim(tables, shape, rows)
    if not sound:
        key = rows_fault(shared, tables, shape, rows)
        fill_null(dropped, 0, me, step)
        gpu.syncthreads()
        if me == 0:
            fact = np.int64(rows[key >> STATUS_BITS]), tables[NUM_ROWS]
            end_batch(pool, words, answer, (WINDOW, flags), -key, fact)
        return
    # Pages between sinks and window go; what stands behind them moves up.
    starts, firsts = scratch[: batch + 1], scratch[batch + 1 : 2 * batch + 1]
    moved = scratch[2 * batch + 1 :]
    look_at_cuts(shared, tables, shape, rows, (starts, firsts, moved), rule)
    count = drop_pages(pool, shared, tables, shape, rows, starts, firsts)
    gpu.syncthreads()
    close_gaps(shared, tables, shape, rows, starts, firsts, moved)
    look_behind_gaps(tables, shape, rows, firsts, moved, dropped)
    # The facts of each row follow.
    tokens, cuts = np.int64(0), np.int64(0)
    for i in range(me, batch, step):
        row, needs_path = np.int64(rows[i]), dropped[i] != 0
        dropped[i] = NULL
        if row != NULL:
            gone = cut_row(pool, tables, shape, row, rule)
            start = firsts[i] - (moved[i + 1] - moved[i])
            if flags & PREFIX != 0 and starts[i + 1] > starts[i]:
                cut_facts(tables, shape, row, start, needs_path)
            dropped[i] = gone
            tokens += gone
            cuts += 1
    _before, tokens = block_scan(shared, tokens)
    _before, cuts = block_scan(shared, cuts)
    if me == 0:
        tables[TOKENS_DROPPED] += tokens
        tables[EVICTIONS] += cuts if flags & OPTION != 0 else 0
        end_release(pool, count)
        end_batch(pool, words, answer, (WINDOW, flags), count, (np.int64(0), np.int64(0)))
