"""How rows of a batch take over the pages and facts of others."""

from __future__ import annotations

import numpy as np

from jitalloc.errors import POSITION_RANGE
from jitalloc.gpu.calls import fault_key
from jitalloc.gpu.kernel import device_helper, gpu
from jitalloc.gpu.scan import NOWHERE, block_min
from jitalloc.pool.loops.merging_cuda import pool_views
from jitalloc.pool.state import STEP
from jitalloc.sequences.loops.row_batches_cuda import count_of, team_place
from jitalloc.sequences.loops.row_facts_cuda import (
    column_start,
    is_marked,
    length_of,
    pages_of,
    row_bit,
    shorten_lock,
    table_pages,
    touch,
)
from jitalloc.sequences.state import (
    BORN,
    COMPUTED,
    GAP,
    KNOWN,
    LENGTH,
    LOCK_END,
    LOCKED,
    NAMESPACE,
    PRIORITY,
)
from jitalloc.state import HEADER_SLOTS, NULL

# What a sequence takes over from the one that it continues; loops/sequences.py has the same.
INHERITED = (LENGTH, COMPUTED, KNOWN, NAMESPACE, LOCKED, LOCK_END, GAP)
FACTS = len(INHERITED)


@device_helper
def open_rows(pool, tables, shape, src_rows, dst_rows):
    """Let new sequences without tokens live in the free `dst_rows`, with the priority of others."""
    priority = column_start(shape, PRIORITY)
    for i in range(gpu.threadIdx.x, dst_rows.size, gpu.blockDim.x):
        src, dst = np.int64(src_rows[i]), np.int64(dst_rows[i])
        if dst != NULL:
            gpu.atomic.or_(tables, HEADER_SLOTS + (dst >> 6), row_bit(dst))
            tables[priority + dst] = tables[priority + src]
            tables[column_start(shape, BORN) + dst] = pool[STEP] + 1


@device_helper
def tokens_to_share(tables, shape, src_rows, counts, i):
    """Return how many tokens of `src_rows[i]` are shared: all, where there are no `counts`."""
    if counts.size > 0:
        return count_of(counts, src_rows.size, i)
    return length_of(tables, shape, np.int64(src_rows[i]))


@device_helper
def counts_fault(shared, tables, shape, src_rows, counts):
    """Return the key of the first number of tokens that its row does not have, or NOWHERE."""
    key = NOWHERE
    for i in range(gpu.threadIdx.x, src_rows.size if counts.size > 0 else 0, gpu.blockDim.x):
        if count_of(counts, src_rows.size, i) > length_of(tables, shape, np.int64(src_rows[i])):
            key = min(key, fault_key(POSITION_RANGE, np.int64(i)))
    return block_min(shared, key)


@device_helper
def cap_facts(tables, shape, row, tokens):
    """Let `row` be `tokens` tokens long, and what is said of its tokens hold for these."""
    (pages,) = table_pages(tables, shape)
    known, computed = column_start(shape, KNOWN) + row, column_start(shape, COMPUTED) + row
    tables[column_start(shape, LENGTH) + row] = tokens
    tables[known] = min(tables[known], tokens)
    tables[computed] = min(tables[computed], tokens)
    if tokens < tables[column_start(shape, GAP) + row]:
        tables[column_start(shape, GAP) + row] = 0
    shorten_lock(tables, shape, pages, row, pages_of(tokens, shape))


@device_helper
def copy_rows(pool, tables, shape, src_rows, dst_rows, counts):
    """Let the empty rows share pages and facts of others, those that are marked left out.

    With `counts` they share so many of the first tokens; `cap_rows` has to follow.
    """
    _free_pages, refcount, _released = pool_views(pool)
    (pages,) = table_pages(tables, shape)
    width = shape[1]
    team, teams, place, size = team_place(dst_rows.size)
    for i in range(team, dst_rows.size, teams):
        src, dst = np.int64(src_rows[i]), np.int64(dst_rows[i])
        if dst == NULL:
            continue
        if not is_marked(tables, shape, src):  # else it is empty, and written to
            kept = tokens_to_share(tables, shape, src_rows, counts, i)
            for j in range(place, pages_of(kept, shape), size):
                page = pages[src * width + j]
                gpu.atomic.add(refcount, np.int64(page), np.int32(1))
                pages[dst * width + j] = page
            if place == 0:
                for column in INHERITED:
                    facts = column_start(shape, column)
                    tables[facts + dst] = tables[facts + src]
        if place == 0:
            touch(tables, shape, dst, pool[STEP] + 1)


@device_helper
def cap_rows(tables, shape, dst_rows, counts):
    """Let the facts of rows that share so many tokens as `counts` say hold for these."""
    for i in range(gpu.threadIdx.x, dst_rows.size if counts.size > 0 else 0, gpu.blockDim.x):
        cap_facts(tables, shape, np.int64(dst_rows[i]), count_of(counts, dst_rows.size, i))


@device_helper
def keep_parents(pool, tables, shape, rows, parents, facts, kept):
    """Write down facts and pages of `parents`, each of which gets one owner more."""
    _free_pages, refcount, _released = pool_views(pool)
    (pages,) = table_pages(tables, shape)
    width = shape[1]
    team, teams, place, size = team_place(rows.size)
    for i in range(team, rows.size, teams):
        parent = np.int64(parents[i])
        if rows[i] == NULL:
            continue
        if place == 0:
            for k in range(FACTS):
                facts[i * FACTS + k] = tables[column_start(shape, INHERITED[k]) + parent]
        for j in range(place, pages_of(length_of(tables, shape, parent), shape), size):
            page = pages[parent * width + j]
            gpu.atomic.add(refcount, np.int64(page), np.int32(1))
            kept[i * width + j] = page


@device_helper
def replace_rows(pool, tables, shape, rows, starts, facts, kept):
    """Give `rows` the facts and pages written down; `starts` tells how many pages they had."""
    (pages,) = table_pages(tables, shape)
    width = shape[1]
    team, teams, place, size = team_place(rows.size)
    for i in range(team, rows.size, teams):
        row = np.int64(rows[i])
        if row == NULL:
            continue
        new = pages_of(facts[i * FACTS], shape)
        for j in range(place, max(new, starts[i + 1] - starts[i]), size):
            pages[row * width + j] = kept[i * width + j] if j < new else np.int32(NULL)
        if place == 0:
            for k in range(FACTS):
                tables[column_start(shape, INHERITED[k]) + row] = facts[i * FACTS + k]
            touch(tables, shape, row, pool[STEP] + 1)
