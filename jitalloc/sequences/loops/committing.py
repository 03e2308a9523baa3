"""What sequences are known to contain, and how their full pages enter the prefix cache.

The prefix cache has a row of token ids for each page of the pool. Where it holds the page, that
row is the index; for a page of a running sequence it is what the sequence is known to contain,
so that a commit moves no token and forks share them with the pages. Shared by the loops of
sequences.
"""

from __future__ import annotations

import numpy as np

from jitalloc._intrinsics import bit
from jitalloc._jit import counting, helper
from jitalloc.pool.loops.owners import pool_release
from jitalloc.pool.loops.pool import pool_views
from jitalloc.pool.state import STEP
from jitalloc.prefix.loops.children import hash_link
from jitalloc.prefix.loops.insertion import grow_node, link_new, refresh
from jitalloc.prefix.loops.nodes import token_column
from jitalloc.prefix.loops.paths import UNUSED, path_join, path_lock
from jitalloc.prefix.loops.search import descend
from jitalloc.prefix.loops.split_join import split_after
from jitalloc.prefix.state import DEFAULT, NEVER
from jitalloc.sequences.loops.row_locks import (
    common_pages,
    has_prefix,
    is_cached,
    is_cut,
    lock_sharers,
    lockable,
)
from jitalloc.sequences.loops.tables import tables_column, tables_pages_of, tables_row, tables_taken
from jitalloc.sequences.state import (
    COMPUTED,
    KNOWN,
    LENGTH,
    LOCK_END,
    LOCKED,
    NAMESPACE,
    NUM_ROWS,
    ROW_PAGE_SIZE,
)


@helper
def write_tokens(tables, prefix, row, start, tokens):
    """Write the ids of the tokens of `row` from position `start` on into the rows of its pages."""
    column, pages = token_column(prefix), tables_row(tables, row)
    size = tables[ROW_PAGE_SIZE]
    done = np.int64(0)
    while done < tokens.size:
        offset = (start + done) % size
        n = min(size - offset, tokens.size - done)
        first = np.int64(pages[(start + done) // size]) * size + offset
        target, source = column[first : first + n], tokens[done : done + n]
        for j in range(n):
            target[j] = source[j]
        done += n


@helper
def copy_tokens(tables, prefix, src, dst):
    """Copy the token ids of page `src` to page `dst`."""
    column, size = token_column(prefix), tables[ROW_PAGE_SIZE]
    source, target = column[src * size : (src + 1) * size], column[dst * size : (dst + 1) * size]
    for j in range(size):
        target[j] = source[j]


@helper
def known_of(pool, tables, prefix, row, count):
    """Return how many of the first `count` tokens of `row` anybody knows who holds its pages."""
    _free_pages, refcount, _released = pool_views(pool)
    known, size = tables_column(tables, KNOWN), tables[ROW_PAGE_SIZE]
    pages, taken = tables_row(tables, row), tables_taken(tables)
    most = known[row]
    first, last = most // size, tables_pages_of(tables, count)
    for j in range(first, last):
        if refcount[pages[j]] > 1 and not is_cached(prefix, pages[j]):
            break
    else:
        return most
    for other in range(tables[NUM_ROWS]):
        if taken[other >> 6] & bit(other) == np.uint64(0) or known[other] <= most:
            continue
        same = common_pages(tables, row, np.int64(other), np.int64(0), last)
        most = max(most, min(known[other], same * size))
    return most


@helper
def first_difference(pool, tables, prefix, row, tokens):
    """Return the first position where `tokens` differ from the known ones of `row`, or -1.

    What stands in a cached page is known, and so is what a fork was told of a page they share.
    """
    column, pages = token_column(prefix), tables_row(tables, row)
    size = tables[ROW_PAGE_SIZE]
    known = known_of(pool, tables, prefix, row, np.int64(tokens.size))
    for i in range(tokens.size):
        page = np.int64(pages[i // size])
        if (i < known or is_cached(prefix, page)) and column[page * size + i % size] != tokens[i]:
            return np.int64(i)
    return np.int64(-1)


@counting
def row_adopt(pool, tables, prefix, row, depth, full, end):
    """Insert the pages `depth .. full-1` of `row` behind `end`; nothing is touched nor locked.

    Those that are cached already are replaced by the cached ones. Behind them, pages enter as
    far as all of their owners will lock them (`lockable`). Returns how many were cached, up to
    which page of the row all are cached now, and how many pages that sets free.
    """
    _free_pages, refcount, _released = pool_views(pool)
    pages = tables_row(tables, row)[depth:full]
    canonical = np.empty(pages.size, np.int32)
    split_after(prefix, end)
    present, last = descend(prefix, end, token_column(prefix), pages, pages.size, canonical)
    duplicates = np.int64(0)
    for j in range(present):
        own = pages[j]
        if canonical[j] != own:
            pages[j] = canonical[j]
            refcount[pages[j]] += np.int32(1)
            canonical[duplicates] = own
            duplicates += 1
    stop = full
    for j in range(present, pages.size):
        if refcount[pages[j]] != 1:
            stop = lockable(pool, tables, prefix, row, depth, depth + present, full, end)
            break
    if stop > depth + present:
        link_new(pool, prefix, last, pages[: stop - depth], present)
        hash_link(prefix, np.int64(pages[present]))
    return present, stop, pool_release(pool, canonical[:duplicates])


@helper
def row_commit(pool, tables, prefix, row):
    """Let the full pages of tokens that are known and computed enter the cache.

    Where the cache has such a page already, the row takes that one for its own. Returns how
    many pages that sets free.
    """
    if not has_prefix(prefix):
        return np.int64(0)
    locked, lock_end = tables_column(tables, LOCKED), tables_column(tables, LOCK_END)
    depth = locked[row]
    sure = min(tables_column(tables, KNOWN)[row], tables_column(tables, COMPUTED)[row])
    full = sure // tables[ROW_PAGE_SIZE]
    if full <= depth or is_cut(tables, row):
        return np.int64(0)
    _free_pages, refcount, _released = pool_views(pool)
    end = lock_end[row] if depth > 0 else -2 - tables_column(tables, NAMESPACE)[row]
    pages = tables_row(tables, row)
    present, stop, released = np.int64(0), full, np.int64(0)
    grown = full == depth + 1 and grow_node(pool, prefix, end, np.int64(pages[depth]))
    if not grown:
        present, stop, released = row_adopt(pool, tables, prefix, row, depth, full, end)
        if stop == depth:
            return np.int64(0)
    last, new = np.int64(pages[stop - 1]), stop - depth - present
    refresh(prefix, last, new, prefix[DEFAULT], np.int64(NEVER), pool[STEP])
    if not grown:
        path_lock(prefix, last, end, UNUSED)
        path_join(prefix, last)  # else each page that a sequence fills would stay its own node
    locked[row] = stop
    lock_end[row] = last
    for j in range(depth + present, stop):
        if refcount[pages[j]] > 2:  # the sequence and the cache are two owners
            lock_sharers(tables, prefix, row, depth, stop, end)
            break
    return released


@helper
def row_compute(pool, tables, prefix, row, num_tokens):
    """Book that the first `num_tokens` tokens of `row`, or all where it is below 0, are computed.

    What is full of them and known enters the cache.
    """
    computed, length = tables_column(tables, COMPUTED), tables_column(tables, LENGTH)
    computed[row] = max(computed[row], length[row] if num_tokens < 0 else num_tokens)
    row_commit(pool, tables, prefix, row)


@helper
def row_cached(tables, row):
    """Return how many tokens of `row` stand in the cache."""
    cached, size = tables_column(tables, LOCKED)[row], tables[ROW_PAGE_SIZE]
    if is_cut(tables, row):  # what the window left of the path
        cached = min(cached, tables_column(tables, KNOWN)[row] // size)
    return min(cached * size, tables_column(tables, LENGTH)[row])


@helper
def commit_rows(pool, tables, prefix, rows):
    """Let what the sequences of a batch leave enter the cache; return how many pages go free."""
    released = np.int64(0)
    for i in range(rows.size):
        released += row_commit(pool, tables, prefix, np.int64(rows[i]))
    return released
