"""What sequences behind a prefix cache, whose index lives on the host, tell it and are told.

The first two kernels write what the host asks for into one array, so that it is fetched at once;
the loops of the host run on that, and the last one brings what they changed to the GPU. None can
fail, and none is a call of the pool.
"""

from __future__ import annotations

import numpy as np

from jitalloc.gpu.kernel import cuda_kernel, device_helper, gpu
from jitalloc.gpu.record import RECORD_SLOTS
from jitalloc.gpu.scan import SHARED_WORDS, own_part, owner_of
from jitalloc.pool.loops.merging_cuda import pool_views
from jitalloc.sequences.loops.commits import commits_row_cpu
from jitalloc.sequences.loops.row_batches_cuda import count_of, running_starts
from jitalloc.sequences.loops.row_facts_cuda import (
    column_start,
    pages_of,
    row_code,
    table_pages,
    table_shape,
)
from jitalloc.sequences.loops.rows import rows_free_cpu
from jitalloc.sequences.state import (
    COMPUTED,
    GAP,
    KNOWN,
    LENGTH,
    LOCK_END,
    LOCKED,
    NAMESPACE,
)
from jitalloc.state import HEADER_SLOTS, NULL

# What is fetched, in words: record and header; two columns of all rows, LOCKED and LOCK_END; then
# for each row asked for FACTS of it; then how many pages of the rows before it follow, and of how
# many of these the token ids. Behind stand, as int32, tokens of the caller, the pages, how many
# owners they have, and the token ids.
FACT_ROW = 0  # NULL for padding, below where nobody lives in it
FACT_LENGTH = 1
FACT_KNOWN = 2
FACT_NAMESPACE = 3
FACT_GAP = 4
FACT_PAGE = 5  # the first page that follows, by its place in the row
FACT_TOLD = 6  # the first page whose token ids follow
FACT_COMPUTED = 7
FACT_COUNT = 8  # how many tokens the caller says are computed
FACTS = 9

# What of a row: pages from the one before what is locked to the last with tokens known and, as the
# caller says, computed, and the ids of full ones behind what is locked. Or, by bits of a rule:
ALL_PAGES = 1  # all pages
ALL_TOKENS = 2  # the ids of all pages


@device_helper
def facts_start(shape):
    """Return the word at which the facts of the first row stand."""
    return RECORD_SLOTS + HEADER_SLOTS + 2 * shape[0]


@device_helper
def put_facts(tables, shape, rows, counts, i, rule, out):
    """Write the facts of row `i` of a batch; return how many pages and ids of it follow."""
    row, at = np.int64(rows[i]), facts_start(shape) + FACTS * i
    if row_code(tables, shape, row) != 0:
        for fact in range(FACTS):
            out[at + fact] = 0
        out[at + FACT_ROW] = NULL if row == NULL else NULL - 1
        return np.int64(0), np.int64(0)
    length = tables[column_start(shape, LENGTH) + row]
    known = tables[column_start(shape, KNOWN) + row]
    computed = tables[column_start(shape, COMPUTED) + row]
    count = count_of(counts, rows.size, i) if counts.size > 0 else length
    sure = min(known, max(computed, count))
    locked = tables[column_start(shape, LOCKED) + row]
    # The last page of what is locked tells whether a window has cut the row, where it has one.
    page, last = max(locked - 1, np.int64(0)), min(locked, pages_of(length, shape))
    pages = max(pages_of(sure, shape), last)
    if rule & ALL_PAGES != 0:
        page, pages = np.int64(0), pages_of(length, shape)
    told, full = locked, sure // shape[2]
    if rule & ALL_TOKENS != 0:
        told, full = np.int64(0), pages_of(length, shape)
    out[at + FACT_ROW] = row
    out[at + FACT_LENGTH] = length
    out[at + FACT_KNOWN] = known
    out[at + FACT_NAMESPACE] = tables[column_start(shape, NAMESPACE) + row]
    out[at + FACT_GAP] = tables[column_start(shape, GAP) + row]
    out[at + FACT_PAGE] = page
    out[at + FACT_TOLD] = told
    out[at + FACT_COMPUTED] = computed
    out[at + FACT_COUNT] = count
    return max(pages - page, np.int64(0)), max(full - told, np.int64(0))


@cuda_kernel(
    "void(int64[::1], int64[::1], int32[::1], int32[::1], int64[::1], int64)",
    twin=commits_row_cpu,
    step=False,
)
def sharing_facts_cuda(words, tables, rows, counts, out, rule):
    """Mutates `out`, up to where the pages begin: record and header, what all rows lock, and facts
    of `rows`.

    Reads `words`, tables, `rows` and `counts`, how many tokens of each are computed (see
    `count_of`; all where it is empty), requires one block, and words for FACTS and two starts a
    row. `rule`: ALL_PAGES, ALL_TOKENS, or neither.
    """
    shared = gpu.shared.array(SHARED_WORDS, np.int64)
    me, step, shape = gpu.threadIdx.x, gpu.blockDim.x, table_shape(tables)
    for i in range(me, RECORD_SLOTS + HEADER_SLOTS, step):
        out[i] = words[i]
    at = np.int64(RECORD_SLOTS + HEADER_SLOTS)
    for row in range(me, shape[0], step):
        out[at + row] = tables[column_start(shape, LOCKED) + row]
        out[at + shape[0] + row] = tables[column_start(shape, LOCK_END) + row]
    batch, facts = np.int64(rows.size), facts_start(shape)
    pages = out[facts + FACTS * batch : facts + FACTS * batch + batch + 1]
    tokens = out[facts + FACTS * batch + batch + 1 : facts + FACTS * batch + 2 * (batch + 1)]
    begin, end = own_part(batch)
    for i in range(begin, end):
        count, told = put_facts(tables, shape, rows, counts, np.int64(i), rule, out)
        pages[i] = count
        tokens[i] = told
    running_starts(shared, pages, batch)
    running_starts(shared, tokens, batch)


@cuda_kernel(
    "void(int64[::1], int64[::1], int32[::1], int32[::1], int64[::1], int32[::1])",
    twin=commits_row_cpu,
    step=False,
)
def sharing_gather_cuda(words, tables, known, tokens, facts, out):
    """Mutates `out`: the tokens of the caller, pages, how many owners they have, and token ids. As
    much as it has room for: the host sees that it was not all.

    Reads all else, requires `facts`, what `sharing_facts_cuda` wrote from the first row on.
    """
    shape = table_shape(tables)
    _free_pages, refcount, _released = pool_views(words[RECORD_SLOTS:])
    (pages,) = table_pages(tables, shape)
    batch = (np.int64(facts.size) - 2) // (FACTS + 2)
    starts = facts[FACTS * batch : FACTS * batch + batch + 1]
    told = facts[FACTS * batch + batch + 1 :]
    first, step = gpu.grid(1), gpu.gridsize(1)
    given, total = np.int64(tokens.size), starts[batch]
    # The tokens of the caller.
    for i in range(first, given, step):
        out[i] = tokens[i]
    # Pages, and how many owners they have.
    for at in range(first, total, step):
        i = owner_of(starts, at, batch)
        place = facts[FACTS * i + FACT_PAGE] + at - starts[i]
        page = pages[facts[FACTS * i + FACT_ROW] * shape[1] + place]
        if given + total + at < out.size:
            out[given + at] = page
            out[given + total + at] = refcount[page]
    # Token ids.
    put = given + 2 * total
    for at in range(first, min(told[batch] * shape[2], out.size - put), step):
        page_at = at // shape[2]
        i = owner_of(told, page_at, batch)
        place = facts[FACTS * i + FACT_TOLD] + page_at - told[i]
        page = np.int64(pages[facts[FACTS * i + FACT_ROW] * shape[1] + place])
        out[put + at] = known[page * shape[2] + at - page_at * shape[2]]


@cuda_kernel(
    "void(int64[::1], int64[::1], int32[::1], int64[::1])", twin=commits_row_cpu, step=False
)
def sharing_commit_cuda(words, tables, known, changes):
    """Mutates pool (owners), tables (page ids, facts of rows) and `known`, the token ids of slots.

    Reads `changes`, requires them to fit: how many of each sort there are, then pairs of a place
    and a value: owners that a page gets more; page ids of rows; facts of rows, by their place among
    all; token ids of slots.
    """
    shape = table_shape(tables)
    _free_pages, refcount, _released = pool_views(words[RECORD_SLOTS:])
    (pages,) = table_pages(tables, shape)
    owners, replaced = changes[0], changes[0] + changes[1]
    facts = replaced + changes[2]
    for i in range(gpu.grid(1), facts + changes[3], gpu.gridsize(1)):
        place, value = changes[4 + 2 * i], changes[5 + 2 * i]
        if i < owners:
            gpu.atomic.add(refcount, place, np.int32(value))
        elif i < replaced:
            pages[place] = np.int32(value)
        elif i < facts:
            tables[column_start(shape, 0) + place] = value
        else:
            known[place] = np.int32(value)


@cuda_kernel("void(int64[::1], int64)", twin=rows_free_cpu)
def sharing_count_cuda(out, n):
    """Mutates `out[0]`, which counts `n` pages more, unless it is NULL: that call has failed.

    Reads nothing else, requires the call before it to have written `out`; the `n` went free before.
    """
    if gpu.grid(1) == 0 and out[0] != NULL:
        out[0] += n
