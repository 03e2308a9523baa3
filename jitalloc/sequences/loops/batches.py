"""Loops over the prompts of a batch: how many would fit, and all of them begin, or none."""

from __future__ import annotations

import numpy as np

from jitalloc._intrinsics import fail, try_lock, unlock
from jitalloc._jit import helper, kernel
from jitalloc.errors import BUSY, OUT_OF_ROWS, REFCOUNT_OVERFLOW, TABLE_WIDTH
from jitalloc.pool.loops.pool import pool_reserve, pool_take, pool_views
from jitalloc.pool.state import FREE, RELEASED, STEP
from jitalloc.prefix.loops.freeing import reclaimable
from jitalloc.prefix.loops.nodes import following_column, node_records
from jitalloc.prefix.loops.paths import NO_PAGE, UNUSED, path_lock, path_put_back, path_unlock
from jitalloc.prefix.loops.prefix import negative_token
from jitalloc.prefix.loops.search import find, peek_node
from jitalloc.prefix.state import NODE_LOCKS, PREFIX_PAGE_SIZE
from jitalloc.sequences.loops.row_locks import has_prefix
from jitalloc.sequences.loops.rows import free_rows, open_row
from jitalloc.sequences.loops.sharing import end_share, make_room, name_prefix
from jitalloc.sequences.loops.tables import tables_pages_of, tables_row
from jitalloc.sequences.state import MAX_PAGES
from jitalloc.state import INT32_MAX, NULL

# What a plan is told besides the prompts.
RULE_PAGE_SIZE = 0
RULE_AVAILABLE = 1  # pages free or released, or -1: those of the pool
RULE_RESERVE = 2
RULE_WIDTH = 3  # pages a row
RULE_ROWS = 4  # that are free
RULE_COMPUTE = 5
RULE = 6


@helper
def find_unlocked(pool, prefix, root, tokens, found):
    """Find the cached prefix of `tokens`; return how many pages, and how many of them are spare.

    Those are the pages that could be reclaimed so far: each gets one owner more, and stands in
    `found`. No node is split.
    """
    _free_pages, refcount, _released = pool_views(pool)
    nodes, size = node_records(prefix), tokens.size // prefix[PREFIX_PAGE_SIZE]
    done, spare, end = np.int64(0), np.int64(0), root
    while done < size and (end < 0 or following_column(prefix)[end] < 0):
        node, same = peek_node(prefix, end, tokens, done, size, found)
        if node < 0:
            break
        end = np.int64(found[done + same - 1])
        if nodes[node, NODE_LOCKS] == 0:
            for j in range(done, done + same):
                page = found[j]
                if refcount[page] == 1:
                    refcount[page] += np.int32(1)
                    found[spare] = page  # never past what has been read
                    spare += 1
        done += same
    return done, spare


@kernel(
    "int64(int64[::1], int64[::1], int32[::1], int64[::1], int64[::1], int64[::1], int64[::1],"
    " int32[::1])"
)
def batches_plan_cpu(pool, prefix, tokens, indptr, roots, rule, facts, found):
    """Mutates `facts` and `found`, scratch, and until it ends the owners of pages.

    Reads prompts (`tokens`, `indptr`), the roots of their namespaces and `rule`; requires three
    `facts` a prompt, first what each finds, in tokens, then how many new pages each needs, then
    scratch, and room in `found` for all whole pages. Returns how many of the first prompts fit.
    """
    if not try_lock(pool):
        return fail(BUSY, 0)
    _free_pages, refcount, _released = pool_views(pool)
    batch, size = roots.size, rule[RULE_PAGE_SIZE]
    status, marked, need = negative_token(tokens, np.int64(0)), np.int64(0), np.int64(0)
    # What each would find and take. A page that can be reclaimed goes to the first that finds it.
    for i in range(batch if status == 0 else 0):
        prompt = tokens[indptr[i] : indptr[i + 1]]
        count, spare = np.int64(0), np.int64(0)
        if has_prefix(prefix):
            capped = prompt[: max(prompt.size - rule[RULE_COMPUTE], 0)]
            count, spare = find_unlocked(pool, prefix, roots[i], capped, found[marked:])
        marked += spare
        pages = (prompt.size + size - 1) // size
        facts[i], facts[batch + i] = count * size, pages - count
        need += pages - count
        facts[2 * batch + i] = need + marked
    for j in range(marked):
        refcount[found[j]] -= np.int32(1)
    if status == 0:
        room = rule[RULE_AVAILABLE]
        room = (pool[FREE] + pool[RELEASED] if room < 0 else room) - rule[RULE_RESERVE]
        # To count what cached pages would free is a look at all of them: only where it matters.
        if need > room:
            room += reclaimable(pool, prefix) if has_prefix(prefix) else np.int64(0)
        else:
            room = need + marked
        width = rule[RULE_WIDTH] * size
        while status < min(batch, rule[RULE_ROWS]):
            length = indptr[status + 1] - indptr[status]
            if facts[2 * batch + status] > max(room, 0) or length > min(width, INT32_MAX):
                break
            status += 1
    unlock(pool)
    return status


@helper
def rows_for(tables, indptr, rows):
    """Write the lowest free rows to `rows`, for prompts; return 0 or a status word."""
    for i in range(rows.size):
        length = indptr[i + 1] - indptr[i]
        if tables_pages_of(tables, length) > tables[MAX_PAGES] or length > INT32_MAX:
            return fail(TABLE_WIDTH, i)
    count = free_rows(tables, rows)
    return np.int64(0) if count == rows.size else fail(OUT_OF_ROWS, count)


@helper
def lock_prompts(pool, tables, prefix, tokens, indptr, roots, compute, facts):
    """Find, lock and write to their rows the cached pages that prompts begin with.

    Returns `(status word, how many new pages they need)`.
    """
    _free_pages, refcount, _released = pool_views(pool)
    batch, need, status = roots.size, np.int64(0), np.int64(0)
    for i in range(batch):
        prompt = tokens[indptr[i] : indptr[i + 1]]
        pages = tables_row(tables, facts[i])[: tables_pages_of(tables, prompt.size)]
        count, end = np.int64(0), roots[i]
        if has_prefix(prefix):
            count, end = find(prefix, end, prompt[: max(prompt.size - compute, 0)], pages)
            path_lock(prefix, end, NO_PAGE, UNUSED)
        for j in range(count):
            if refcount[pages[j]] > INT32_MAX - batch:
                status = fail(REFCOUNT_OVERFLOW, i)
        facts[batch + i], facts[2 * batch + i] = count, end
        need += pages.size - count
    return status, need


@helper
def unlock_prompts(tables, prefix, facts, batch):
    """Undo `lock_prompts`."""
    for i in range(batch):
        if has_prefix(prefix):
            path_unlock(prefix, facts[2 * batch + i])
        pages = tables_row(tables, facts[i])
        for j in range(facts[batch + i]):
            pages[j] = NULL
    for i in range(batch if has_prefix(prefix) else 0):
        path_put_back(prefix, facts[2 * batch + i])


@kernel(
    "int64(int64[::1], int64[::1], int64[::1], int32[::1], int64[::1], int64[::1], int64[::1],"
    " int64[::1])"
)
def batches_open_cpu(pool, tables, prefix, tokens, indptr, roots, rule, facts):
    """Mutates pool, tables and prefix cache: a sequence begins for each prompt in the lowest free
    rows, or none does; and `facts`: rows, then how many pages each has found, then scratch.

    Reads prompts (`tokens`, `indptr`), the roots of their namespaces, and `rule`: priority, and how
    many tokens of each are left to be computed. Requires three facts a prompt.
    """
    if not try_lock(pool):
        return fail(BUSY, 0)
    batch = roots.size
    status, need = rows_for(tables, indptr, facts[:batch]), np.int64(0)
    if status == 0:
        status = negative_token(tokens, np.int64(0))
    if status == 0:
        # What they share is locked first, so that no room is made of it.
        prompts = tokens, indptr, roots
        status, need = lock_prompts(pool, tables, prefix, *prompts, rule[1], facts)
        if status == 0:
            status = make_room(pool, prefix, need)
        if status < 0:
            unlock_prompts(tables, prefix, facts, batch)
    if status == 0:
        _free_pages, refcount, _released = pool_views(pool)
        pool_reserve(pool, need)
        for i in range(batch):
            row, count, end = facts[i], facts[batch + i], facts[2 * batch + i]
            prompt = tokens[indptr[i] : indptr[i + 1]]
            pages = tables_row(tables, row)[: tables_pages_of(tables, prompt.size)]
            if has_prefix(prefix):
                end_share(prefix, prompt, count, end, np.int64(1))
            for j in range(count):
                refcount[pages[j]] += np.int32(1)
            pool_take(pool, pages[count:])
            if has_prefix(prefix):
                name_prefix(tables, prefix, row, prompt, -2 - roots[i], count, end)
            open_row(pool, tables, row, prompt.size, rule[0])
        pool[STEP] += 1
    unlock(pool)
    return status
