"""Twins of the loops of sequences on a pool.

A batch is taken by one block: the rows of a thread stand side by side, so that one scan of the
block tells what the rows before take, and what is long in a row (pages, slots) is shared by the
lanes of a warp. Behind a prefix cache the loops of the CPU run, by one thread: what enters the
cache and what gives way has no order but theirs.
"""

from __future__ import annotations

import numpy as np

from jitalloc._cuda import cuda_kernel, device_helper, gpu
from jitalloc._cuda_loops import as_rows, from_cpu
from jitalloc.errors import (
    CHANGED,
    OUT_OF_PAGES,
    OUT_SHORT,
    STATUS_BITS,
    STATUS_MASK,
    TOKENS_MISFIT,
)
from jitalloc.kernels import pool as pool_loops
from jitalloc.kernels import sequences as loops
from jitalloc.kernels.cuda.appends import (
    append_fault,
    append_look,
    append_rows,
    fault_facts,
    pack_copies,
    settle_shares,
    unsettle,
)
from jitalloc.kernels.cuda.calls import begins
from jitalloc.kernels.cuda.merging import block_merge
from jitalloc.kernels.cuda.pool import (
    end_call,
    end_read,
    fail,
    fill_null,
    pool_advance,
)
from jitalloc.kernels.cuda.releasing import end_release
from jitalloc.kernels.cuda.row_batches import (
    copy_rows,
    drop_pages,
    drop_starts,
    keep_parents,
    pages_full,
    pairs_fault,
    pairs_look,
    replace_rows,
    unclaim,
)
from jitalloc.kernels.cuda.scan import (
    SHARED_WORDS,
    any_thread,
    block_scan,
)
from jitalloc.state import (
    CALL_KINDS,
    CALLS,
    FREE,
    HEAD,
    INT32_MAX,
    MAX_PAGES,
    NUM_PAGES,
    NUM_ROWS,
    PAGE_COPIES,
    RECORD_SLOTS,
    RELEASED,
    RESULT,
    SEQ_FORKS,
)

APPEND = CALL_KINDS.index("append_batch")
FORK = CALL_KINDS.index("fork_batch")
REORDER = CALL_KINDS.index("reorder")
FACTS = len(loops.INHERITED)  # words of scratch a row, in front of its pages, for `reorder`

pool_total = from_cpu(pool_loops.pool_total)
append_need = from_cpu(loops.append_need)
append_undo = from_cpu(loops.append_undo)
sequences_append = from_cpu(loops.sequences_append_cpu)
sequences_fork_batch = from_cpu(loops.sequences_fork_batch_cpu)
sequences_reorder = from_cpu(loops.sequences_reorder_cpu)
sequences_fork = from_cpu(loops.sequences_fork_cpu)
sequences_truncate = from_cpu(loops.sequences_truncate_cpu)


@cuda_kernel("void(int64[::1], int64[::1], int64[::1], int64)", serial=True)
def sequences_fork_cuda(words, tables, prefix, src):
    if begins(words):
        words[RESULT] = sequences_fork(words[RECORD_SLOTS:], tables, prefix, src)


@cuda_kernel("void(int64[::1], int64[::1], int64[::1], int64, int64)", serial=True)
def sequences_truncate_cuda(words, tables, prefix, row, num_tokens):
    if begins(words):
        words[RESULT] = sequences_truncate(words[RECORD_SLOTS:], tables, prefix, row, num_tokens)


@cuda_kernel(
    "void(int64[::1], int64[::1], int32[::1], int64[::1], int32[::1], int64[::1], int32[::1])"
)
def sequences_append_cuda(words, tables, rows, counts, tokens, slots, copied):
    # Without a prefix cache; `copied` are two rows of one column a row of the batch.
    shared = gpu.shared.array(SHARED_WORDS, np.int64)
    record, pool = words[:RECORD_SLOTS], words[RECORD_SLOTS:]
    me, step, batch = gpu.threadIdx.x, gpu.blockDim.x, np.int64(rows.size)
    src = copied[:batch]
    sound, shares, mine, need = append_look(pool, tables, rows, counts, src)
    for i in range(me, tokens.size, step):
        sound = sound and tokens[i] >= 0
    sound = not any_thread(not sound)  # all marks are set behind it
    unclaim(tables, rows)
    before, total = block_scan(shared, mine)
    sound = sound and total <= INT32_MAX and (tokens.size == 0 or tokens.size == total)
    shares = any_thread(shares) and sound
    if shares:
        need += settle_shares(pool, src)
    pages_before, need = block_scan(shared, need)
    available = pool[FREE] + pool[RELEASED]
    status, value, wanted = np.int64(0), np.int64(0), need
    if not sound:
        status, value, wanted = append_fault(shared, tables, rows, counts, tokens)
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
            end_call(pool, record, APPEND, status, value, wanted)
        return
    if need > pool[FREE]:
        block_merge(pool, shared)
    place = before << np.int64(32) | pages_before
    append_rows(pool, tables, rows, counts, copied, slots, place)
    fill_null(slots, total, me, step)
    copies = np.int64(0)
    if shares:
        copies = pack_copies(shared, src, copied[batch:])
    else:
        fill_null(copied, 0, me, step)
    if me == 0:
        pool_advance(pool, pool[HEAD] + need, need)
        tables[PAGE_COPIES] += copies
        end_call(pool, record, APPEND, np.int64(0), np.int64(0), need)


@cuda_kernel(
    "void(int64[::1], int64[::1], int64[::1], int32[::1], int64[::1], int32[::1], int64[::1],"
    "int32[::1])",
    serial=True,
)
def sequences_append_serial_cuda(words, tables, prefix, rows, counts, tokens, slots, copied):
    # Behind a prefix cache. In one kernel with its parallel twin, a block of that would not have
    # registers enough, and who needs no prefix cache would load ten times the code.
    record, pool = words[:RECORD_SLOTS], words[RECORD_SLOTS:]
    pairs = as_rows(copied, 2, rows.size)
    total = pool_total(counts)
    if total > 0 and counts.size == 1:
        total *= rows.size
    status, copies, value, wanted = total, np.int64(0), np.int64(0), np.int64(0)
    if total >= 0 and tokens.size > 0 and tokens.size != total:
        status, wanted = fail(TOKENS_MISFIT, tokens.size), total
    elif total >= 0:
        made = slots[: min(total, np.int64(slots.size))]
        copies = sequences_append(pool, tables, prefix, rows, counts, tokens, made, pairs)
        status = copies
        if -status & STATUS_MASK == CHANGED and status < 0:
            status, wanted = fail(OUT_SHORT, slots.size), total
        elif -status & STATUS_MASK == OUT_OF_PAGES and status < 0:
            wanted = append_need(pool, tables, rows, counts, pairs[0])
            append_undo(pool, pairs[0])
        elif status < 0:
            value, wanted = fault_facts(tables, rows, counts, tokens, status)
    else:
        value, wanted = fault_facts(tables, rows, counts, tokens, status)
    failed = status < 0
    fill_null(slots, np.int64(0) if failed else total, 0, 1)
    fill_null(pairs[0], np.int64(0) if failed else copies, 0, 1)
    fill_null(pairs[1], np.int64(0) if failed else copies, 0, 1)
    end_read(record, APPEND, status, value, wanted)  # the loop has advanced the clock


@device_helper
def end_pairs(record, tables, kind, status, rows, others):
    """Book the end of a batch of pairs that failed, by one thread."""
    at, batch = -status >> STATUS_BITS, np.int64(rows.size)
    value = np.int64(rows[at]) if at < batch else np.int64(others[at - batch])
    end_read(record, kind, status, value, batch << np.int64(32) | tables[NUM_ROWS])


@cuda_kernel("void(int64[::1], int64[::1], int64[::1], int32[::1], int32[::1])")
def sequences_fork_batch_cuda(words, tables, prefix, src_rows, dst_rows):
    shared = gpu.shared.array(SHARED_WORDS, np.int64)
    record, pool = words[:RECORD_SLOTS], words[RECORD_SLOTS:]
    if prefix.size > 1:
        if gpu.threadIdx.x == 0:
            status = sequences_fork_batch(pool, tables, prefix, src_rows, dst_rows)
            if status < 0:
                end_pairs(record, tables, FORK, status, dst_rows, src_rows)
            else:
                record[CALLS] += 1
        return
    sound = not any_thread(not pairs_look(tables, dst_rows, src_rows, True))
    if sound:
        sound = not any_thread(pages_full(pool, tables, src_rows))
    if sound:
        copy_rows(pool, tables, src_rows, dst_rows)
    gpu.syncthreads()
    unclaim(tables, dst_rows)
    if not sound:
        key = pairs_fault(pool, shared, tables, dst_rows, src_rows, True)
        if gpu.threadIdx.x == 0:
            end_pairs(record, tables, FORK, -key, dst_rows, src_rows)
    elif gpu.threadIdx.x == 0:
        tables[SEQ_FORKS] += dst_rows.size
        end_call(pool, record, FORK, np.int64(0), np.int64(0), np.int64(0))


@cuda_kernel("void(int64[::1], int64[::1], int64[::1], int32[::1], int32[::1], int64[::1])")
def sequences_reorder_cuda(words, tables, prefix, rows, parents, scratch):
    # `scratch`: `reorder_words` for all rows of the table.
    shared = gpu.shared.array(SHARED_WORDS, np.int64)
    record, pool = words[:RECORD_SLOTS], words[RECORD_SLOTS:]
    batch, width = np.int64(rows.size), tables[MAX_PAGES]
    facts = FACTS * tables[NUM_ROWS]
    kept = scratch[facts + 1 :].view(np.int32)
    if prefix.size > 1:
        if gpu.threadIdx.x == 0:
            small = min(batch, tables[NUM_ROWS])
            inherited = as_rows(scratch[: small * FACTS], small, np.int64(FACTS))
            pages = as_rows(kept[: small * width], small, width)
            status = sequences_reorder(pool, tables, prefix, rows, parents, inherited, pages)
            if status < 0:
                end_pairs(record, tables, REORDER, status, rows, parents)
            else:
                record[CALLS] += 1
        return
    sound = not any_thread(not pairs_look(tables, rows, parents, False))
    unclaim(tables, rows)
    if sound:
        sound = not any_thread(pages_full(pool, tables, parents))
    if not sound:
        key = pairs_fault(pool, shared, tables, rows, parents, False)
        if gpu.threadIdx.x == 0:
            end_pairs(record, tables, REORDER, -key, rows, parents)
        return
    starts, lengths = scratch[: batch + 1], scratch[batch + 1 : 2 * batch + 1]
    drop_starts(shared, tables, rows, starts)
    keep_parents(pool, tables, parents, lengths, kept)
    gpu.syncthreads()
    count = drop_pages(pool, shared, tables, rows, starts)
    gpu.syncthreads()
    replace_rows(pool, tables, rows, starts, lengths, kept)
    gpu.syncthreads()
    if gpu.threadIdx.x == 0:
        end_release(pool, count)
        end_call(pool, record, REORDER, np.int64(0), np.int64(0), np.int64(0))
