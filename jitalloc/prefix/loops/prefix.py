"""Loops of the prefix cache: match, insert, release, pin.

A kernel holds the lock of the pool while it works, and answers BUSY where somebody else does.
"""

from __future__ import annotations

import numpy as np

from jitalloc._intrinsics import fail, try_lock, unlock
from jitalloc._jit import helper, kernel
from jitalloc.errors import BUSY, NEGATIVE_TOKEN, NOT_LOCKED, OVER_PIN_BUDGET, RENAMED
from jitalloc.pool.state import STEP
from jitalloc.prefix.loops.children import hash_link
from jitalloc.prefix.loops.insertion import expiry_at, link_new, refresh
from jitalloc.prefix.loops.nodes import node_of, node_records, previous_column, token_column
from jitalloc.prefix.loops.paths import (
    NO_PAGE,
    UNUSED,
    USED,
    path_lock,
    path_pin,
    path_release,
    path_use,
)
from jitalloc.prefix.loops.search import find, find_partial, peek, peek_partial
from jitalloc.prefix.state import (
    EPOCH,
    HELD_LOCK,
    HELD_NOT,
    HELD_PIN,
    HIT_PAGES,
    LOOKUPS,
    MATCH_END,
    MATCH_EPOCH,
    MATCH_FIELDS,
    MATCH_HELD,
    MATCH_PAGES,
    MOST_PINS,
    NODE_LENGTH,
    NODE_STATE,
    NUM_PINNED,
    PAGES_ASKED,
    PIN_BUDGET,
    PINS_SHIFT,
    PREFIX_PAGE_SIZE,
    TOKENS_ASKED,
)


@helper
def negative_token(tokens, start):
    """Return the status word of the first negative token from `start` on, or 0."""
    signs = np.int32(0)
    rest = tokens[start:]
    for j in range(np.uint64(rest.size)):
        signs |= rest[j]
    if signs < 0:
        for j in range(rest.size):
            if rest[j] < 0:
                return fail(NEGATIVE_TOKEN, start + j)
    return np.int64(0)


@helper
def write_match(prefix, record, held, count, end):
    """Fill the record of a match, which the kernel of its release reads."""
    record[MATCH_HELD] = held
    record[MATCH_PAGES] = count
    record[MATCH_END] = end
    record[MATCH_EPOCH] = prefix[EPOCH]


@helper
def count_lookup(prefix, end, tokens, count):
    """Book a look-up of `tokens` that found the `count` pages up to `end`."""
    path_use(prefix, end)
    prefix[LOOKUPS] += 1
    prefix[TOKENS_ASKED] += tokens.size
    prefix[PAGES_ASKED] += tokens.size // prefix[PREFIX_PAGE_SIZE]
    prefix[HIT_PAGES] += count


@helper
def match_one(prefix, root, tokens, most, record, out):
    """Find and lock the longest cached prefix of `tokens[:most]`; return 0 or a status word."""
    capped = tokens[:most]
    count, end = find(prefix, root, capped, out)
    # Cached tokens are not negative.
    status = negative_token(tokens, count * prefix[PREFIX_PAGE_SIZE])
    if status < 0:
        return status
    path_lock(prefix, end, NO_PAGE, USED)
    count_lookup(prefix, end, tokens, count)
    find_partial(prefix, root, end, capped, count * prefix[PREFIX_PAGE_SIZE], record)
    write_match(prefix, record, HELD_LOCK, count, end)
    return np.int64(0)


@kernel("int64(int64[::1], int64[::1], int64, int32[::1], int32[::1])")
def prefix_match_cpu(pool, prefix, root, tokens, record):
    """Mutates the prefix cache (locks, uses, counters, where nodes end), the pool's step, `record`.
    Reads `tokens`, requires a `root` (`-2 - namespace`) and `record` to have MATCH_FIELDS elements
    and one more for each whole page of `tokens`: there the pages go. Fails at a negative token.
    """
    if not try_lock(pool):
        return fail(BUSY, 0)
    most = np.int64(tokens.size)
    status = match_one(prefix, root, tokens, most, record, record[MATCH_FIELDS:])
    if status == 0:
        pool[STEP] += 1
    unlock(pool)
    return status


@kernel(
    "int64(int64[::1], int64[::1], int64[::1], int32[::1], int64[::1], int64[::1], int32[::1],"
    " int32[::1])"
)
def prefix_match_batch_cpu(pool, prefix, roots, tokens, indptr, most, records, out):
    """Mutates the prefix cache as so many matches do, the pool's step, `records`, and `out`.
    Reads `tokens`, `indptr` and `most`, requires that `indptr` ascends within `tokens` and has one
    element more than `roots` and `most`, MATCH_FIELDS of `records` a prompt, and room in `out` for
    all whole pages.
    """
    if not try_lock(pool):
        return fail(BUSY, 0)
    put = np.int64(0)
    status = negative_token(tokens, np.int64(0))
    if status == 0:
        for i in range(roots.size):
            prompt = tokens[indptr[i] : indptr[i + 1]]
            record = records[i * MATCH_FIELDS :]
            match_one(prefix, roots[i], prompt, most[i], record, out[put:])
            put += record[MATCH_PAGES]
        status = put
        pool[STEP] += 1
    unlock(pool)
    return status


@kernel("int64(int64[::1], int64[::1], int64, int32[::1], int32[::1])")
def prefix_lookup_cpu(pool, prefix, root, tokens, record):
    """Mutates `record` alone: the partial page, and the pages of the longest cached prefix.
    Reads `tokens`, requires what `prefix_match_cpu` does; returns how many pages are found.
    """
    if not try_lock(pool):
        return fail(BUSY, 0)
    count, end = peek(prefix, root, tokens, record[MATCH_FIELDS:])
    status = negative_token(tokens, count * prefix[PREFIX_PAGE_SIZE])
    if status == 0:
        peek_partial(prefix, root, end, tokens, count * prefix[PREFIX_PAGE_SIZE], record)
        status = count
    unlock(pool)
    return status


@kernel("int64(int64[::1], int64[::1], int64, int32[::1], int32[::1])")
def prefix_touch_cpu(pool, prefix, root, tokens, out):
    """Mutates the prefix cache (uses, queues, stamps, where nodes end), the pool's step, and `out`.
    Reads `tokens`, requires room in `out` for each whole page of them. Returns how many pages are
    found, which have been used now, as by a match that is released at once.
    """
    if not try_lock(pool):
        return fail(BUSY, 0)
    count, end = find(prefix, root, tokens, out)
    status = negative_token(tokens, count * prefix[PREFIX_PAGE_SIZE])
    if status == 0:
        path_lock(prefix, end, NO_PAGE, USED)
        path_use(prefix, end)
        path_release(prefix, end, pool[STEP])
        pool[STEP] += 1
        status = count
    unlock(pool)
    return status


@helper
def held_fault(prefix, record, held):
    """Return the code of why `record` cannot be given back as `held`, or 0."""
    if record[MATCH_HELD] != held:
        return NOT_LOCKED
    if record[MATCH_EPOCH] != prefix[EPOCH]:
        return RENAMED
    return 0


@helper
def release_one(prefix, record, now):
    """Give back the locks of a match, and its pins where it has them."""
    end = np.int64(record[MATCH_END])
    if record[MATCH_HELD] == HELD_PIN:
        path_pin(prefix, end, np.int64(-1))
    path_release(prefix, end, now)
    record[MATCH_HELD] = HELD_NOT


@kernel("int64(int64[::1], int64[::1], int32[::1], int64, int64)")
def prefix_release_cpu(pool, prefix, records, count, held):
    """Mutates the prefix cache (locks, pins, queues, stamps), the pool's step, and the records.
    Reads `count` records, requires `held` to be HELD_LOCK or HELD_PIN. Fails, and releases none,
    where one does not hold that, or pages were renamed since.
    """
    if not try_lock(pool):
        return fail(BUSY, 0)
    for i in range(count):
        code = held_fault(prefix, records[i * MATCH_FIELDS :], held)
        if code != 0:
            unlock(pool)
            return fail(code, i)
    for i in range(count):
        release_one(prefix, records[i * MATCH_FIELDS :], pool[STEP])
    pool[STEP] += 1
    unlock(pool)
    return np.int64(0)


@helper
def pin_fault(prefix, end):
    """Return the status word of why a path cannot be pinned, or 0; its detail: pages to pin."""
    nodes, previous_pages = node_records(prefix), previous_column(prefix)
    fresh = np.int64(0)
    full = False
    while end >= 0:
        node = node_of(prefix, end)
        pins = nodes[node, NODE_STATE] >> PINS_SHIFT
        if pins == 0:
            fresh += nodes[node, NODE_LENGTH]
        full = full or pins == MOST_PINS
        end = np.int64(previous_pages[node])
    if full or prefix[NUM_PINNED] + fresh > prefix[PIN_BUDGET]:
        return fail(OVER_PIN_BUDGET, fresh)
    return np.int64(0)


@kernel("int64(int64[::1], int64[::1], int64, int32[::1], int32[::1])")
def prefix_pin_cpu(pool, prefix, root, tokens, record):
    """Mutates the prefix cache (locks, pins, where nodes end), the pool's step, and `record`.
    Reads `tokens`, requires what `prefix_match_cpu` does. Fails past the pin budget.
    """
    if not try_lock(pool):
        return fail(BUSY, 0)
    count, end = find(prefix, root, tokens, record[MATCH_FIELDS:])
    status = negative_token(tokens, count * prefix[PREFIX_PAGE_SIZE])
    if status == 0:
        status = pin_fault(prefix, end)
    if status == 0:
        path_lock(prefix, end, NO_PAGE, UNUSED)
        path_pin(prefix, end, np.int64(1))
        path_use(prefix, end)
        find_partial(prefix, root, end, tokens, count * prefix[PREFIX_PAGE_SIZE], record)
        write_match(prefix, record, HELD_PIN, count, end)
        pool[STEP] += 1
    unlock(pool)
    return status


@kernel("int64(int64[::1], int64[::1], int64, int32[::1], int32[::1], int32[::1], int64, int64)")
def prefix_insert_cpu(pool, prefix, root, tokens, pages, out, priority, lifetime):
    """Mutates the prefix cache, refcounts and step of the pool, and `out`: the pages cached now.
    Reads `tokens` and `pages`, requires one element of `pages` and of `out` for each whole page of
    `tokens`. Fails where one of those that are new is free or cached already.
    """
    if not try_lock(pool):
        return fail(BUSY, 0)
    size, now = prefix[PREFIX_PAGE_SIZE], pool[STEP]
    # What is cached already, and whether the rest may enter.
    present, end = find(prefix, root, tokens, out)
    status = negative_token(tokens, present * size)
    if status == 0:
        status = link_new(pool, prefix, end, pages, present)
    if status == 0:
        # The tokens of the new pages, into their rows.
        column = token_column(prefix)
        for i in range(present, pages.size):
            page = np.int64(pages[i])
            row, source = column[page * size : (page + 1) * size], tokens[i * size :]
            for j in range(size):
                row[j] = source[j]
            out[i] = page
            end = page
        # The new node among the others, and the path in order.
        if present < pages.size:
            hash_link(prefix, np.int64(pages[present]))
        refresh(prefix, end, pages.size - present, priority, expiry_at(now, lifetime), now)
        pool[STEP] += 1
        status = present
    unlock(pool)
    return status
