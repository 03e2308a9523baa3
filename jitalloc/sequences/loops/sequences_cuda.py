"""Twins of the loops of sequences on a pool: they grow, and are cut short.

A batch is taken by one block: the rows of a thread stand side by side, so that one scan of the
block tells what the rows before take, and what is long in a row (pages, slots) is shared by a team
of threads, a warp or more of them.
"""

from __future__ import annotations

import numpy as np

from jitalloc.errors import (
    NEGATIVE,
    OUT_OF_PAGES,
    OUT_SHORT,
    POSITION_RANGE,
    STATUS_BITS,
    STATUS_MASK,
)
from jitalloc.gpu.calls import fail, fill_null
from jitalloc.gpu.kernel import cuda_kernel, device_helper, gpu
from jitalloc.gpu.record import CALL_KINDS, RECORD_SLOTS
from jitalloc.gpu.scan import NOWHERE, SHARED_WORDS, any_thread, block_scan, own_part
from jitalloc.pool.loops.merging_cuda import block_merge
from jitalloc.pool.loops.pool_cuda import end_call, pool_advance
from jitalloc.pool.loops.releasing_cuda import end_release
from jitalloc.pool.state import FREE, HEAD, NUM_PAGES, RELEASED, STEP
from jitalloc.sequences.loops.append_writes_cuda import append_rows, pack_copies
from jitalloc.sequences.loops.appends_cuda import append_fault, append_look, settle_shares, unsettle
from jitalloc.sequences.loops.dropping_cuda import clear_pages, drop_pages
from jitalloc.sequences.loops.forking_cuda import (
    FACTS,
    cap_facts,
    cap_rows,
    copy_rows,
    counts_fault,
    keep_parents,
    open_rows,
    replace_rows,
)
from jitalloc.sequences.loops.leading_cuda import all_know, end_lead, leads, merges_last
from jitalloc.sequences.loops.row_batches_cuda import (
    EMPTY,
    NOBODY,
    OPTION,
    SOMEBODY,
    count_of,
    end_batch,
    lengths_fault,
    may_run,
    page_starts,
    pages_full,
    pairs_fault,
    pairs_sound,
    rows_sound,
    running_starts,
)
from jitalloc.sequences.loops.row_facts_cuda import (
    length_of,
    pages_of,
    table_shape,
    touch,
    unclaim,
)
from jitalloc.sequences.loops.sequences import (
    sequences_append_ahead_cpu,
    sequences_append_cpu,
    sequences_fork_batch_cpu,
    sequences_reorder_cpu,
    sequences_truncate_batch_cpu,
)
from jitalloc.sequences.state import (
    ACTIVE,
    NUM_ROWS,
    PAGE_COPIES,
    PEAK_ACTIVE,
    SEQ_ALLOCATIONS,
    SEQ_FORKS,
)
from jitalloc.state import INT32_MAX, NULL

APPEND = CALL_KINDS.index("append_batch")
TRUNCATE = CALL_KINDS.index("truncate_batch")
FORK = CALL_KINDS.index("fork_batch")
REORDER = CALL_KINDS.index("reorder")


@device_helper
def append_plan(pool, shared, tables, rows, counts, news, src):
    """Look at a batch, and let the rows that are to copy a page give up their share of it.

    Returns `(whether all is sound, whether there are such rows, tokens, pages, place)`, the last of
    them: the tokens and pages before the first row of this thread. `append_undo` takes it back.
    """
    tokens, _slots = news
    shape = table_shape(tables)
    sound, shares, mine, need = append_look(pool, tables, shape, rows, counts, src)
    for i in range(gpu.threadIdx.x, tokens.size, gpu.blockDim.x):
        sound = sound and tokens[i] >= 0
    sound = not any_thread(not sound)  # all marks are set behind it
    unclaim(tables, shape, rows)
    before, total = block_scan(shared, mine)
    sound = sound and total <= INT32_MAX and (tokens.size == 0 or tokens.size == total)
    shares = any_thread(shares) and sound
    if shares:
        need += settle_shares(pool, src)
    pages_before, need = block_scan(shared, need)
    return sound, shares, total, need, before << np.int64(32) | pages_before


@device_helper
def append_merges(pool, shared, tables, rows, counts, news, src):
    """Return whether the pages of a batch are there, but not without a merge."""
    _tokens, slots = news
    free, available = pool[FREE], pool[FREE] + pool[RELEASED]
    if free == available or slots.size + rows.size <= free:  # no batch that fits takes more
        return False
    sound, shares, total, need, _place = append_plan(pool, shared, tables, rows, counts, news, src)
    if shares:
        unsettle(pool, src)
    gpu.syncthreads()
    return sound and total <= slots.size and free < need <= available


@device_helper
def append_block(pool, words, shared, tables, known, call, news, copied):
    """Do an append by one block; `news`: tokens and slots.

    `call`: rows, their counts, and whether what stands before the new tokens is computed.
    """
    rows, counts, _computed = call
    tokens, slots = news
    me, step = gpu.threadIdx.x, gpu.blockDim.x
    src, dst = copied[: rows.size], copied[rows.size :]
    plan = append_plan(pool, shared, tables, rows, counts, news, src)
    sound, shares, total, need, place = plan
    available = pool[FREE] + pool[RELEASED]
    status, value, wanted = np.int64(0), np.int64(0), need
    if not sound:
        shape = table_shape(tables)
        status, value, wanted = append_fault(shared, tables, shape, rows, counts, tokens)
    elif total > slots.size and need <= pool[NUM_PAGES]:
        status, wanted = fail(OUT_SHORT, slots.size), total
    elif need > available:
        status = fail(OUT_OF_PAGES, available)
    if status < 0:
        if shares:
            unsettle(pool, src)
        gpu.syncthreads()
        fill_null(slots, 0, me, step)
        fill_null(copied, 0, me, step)
        if me == 0:
            end_call(pool, words, APPEND, status, value, wanted)
        return
    if need > pool[FREE]:
        block_merge(pool, shared)
    append_rows(pool, tables, known, call, news, copied, place, shares)
    fill_null(slots, total, me, step)
    copies = np.int64(0)
    if shares:
        copies = pack_copies(shared, src, dst)
    else:
        fill_null(copied, 0, me, step)
    if me == 0:
        pool_advance(pool, pool[HEAD] + need, need)
        tables[PAGE_COPIES] += copies
        end_call(pool, words, APPEND, np.int64(0), np.int64(0), need)


@device_helper
def append_all(words, tables, known, call, tokens, slots, copied):
    """Append as `sequences_append_cuda` does; `call`: rows, counts, whether all is computed."""
    shared = gpu.shared.array(SHARED_WORDS, np.int64)
    pool, news = words[RECORD_SLOTS:], (tokens, slots)
    rows, counts, _computed = call
    # The first block finds out whether a merge is due; then all do it.
    leading, due = leads(tables, shared), False
    if leading and gpu.gridDim.x > 1:
        src = copied[: rows.size]
        due = append_merges(pool, shared, tables, rows, counts, news, src)
    due = all_know(tables, shared, leading, due)
    does = leading
    if due:
        does = merges_last(pool, words, shared)
    # One block does the call.
    if does:
        append_block(pool, words, shared, tables, known, call, news, copied)
    if does or not due:
        end_lead(words, tables, shared, due)


@cuda_kernel(
    "void(int64[::1], int64[::1], int32[::1], int32[::1], int32[::1], int32[::1], int64[::1],"
    "int32[::1])",
    twin=sequences_append_cpu,
)
def sequences_append_cuda(words, tables, known, rows, counts, tokens, slots, copied):
    """Mutates the pool and its record (`words`), tables, `known`, `slots` of the new tokens, and
    `copied`, the pages copied, from where to where; NULL in both where the call fails. What stands
    before new tokens counts as computed.

    Reads `rows`, `counts` (see `count_of`) and `tokens`, requires two rows of `copied` of one
    column a row of the batch. In one block, or in several where a merge could be due.
    """
    append_all(words, tables, known, (rows, counts, True), tokens, slots, copied)


@cuda_kernel(
    "void(int64[::1], int64[::1], int32[::1], int32[::1], int32[::1], int32[::1], int64[::1],"
    "int32[::1])",
    twin=sequences_append_ahead_cpu,
)
def sequences_append_ahead_cuda(words, tables, known, rows, counts, tokens, slots, copied):
    """Mutates what `sequences_append_cuda` does, but that nothing counts as computed by it.

    Reads and requires the same. A kernel of its own, for want of an argument to spare.
    """
    append_all(words, tables, known, (rows, counts, False), tokens, slots, copied)


@device_helper
def kept_tokens(tables, shape, row, n, drops):
    """Return how many tokens of `row` stay, where `n` stay or, with `drops`, go."""
    return length_of(tables, shape, row) - n if drops else n


@device_helper
def truncate_row(pool, tables, shape, row, tokens):
    """Book that only the first `tokens` tokens of `row` stay, and what is said of them."""
    touch(tables, shape, row, pool[STEP] + 1)
    cap_facts(tables, shape, row, tokens)


@cuda_kernel(
    "void(int64[::1], int64[::1], int32[::1], int32[::1], int64[::1], int64[::1], int64)",
    twin=sequences_truncate_batch_cpu,
)
def sequences_truncate_batch_cuda(words, tables, rows, counts, scratch, answer, flags):
    """Mutates the pool and its record (`words`), tables, `scratch` and `answer`: each of `rows` is
    cut short, or none is.

    Reads `rows` and `counts`, requires nothing of them, one block, and `scratch` of 2 B + 1 words.
    With OPTION, `counts` tells how many tokens go.
    """
    shared = gpu.shared.array(SHARED_WORDS, np.int64)
    pool, shape = words[RECORD_SLOTS:], table_shape(tables)
    batch, drops = np.int64(rows.size), flags & OPTION != 0
    if not may_run(words, flags):
        return
    # Are all rows live, named once, and long enough?
    sound = rows_sound(tables, shape, rows)
    for i in range(gpu.threadIdx.x, batch if sound else 0, gpu.blockDim.x):
        row, n = np.int64(rows[i]), count_of(counts, batch, i)
        sound = sound and (row == NULL or 0 <= n <= length_of(tables, shape, row))
    sound = not any_thread(not sound)
    unclaim(tables, shape, rows)
    if not sound:
        key = lengths_fault(shared, tables, shape, rows, counts)
        at = key >> STATUS_BITS
        if gpu.threadIdx.x == 0:
            fact = np.int64(rows[at]), tables[NUM_ROWS]
            if key & STATUS_MASK == NEGATIVE or key & STATUS_MASK == POSITION_RANGE:
                wanted = length_of(tables, shape, np.int64(rows[at]))
                wanted |= np.int64(1) << np.int64(32) if drops else np.int64(0)
                fact = count_of(counts, batch, at), wanted
            end_batch(pool, words, answer, (TRUNCATE, flags), -key, fact)
        return
    # Pages behind what stays go; the facts of each row follow.
    starts, firsts = scratch[: batch + 1], scratch[batch + 1 :]
    begin, end = own_part(batch)
    for i in range(begin, end):
        row, n = np.int64(rows[i]), count_of(counts, batch, i)
        first, last = np.int64(0), np.int64(0)
        if row != NULL:
            first = pages_of(kept_tokens(tables, shape, row, n, drops), shape)
            last = pages_of(length_of(tables, shape, row), shape)
        starts[i], firsts[i] = last - first, first
    running_starts(shared, starts, batch)
    count = drop_pages(pool, shared, tables, shape, rows, starts, firsts)
    gpu.syncthreads()
    clear_pages(tables, shape, rows, starts, firsts)
    for i in range(gpu.threadIdx.x, batch, gpu.blockDim.x):
        row = np.int64(rows[i])
        if row != NULL:
            n = kept_tokens(tables, shape, row, count_of(counts, batch, i), drops)
            truncate_row(pool, tables, shape, row, n)
    gpu.syncthreads()
    if gpu.threadIdx.x == 0:
        end_release(pool, count)
        end_batch(pool, words, answer, (TRUNCATE, flags), count, (np.int64(0), np.int64(0)))


@device_helper
def end_pairs(pool, words, answer, call, key, pair):
    """Book the end of a batch of pairs that failed, by one thread."""
    rows, others, height = pair
    at, batch = key >> STATUS_BITS, np.int64(rows.size)
    value = np.int64(rows[at]) if at < batch else np.int64(others[at - batch])
    fact = value, batch << np.int64(32) | height
    end_batch(pool, words, answer, call, -key, fact)


@cuda_kernel(
    "void(int64[::1], int64[::1], int32[::1], int32[::1], int32[::1], int64[::1], int64)",
    twin=sequences_fork_batch_cpu,
)
def sequences_fork_batch_cuda(words, tables, src_rows, dst_rows, counts, answer, flags):
    """Mutates the pool and its record (`words`), tables and `answer`: each of `dst_rows` shares
    pages of its source, all or those of its first tokens, or none does.

    Reads both arrays and `counts`, how many tokens are shared, or nothing where it is all. Requires
    arrays of one length, no count below 0, and one block. With OPTION the destinations are free
    rows, which new sequences begin to live in; else they are live and empty, and there are no
    `counts`.
    """
    shared = gpu.shared.array(SHARED_WORDS, np.int64)
    pool, shape = words[RECORD_SLOTS:], table_shape(tables)
    batch, opens = np.int64(dst_rows.size), flags & OPTION != 0
    if not may_run(words, flags):
        return
    # Are all pairs sound, and all pages to be shared?
    wanted = NOBODY if opens else EMPTY
    sound = not any_thread(not pairs_sound(tables, shape, dst_rows, src_rows, wanted))
    if sound:
        sound = not any_thread(pages_full(pool, tables, shape, dst_rows, src_rows))
    far = NOWHERE
    if sound:
        far = counts_fault(shared, tables, shape, src_rows, counts)
        sound = far == NOWHERE
    # Destinations take over what their sources have.
    forks = np.int64(0)
    if sound:
        for i in range(gpu.threadIdx.x, batch, gpu.blockDim.x):
            forks += 1 if dst_rows[i] != NULL else 0
        _before, forks = block_scan(shared, forks)
        if opens:
            open_rows(pool, tables, shape, src_rows, dst_rows)
        copy_rows(pool, tables, shape, src_rows, dst_rows, counts)
    gpu.syncthreads()
    if sound:
        cap_rows(tables, shape, dst_rows, counts)
    if not opens:
        unclaim(tables, shape, dst_rows)
    gpu.syncthreads()
    if far != NOWHERE:
        if gpu.threadIdx.x == 0:
            at = far >> STATUS_BITS
            length = length_of(tables, shape, np.int64(src_rows[at]))
            fact = count_of(counts, batch, at), length
            end_batch(pool, words, answer, (FORK, flags), -far, fact)
    elif not sound:
        key = pairs_fault(pool, shared, tables, shape, dst_rows, src_rows, wanted)
        if gpu.threadIdx.x == 0:
            pair = dst_rows, src_rows, tables[NUM_ROWS]
            end_pairs(pool, words, answer, (FORK, flags), key, pair)
    elif gpu.threadIdx.x == 0:
        tables[SEQ_FORKS] += forks
        if opens:
            tables[SEQ_ALLOCATIONS] += forks
            tables[ACTIVE] += forks
            tables[PEAK_ACTIVE] = max(tables[PEAK_ACTIVE], tables[ACTIVE])
        end_batch(pool, words, answer, (FORK, flags), forks, (np.int64(0), np.int64(0)))


@cuda_kernel(
    "void(int64[::1], int64[::1], int32[::1], int32[::1], int64[::1], int64[::1])",
    twin=sequences_reorder_cpu,
)
def sequences_reorder_cuda(words, tables, rows, parents, scratch, answer):
    """Mutates the pool and its record (`words`), tables, `scratch` and `answer`: each of `rows`
    goes on as its parent was before the call, or none does.

    Reads `rows` and `parents`, requires them of one length, one block, and `scratch` of
    `reorder_words` of the batch.
    """
    shared = gpu.shared.array(SHARED_WORDS, np.int64)
    pool, shape = words[RECORD_SLOTS:], table_shape(tables)
    batch = np.int64(rows.size)
    call = REORDER, np.int64(0)
    # Are all pairs sound, and all pages to be shared?
    sound = not any_thread(not pairs_sound(tables, shape, rows, parents, SOMEBODY))
    unclaim(tables, shape, rows)
    if sound:
        sound = not any_thread(pages_full(pool, tables, shape, rows, parents))
    if not sound:
        key = pairs_fault(pool, shared, tables, shape, rows, parents, SOMEBODY)
        if gpu.threadIdx.x == 0:
            end_pairs(pool, words, answer, call, key, (rows, parents, tables[NUM_ROWS]))
        return
    # What the parents have is kept aside, and owned once more.
    starts, firsts = scratch[: batch + 1], scratch[batch + 1 : 2 * batch + 1]
    facts = scratch[2 * batch + 1 : (2 + FACTS) * batch + 1]
    kept = scratch[(2 + FACTS) * batch + 1 :].view(np.int32)
    for i in range(gpu.threadIdx.x, batch, gpu.blockDim.x):
        firsts[i] = 0
    page_starts(shared, tables, shape, rows, starts)
    keep_parents(pool, tables, shape, rows, parents, facts, kept)
    gpu.syncthreads()
    # The rows give up what they have, and take that over.
    count = drop_pages(pool, shared, tables, shape, rows, starts, firsts)
    gpu.syncthreads()
    replace_rows(pool, tables, shape, rows, starts, facts, kept)
    gpu.syncthreads()
    if gpu.threadIdx.x == 0:
        end_release(pool, count)
        end_batch(pool, words, answer, call, np.int64(0), (np.int64(0), np.int64(0)))
