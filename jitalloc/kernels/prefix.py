"""Loops of the prefix cache: match, insert, release, pin."""

from __future__ import annotations

import numpy as np

from jitalloc._intrinsics import fail, try_lock, unlock
from jitalloc._jit import helper, kernel
from jitalloc.errors import BUSY, NEGATIVE_TOKEN, NOT_LOCKED, OVER_PIN_BUDGET, RENAMED
from jitalloc.kernels.children import hash_link
from jitalloc.kernels.insertion import expiry_at, link_new, refresh
from jitalloc.kernels.paths import (
    NO_PAGE,
    UNUSED,
    USED,
    path_lock,
    path_pin,
    path_release,
    path_use,
)
from jitalloc.kernels.runs import prev_pages, run_of, run_records, token_column
from jitalloc.kernels.search import find, find_partial
from jitalloc.prefix_state import (
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
    NUM_PINNED,
    PAGES_ASKED,
    PIN_BUDGET,
    PINS_SHIFT,
    ROW,
    RUN_LENGTH,
    RUN_STATE,
    TOKENS_ASKED,
)
from jitalloc.state import STEP


@kernel("int64(int64[::1], int64)")
def prefix_advance_cpu(pool, steps):
    # For a pool of another device, whose calls the clock of the host follows.
    if not try_lock(pool):
        return fail(BUSY, 0)
    pool[STEP] += steps
    unlock(pool)
    return np.int64(0)


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
    prefix[PAGES_ASKED] += tokens.size // prefix[ROW]
    prefix[HIT_PAGES] += count


@helper
def match_one(prefix, root, tokens, record, out):
    """Find and lock the longest cached prefix of `tokens`; return 0 or a status word."""
    count, end = find(prefix, root, tokens, out)
    status = negative_token(tokens, count * prefix[ROW])  # cached tokens are not negative
    if status < 0:
        return status
    path_lock(prefix, end, NO_PAGE, USED)
    count_lookup(prefix, end, tokens, count)
    find_partial(prefix, root, end, tokens, count * prefix[ROW], record)
    write_match(prefix, record, HELD_LOCK, count, end)
    return np.int64(0)


@kernel("int64(int64[::1], int64[::1], int64, int32[::1], int32[::1])")
def prefix_match_cpu(pool, prefix, root, tokens, record):
    if not try_lock(pool):
        return fail(BUSY, 0)
    status = match_one(prefix, root, tokens, record, record[MATCH_FIELDS:])
    if status == 0:
        pool[STEP] += 1
    unlock(pool)
    return status


@kernel("int64(int64[::1], int64[::1], int64[::1], int32[::1], int64[::1], int32[::1], int32[::1])")
def prefix_match_batch_cpu(pool, prefix, roots, tokens, indptr, records, out):
    # `indptr` ascends within `tokens`. `out` has room for every whole page of each prompt.
    if not try_lock(pool):
        return fail(BUSY, 0)
    put = np.int64(0)
    status = negative_token(tokens, np.int64(0))
    if status == 0:
        for i in range(roots.size):
            prompt = tokens[indptr[i] : indptr[i + 1]]
            record = records[i * MATCH_FIELDS :]
            match_one(prefix, roots[i], prompt, record, out[put:])
            put += record[MATCH_PAGES]
        status = put
        pool[STEP] += 1
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
    # `held`: what the records, `count` of them, must hold: HELD_LOCK or HELD_PIN.
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
    runs, prevs = run_records(prefix), prev_pages(prefix)
    fresh = np.int64(0)
    full = False
    while end >= 0:
        run = run_of(prefix, end)
        pins = runs[run, RUN_STATE] >> PINS_SHIFT
        if pins == 0:
            fresh += runs[run, RUN_LENGTH]
        full = full or pins == MOST_PINS
        end = np.int64(prevs[run])
    if full or prefix[NUM_PINNED] + fresh > prefix[PIN_BUDGET]:
        return fail(OVER_PIN_BUDGET, fresh)
    return np.int64(0)


@kernel("int64(int64[::1], int64[::1], int64, int32[::1], int32[::1])")
def prefix_pin_cpu(pool, prefix, root, tokens, record):
    if not try_lock(pool):
        return fail(BUSY, 0)
    count, end = find(prefix, root, tokens, record[MATCH_FIELDS:])
    status = negative_token(tokens, count * prefix[ROW])
    if status == 0:
        status = pin_fault(prefix, end)
    if status == 0:
        path_lock(prefix, end, NO_PAGE, UNUSED)
        path_pin(prefix, end, np.int64(1))
        path_use(prefix, end)
        find_partial(prefix, root, end, tokens, count * prefix[ROW], record)
        write_match(prefix, record, HELD_PIN, count, end)
        pool[STEP] += 1
    unlock(pool)
    return status


@kernel("int64(int64[::1], int64[::1], int64, int32[::1], int32[::1], int32[::1], int64, int64)")
def prefix_insert_cpu(pool, prefix, root, tokens, pages, out, priority, lifetime):
    # `pages` and `out` have one element for each whole page of `tokens`.
    if not try_lock(pool):
        return fail(BUSY, 0)
    size, now = prefix[ROW], pool[STEP]
    present, end = find(prefix, root, tokens, out)
    status = negative_token(tokens, present * size)
    if status == 0:
        status = link_new(pool, prefix, end, pages, present)
    if status == 0:
        column = token_column(prefix)
        for i in range(present, pages.size):
            page = np.int64(pages[i])
            row, source = column[page * size : (page + 1) * size], tokens[i * size :]
            for j in range(size):
                row[j] = source[j]
            out[i] = page
            end = page
        if present < pages.size:
            hash_link(prefix, np.int64(pages[present]))
        refresh(prefix, end, pages.size - present, priority, expiry_at(now, lifetime), now)
        pool[STEP] += 1
        status = present
    unlock(pool)
    return status
