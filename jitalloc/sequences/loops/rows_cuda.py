"""Twins of the loops over rows that sequences live in: they begin, end and are marked."""

from __future__ import annotations

import numpy as np

from jitalloc.errors import (
    NEGATIVE_TOKEN,
    OUT_OF_PAGES,
    PAGE_CACHED,
    PAGE_FREE,
    REFCOUNT_OVERFLOW,
    STATUS_BITS,
    STATUS_MASK,
)
from jitalloc.gpu.calls import fail, fault_key, ring_place
from jitalloc.gpu.kernel import cuda_kernel, device_helper, gpu
from jitalloc.gpu.record import CALL_KINDS, RECORD_SLOTS, ROWS_FREED
from jitalloc.gpu.scan import NOWHERE, SHARED_WORDS, any_thread, block_min, block_scan, owner_of
from jitalloc.gpu.views import int64_column
from jitalloc.pool.loops.merging_cuda import block_merge, pool_views
from jitalloc.pool.loops.page_frees_cuda import page_fault
from jitalloc.pool.loops.pool_cuda import pool_advance
from jitalloc.pool.loops.releasing_cuda import end_release
from jitalloc.pool.state import FIRST_PAGE, FREE, HEAD, NUM_PAGES, RELEASED, STEP
from jitalloc.sequences.loops.dropping_cuda import clear_pages, drop_pages
from jitalloc.sequences.loops.leading_cuda import all_know, end_lead, leads, merges_last
from jitalloc.sequences.loops.row_batches_cuda import (
    OPTION,
    PREFIX,
    end_batch,
    may_run,
    page_starts,
    rows_fault,
    rows_sound,
)
from jitalloc.sequences.loops.row_facts_cuda import (
    column_start,
    length_of,
    pages_of,
    row_bit,
    row_code,
    table_pages,
    table_shape,
    touch,
    unclaim,
)
from jitalloc.sequences.loops.rows import rows_adopt_cpu, rows_allocate_cpu, rows_free_cpu
from jitalloc.sequences.state import (
    ACTIVE,
    BORN,
    COMPUTED,
    EVICTIONS,
    KNOWN,
    LENGTH,
    LOCK_END,
    LOCKED,
    NAMESPACE,
    NUM_ROWS,
    PEAK_ACTIVE,
    PRIORITY,
    ROW_COLUMNS,
    SEQ_ALLOCATIONS,
    SEQ_FREES,
    TOKENS_DROPPED,
)
from jitalloc.state import HEADER_SLOTS, INT32_MAX, NULL

ALLOCATE = CALL_KINDS.index("allocate_batch")
FREE_ROWS = CALL_KINDS.index("free_batch")

# What the host tells of sequences that begin: an int64[PLAN, B] of these columns. The last three
# count what the sequences before one have, of the pages and tokens that the call is given or takes.
PLAN_ROW = 0  # a free row
PLAN_LENGTH = 1  # tokens
PLAN_PRIORITY = 2
PLAN_SHARED = 3  # leading pages that others hold already
PLAN_KNOWN = 4
PLAN_NAMESPACE = 5
PLAN_LOCKED = 6
PLAN_LOCK_END = 7
PLAN_NEW_START = 8  # new pages
PLAN_SHARED_START = 9  # shared pages
PLAN_TOKEN_START = 10  # token ids, which belong behind the shared pages
PLAN = 11

# What the host tells of a sequence that adopts pages: an int64[ADOPT].
ADOPT_ROW = 0  # a free row
ADOPT_PRIORITY = 1
ADOPT_NAMESPACE = 2
ADOPT_COMPUTED = 3
ADOPT_FAULT = 4  # the first page that is cached or named before, as the host knows, or -1
ADOPT = 5


@device_helper
def plan_column(plan, batch, column):
    """Return `(one column of a plan, )`."""
    return (int64_column(plan, column * batch, batch),)


@device_helper
def begin_row(pool, tables, shape, plan, i):
    """Write the facts of sequence `i` of a plan into its free row."""
    batch = np.int64(plan.size // PLAN)
    row = plan[PLAN_ROW * batch + i]
    gpu.atomic.or_(tables, HEADER_SLOTS + (row >> 6), row_bit(row))
    tables[column_start(shape, LENGTH) + row] = plan[PLAN_LENGTH * batch + i]
    tables[column_start(shape, PRIORITY) + row] = plan[PLAN_PRIORITY * batch + i]
    tables[column_start(shape, KNOWN) + row] = plan[PLAN_KNOWN * batch + i]
    tables[column_start(shape, COMPUTED) + row] = plan[PLAN_SHARED * batch + i] * shape[2]
    tables[column_start(shape, NAMESPACE) + row] = plan[PLAN_NAMESPACE * batch + i]
    tables[column_start(shape, LOCKED) + row] = plan[PLAN_LOCKED * batch + i]
    tables[column_start(shape, LOCK_END) + row] = plan[PLAN_LOCK_END * batch + i]
    tables[column_start(shape, BORN) + row] = pool[STEP] + 1
    touch(tables, shape, row, pool[STEP] + 1)


@device_helper
def begin_pages(pool, tables, shape, plan, shared_pages, need):
    """Give the sequences of a plan the pages that they share, and `need` new ones behind."""
    free_pages, refcount, _released = pool_views(pool)
    (pages,) = table_pages(tables, shape)
    batch = np.int64(plan.size // PLAN)
    me, step = gpu.threadIdx.x, gpu.blockDim.x
    (starts,) = plan_column(plan, batch, PLAN_SHARED_START)
    for at in range(me, shared_pages.size, step):
        i = owner_of(starts, at, batch)
        page = shared_pages[at]
        gpu.atomic.add(refcount, np.int64(page), np.int32(1))
        pages[plan[PLAN_ROW * batch + i] * shape[1] + at - starts[i]] = page
    (starts,) = plan_column(plan, batch, PLAN_NEW_START)
    head, ring = pool[HEAD], pool[NUM_PAGES]
    for at in range(me, need, step):
        i = owner_of(starts, at, batch)
        page = free_pages[ring_place(head + at, ring)]
        refcount[page] = 1
        place = plan[PLAN_SHARED * batch + i] + at - starts[i]
        pages[plan[PLAN_ROW * batch + i] * shape[1] + place] = page


@device_helper
def begin_tokens(tables, shape, known, plan, tokens):
    """Write the ids of the tokens that stand behind the shared pages."""
    (pages,) = table_pages(tables, shape)
    batch = np.int64(plan.size // PLAN)
    (starts,) = plan_column(plan, batch, PLAN_TOKEN_START)
    for at in range(gpu.threadIdx.x, tokens.size, gpu.blockDim.x):
        i = owner_of(starts, at, batch)
        position = plan[PLAN_SHARED * batch + i] * shape[2] + at - starts[i]
        block = pages_of(position + 1, shape) - 1
        page = np.int64(pages[plan[PLAN_ROW * batch + i] * shape[1] + block])
        known[page * shape[2] + position - block * shape[2]] = tokens[at]


@device_helper
def plan_status(pool, shared, tables, plan, given):
    """Return `(status word or 0, how many new pages a plan needs)`."""
    _free_pages, refcount, _released = pool_views(pool)
    batch, key = np.int64(plan.size // PLAN), NOWHERE
    for at in range(gpu.threadIdx.x, given.size, gpu.blockDim.x):
        if refcount[given[at]] > INT32_MAX - batch:
            key = min(key, fault_key(REFCOUNT_OVERFLOW, np.int64(at)))
    key, need, last = block_min(shared, key), np.int64(0), batch - 1
    if batch > 0:
        need = plan[PLAN_NEW_START * batch + last] - plan[PLAN_SHARED * batch + last]
        need += pages_of(plan[PLAN_LENGTH * batch + last], table_shape(tables))
    available = pool[FREE] + pool[RELEASED]
    status = np.int64(0)
    if key != NOWHERE:
        status = -key
    elif need > available:
        status = fail(OUT_OF_PAGES, available)
    return status, need


@device_helper
def begin_sequences(pool, shared, tables, known, plan, news, need):
    """Let the sequences of a plan begin; `news`: the pages that they share and their tokens."""
    given, tokens = news
    shape, me = table_shape(tables), gpu.threadIdx.x
    batch = np.int64(plan.size // PLAN)
    if need > pool[FREE]:
        block_merge(pool, shared)
    begin_pages(pool, tables, shape, plan, given, need)
    gpu.syncthreads()
    begin_tokens(tables, shape, known, plan, tokens)
    for i in range(me, batch, gpu.blockDim.x):
        begin_row(pool, tables, shape, plan, np.int64(i))
    gpu.syncthreads()
    if me == 0:
        pool_advance(pool, pool[HEAD] + need, need)
        tables[SEQ_ALLOCATIONS] += batch
        tables[ACTIVE] += batch
        tables[PEAK_ACTIVE] = max(tables[PEAK_ACTIVE], tables[ACTIVE])


@cuda_kernel(
    "void(int64[::1], int64[::1], int32[::1], int64[::1], int32[::1], int32[::1], int64[::1], "
    "int64)",
    twin=rows_allocate_cpu,
)
def rows_allocate_cuda(words, tables, known, plan, given, tokens, answer, flags):
    """Mutates the pool and its record (`words`), tables, `known`, the token ids of slots, and
    `answer`: the sequences of a plan begin in free rows, or none of them does.

    Reads `plan`, `given`, the pages that they share, and `tokens`, requires a plan of the host that
    fits the rows. In one block, or in several where a merge could be due.
    """
    shared = gpu.shared.array(SHARED_WORDS, np.int64)
    pool = words[RECORD_SLOTS:]
    # The first block finds out whether a merge is due; then all do it.
    leading, due, does = leads(tables, shared), False, False
    if leading and may_run(words, flags):
        status, need = plan_status(pool, shared, tables, plan, given)
        due = status == 0 and need > pool[FREE] and gpu.gridDim.x > 1
        does = not due
    due = all_know(tables, shared, leading, due)
    if due:
        does = merges_last(pool, words, shared)
    # One block does the call.
    if does:
        status, need = plan_status(pool, shared, tables, plan, given)
        value = np.int64(0)
        if status < 0 and -status & STATUS_MASK == REFCOUNT_OVERFLOW:
            value = np.int64(given[-status >> STATUS_BITS])
        gpu.syncthreads()
        if status == 0:
            begin_sequences(pool, shared, tables, known, plan, (given, tokens), need)
        if gpu.threadIdx.x == 0:
            result = need if status == 0 else status
            end_batch(pool, words, answer, (ALLOCATE, flags), result, (value, need))
    if does or not due:
        end_lead(words, tables, shared, due)


@device_helper
def adopt_status(pool, shared, pages, tokens, plan):
    """Return 0, or a status word where a token is negative or a page cannot be adopted."""
    _free_pages, refcount, _released = pool_views(pool)
    me, step, key = gpu.threadIdx.x, gpu.blockDim.x, NOWHERE
    for i in range(me, tokens.size, step):
        if tokens[i] < 0:
            key = min(key, fault_key(NEGATIVE_TOKEN, np.int64(i)))
    key = block_min(shared, key)
    if key == NOWHERE:
        for i in range(me, pages.size, step):
            page = np.int64(pages[i])
            if page < pool[FIRST_PAGE] or page >= pool[NUM_PAGES]:
                key = min(key, fault_key(page_fault(pool, page), np.int64(i)))
            elif refcount[page] == 0:
                key = min(key, fault_key(PAGE_FREE, np.int64(i)))
            elif i == plan[ADOPT_FAULT]:
                key = min(key, fault_key(PAGE_CACHED, np.int64(i)))
        key = block_min(shared, key)
    return np.int64(0) if key == NOWHERE else -key


@cuda_kernel(
    "void(int64[::1], int64[::1], int32[::1], int64[::1], int32[::1], int32[::1], int64[::1], "
    "int64)",
    twin=rows_adopt_cpu,
)
def rows_adopt_cuda(words, tables, known, plan, pages, tokens, answer, flags):
    """Mutates the pool and its record (`words`), tables, `known`, the token ids of slots, and
    `answer`: a sequence begins in a free row with `pages`, which pass to it, or it does not.

    Reads `plan`, `pages` and `tokens`, requires a plan of the host that fits them, one block, and
    with PREFIX `known` of all slots.
    """
    shared = gpu.shared.array(SHARED_WORDS, np.int64)
    pool, shape = words[RECORD_SLOTS:], table_shape(tables)
    me, step = gpu.threadIdx.x, gpu.blockDim.x
    if not may_run(words, flags):
        return
    status = adopt_status(pool, shared, pages, tokens, plan)
    row = plan[ADOPT_ROW]
    if status == 0:
        (table,) = table_pages(tables, shape)
        for j in range(me, pages.size, step):
            table[row * shape[1] + j] = pages[j]
        for i in range(me, tokens.size if flags & PREFIX != 0 else 0, step):
            block = pages_of(np.int64(i) + 1, shape) - 1
            known[np.int64(pages[block]) * shape[2] + i - block * shape[2]] = tokens[i]
    gpu.syncthreads()
    if me == 0:
        if status == 0:
            tables[HEADER_SLOTS + (row >> 6)] |= row_bit(row)
            tables[column_start(shape, LENGTH) + row] = tokens.size
            tables[column_start(shape, PRIORITY) + row] = plan[ADOPT_PRIORITY]
            tables[column_start(shape, KNOWN) + row] = tokens.size if flags & PREFIX != 0 else 0
            tables[column_start(shape, COMPUTED) + row] = plan[ADOPT_COMPUTED]
            tables[column_start(shape, NAMESPACE) + row] = plan[ADOPT_NAMESPACE]
            tables[column_start(shape, BORN) + row] = pool[STEP] + 1
            touch(tables, shape, row, pool[STEP] + 1)
            tables[SEQ_ALLOCATIONS] += 1
            tables[ACTIVE] += 1
            tables[PEAK_ACTIVE] = max(tables[PEAK_ACTIVE], tables[ACTIVE])
        end_batch(pool, words, answer, (ALLOCATE, flags), status, (np.int64(0), np.int64(0)))


@device_helper
def end_sequences(tables, shape, rows):
    """Forget the facts of the sequences of a batch, and let nobody live in their rows."""
    for i in range(gpu.threadIdx.x, rows.size, gpu.blockDim.x):
        row = np.int64(rows[i])
        if row != NULL:
            for column in range(ROW_COLUMNS):
                tables[column_start(shape, column) + row] = 0
            gpu.atomic.and_(tables, HEADER_SLOTS + (row >> 6), ~row_bit(row))


@cuda_kernel(
    "void(int64[::1], int64[::1], int32[::1], int64[::1], int64[::1], int64)", twin=rows_free_cpu
)
def rows_free_cuda(words, tables, rows, scratch, answer, flags):
    """Mutates the pool and its record (`words`), tables, `scratch` and `answer`: the sequences in
    `rows` end, or none of them does.

    Reads `rows`, requires nothing of them, one block, and `scratch` of 2 B + 1 words. With OPTION
    the sequences give way to others.
    """
    shared = gpu.shared.array(SHARED_WORDS, np.int64)
    pool = words[RECORD_SLOTS:]
    shape, batch = table_shape(tables), np.int64(rows.size)
    if not may_run(words, flags):
        return
    # Are all rows live, and named once?
    sound = not any_thread(not rows_sound(tables, shape, rows))
    unclaim(tables, shape, rows)
    if not sound:
        key = rows_fault(shared, tables, shape, rows)
        if gpu.threadIdx.x == 0:
            fact = np.int64(rows[key >> STATUS_BITS]), tables[NUM_ROWS]
            end_batch(pool, words, answer, (FREE_ROWS, flags), -key, fact)
        return
    # What they hold is counted, given up, and forgotten.
    starts, firsts = scratch[: batch + 1], scratch[batch + 1 :]
    tokens, ended = np.int64(0), np.int64(0)
    for i in range(gpu.threadIdx.x, batch, gpu.blockDim.x):
        firsts[i] = 0
        tokens += length_of(tables, shape, np.int64(rows[i]))
        ended += 1 if rows[i] != NULL else 0
    page_starts(shared, tables, shape, rows, starts)
    _before, tokens = block_scan(shared, tokens)
    _before, ended = block_scan(shared, ended)
    count = drop_pages(pool, shared, tables, shape, rows, starts, firsts)
    gpu.syncthreads()
    clear_pages(tables, shape, rows, starts, firsts)
    end_sequences(tables, shape, rows)
    gpu.syncthreads()
    if gpu.threadIdx.x == 0:
        if flags & OPTION != 0:
            tables[TOKENS_DROPPED] += tokens
            tables[EVICTIONS] += ended
        tables[SEQ_FREES] += ended
        tables[ACTIVE] -= ended
        words[ROWS_FREED] += ended
        end_release(pool, count)
        end_batch(pool, words, answer, (FREE_ROWS, flags), count, (np.int64(0), np.int64(0)))


@cuda_kernel("void(int64[::1], int32[::1], int64, int64)", twin=None)  # one word is written
def rows_mark_cuda(tables, rows, column, value):
    """Mutates one column of the tables: the fact of each live row becomes `value`.

    Reads `rows`, requires nothing of them: those of nobody are passed over.
    """
    shape = table_shape(tables)
    for i in range(gpu.grid(1), rows.size, gpu.gridsize(1)):
        row = np.int64(rows[i])
        if row_code(tables, shape, row) == 0:
            tables[column_start(shape, column) + row] = value
