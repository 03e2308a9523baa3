"""Loops of the prefix cache: match, insert, release, pin."""

from __future__ import annotations

import numpy as np

from jitalloc._jit import helper, kernel, try_lock, unlock
from jitalloc.errors import (
    BUSY,
    NEGATIVE,
    NOT_LOCKED,
    OVER_PIN_BUDGET,
    PAGE_CACHED,
    PAGE_FREE,
    REFCOUNT_OVERFLOW,
    RENAMED,
)
from jitalloc.kernels.owners import page_fault
from jitalloc.kernels.paths import (
    demote,
    path_lock,
    path_pin,
    path_raise,
    path_touch,
    path_unlock,
    path_use,
    split_after,
)
from jitalloc.kernels.pool import fail, pool_views
from jitalloc.kernels.queues import expire
from jitalloc.kernels.runs import (
    child_link,
    hash_link,
    next_pages,
    prev_pages,
    run_expiries,
    run_of,
    run_records,
    token_column,
)
from jitalloc.kernels.search import descend, find, find_partial
from jitalloc.prefix_state import (
    BY_FIFO,
    BY_PRIORITY,
    CACHED,
    EPOCH,
    HELD_LOCK,
    HELD_NOT,
    HELD_PIN,
    HIT_PAGES,
    INSERTED,
    LOOKUPS,
    MATCH_END,
    MATCH_EPOCH,
    MATCH_FIELDS,
    MATCH_HELD,
    MATCH_PAGES,
    MOST_PINS,
    NEVER,
    PAGES_ASKED,
    PIN_BUDGET,
    PINNED,
    PINS_SHIFT,
    POLICY,
    ROW,
    RUN_CHILD,
    RUN_END,
    RUN_LENGTH,
    RUN_LOCKS,
    RUN_STATE,
    TOKENS_ASKED,
    UNCACHED,
)
from jitalloc.state import FIRST_PAGE, INT32_MAX, NUM_PAGES, STEP


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
                return fail(NEGATIVE, start + j)
    return np.int64(0)


@helper
def write_match(prefix, record, held, count, end):
    """Fill the record of a match, which the kernel of its release reads."""
    record[MATCH_HELD] = held
    record[MATCH_PAGES] = count
    record[MATCH_END] = end
    record[MATCH_EPOCH] = prefix[EPOCH]


@helper
def match_one(prefix, root, tokens, record, out):
    """Find and lock the longest cached prefix of `tokens`; return 0 or a status word."""
    count, end = find(prefix, root, tokens, out)
    status = negative_token(tokens, count * prefix[ROW])  # cached tokens are not negative
    if status < 0:
        return status
    path_lock(prefix, end, -1, 1)
    path_use(prefix, end)
    find_partial(prefix, root, end, tokens, count * prefix[ROW], record)
    write_match(prefix, record, HELD_LOCK, count, end)
    prefix[LOOKUPS] += 1
    prefix[TOKENS_ASKED] += tokens.size
    prefix[PAGES_ASKED] += tokens.size // prefix[ROW]
    prefix[HIT_PAGES] += count
    return np.int64(0)


@kernel("int64(int64[::1], int64[::1], int64, int32[:], int32[::1])")
def prefix_match_cpu(pool, prefix, root, tokens, record):
    if not try_lock(pool):
        return fail(BUSY, 0)
    tokens = np.ascontiguousarray(tokens)
    status = match_one(prefix, root, tokens, record, record[MATCH_FIELDS:])
    if status == 0:
        pool[STEP] += 1
    unlock(pool)
    return status


@kernel(
    "int64(int64[::1], int64[::1], int64[::1], int32[::1], int64[::1], int32[:, ::1], int32[::1])"
)
def prefix_match_batch_cpu(pool, prefix, roots, tokens, indptr, records, out):
    # `indptr` ascends within `tokens`. `out` has room for every whole page of each prompt.
    if not try_lock(pool):
        return fail(BUSY, 0)
    put = np.int64(0)
    status = negative_token(tokens, 0)
    if status == 0:
        for i in range(roots.size):
            prompt = tokens[indptr[i] : indptr[i + 1]]
            match_one(prefix, roots[i], prompt, records[i], out[put:])
            put += records[i, MATCH_PAGES]
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
def release_one(prefix, record):
    """Give back the locks of a match, and its pins where it has them."""
    end = np.int64(record[MATCH_END])
    if record[MATCH_HELD] == HELD_PIN:
        path_pin(prefix, end, -1)
    path_unlock(prefix, end, -1)
    if prefix[POLICY] != BY_FIFO:
        path_touch(prefix, end)
    demote(prefix)
    record[MATCH_HELD] = HELD_NOT


@kernel("int64(int64[::1], int64[::1], int32[:, ::1], int64)")
def prefix_release_cpu(pool, prefix, records, held):
    # `held`: what the records must hold, HELD_LOCK or HELD_PIN.
    if not try_lock(pool):
        return fail(BUSY, 0)
    for i in range(records.shape[0]):
        code = held_fault(prefix, records[i], held)
        if code != 0:
            unlock(pool)
            return fail(code, i)
    expire(prefix, pool[STEP])
    for i in range(records.shape[0]):
        release_one(prefix, records[i])
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
    if full or prefix[PINNED] + fresh > prefix[PIN_BUDGET]:
        return fail(OVER_PIN_BUDGET, fresh)
    return np.int64(0)


@kernel("int64(int64[::1], int64[::1], int64, int32[:], int32[::1])")
def prefix_pin_cpu(pool, prefix, root, tokens, record):
    if not try_lock(pool):
        return fail(BUSY, 0)
    tokens = np.ascontiguousarray(tokens)
    count, end = find(prefix, root, tokens, record[MATCH_FIELDS:])
    status = negative_token(tokens, count * prefix[ROW])
    if status == 0:
        status = pin_fault(prefix, end)
    if status == 0:
        path_lock(prefix, end, -1, 0)
        path_pin(prefix, end, 1)
        path_use(prefix, end)
        find_partial(prefix, root, end, tokens, count * prefix[ROW], record)
        write_match(prefix, record, HELD_PIN, count, end)
        pool[STEP] += 1
    unlock(pool)
    return status


@helper
def unlink_new(pool, prefix, pages, start, stop):
    """Take `pages[start:stop]`, which have just been linked, out again."""
    _free_pages, refcount, _released = pool_views(pool)
    nexts = next_pages(prefix)
    for i in range(start, stop):
        nexts[pages[i]] = UNCACHED
        refcount[pages[i]] -= np.int32(1)


@helper
def link_new(pool, prefix, end, pages, start):
    """Link `pages[start:]`, whose tokens stand in their rows, behind `end` as one new run.

    Each gets one owner more. Returns 0 or a status word, and then nothing has changed.
    """
    if start == pages.size:
        return np.int64(0)
    _free_pages, refcount, _released = pool_views(pool)
    nexts, prevs, runs = next_pages(prefix), prev_pages(prefix), run_records(prefix)
    run = np.int64(pages[start])
    before = end
    for i in range(start, pages.size):
        page = pages[i]
        code = 0
        if page < pool[FIRST_PAGE] or page >= pool[NUM_PAGES]:
            code = page_fault(pool, page)
        elif refcount[page] == 0:
            code = PAGE_FREE
        elif refcount[page] == INT32_MAX:
            code = REFCOUNT_OVERFLOW
        elif nexts[page] != UNCACHED:
            code = PAGE_CACHED
        if code != 0:
            unlink_new(pool, prefix, pages, start, i)
            return fail(code, i)
        refcount[page] += np.int32(1)
        prevs[page] = before
        nexts[page] = ~run
        if i > start:
            nexts[before] = page
        before = np.int64(page)
    runs[run, RUN_END] = before
    runs[run, RUN_LENGTH] = pages.size - start
    runs[run, RUN_CHILD] = -1
    runs[run, RUN_LOCKS] = 0
    runs[run, RUN_STATE] = 0
    if prefix[POLICY] == BY_PRIORITY:
        run_expiries(prefix)[run] = -1  # below every expiry: `path_raise` gives it its first
    child_link(prefix, run)
    prefix[CACHED] += pages.size - start
    prefix[INSERTED] += pages.size - start
    return np.int64(0)


@helper
def refresh(prefix, end, new, priority, expiry, now):
    """What every insertion ends with: the whole path is used, raised and touched.

    `new`: how many of its pages are new; `now`: the pool's step at the start of the call.
    """
    expire(prefix, now)
    path_use(prefix, end)
    if prefix[POLICY] == BY_PRIORITY:
        path_raise(prefix, end, priority, expiry)
    if new > 0 or prefix[POLICY] != BY_FIFO:
        path_touch(prefix, end)
    demote(prefix)


@helper
def adopt(pool, prefix, end, pages, out):
    """Insert `pages`, whose tokens stand in their rows, behind `end`; nothing is touched.

    `end` is a cached page or a root. Writes the canonical pages into `out` (which may be `pages`
    itself). Returns how many were present already, or a status word, and then nothing has
    changed. The path is in order again only after `refresh`.
    """
    split_after(prefix, end)
    present, last = descend(prefix, end, token_column(prefix), pages, pages.size, out)
    status = link_new(pool, prefix, last, pages, present)
    if status < 0:
        return status
    if present < pages.size:
        hash_link(prefix, np.int64(pages[present]))
    for i in range(present, pages.size):
        out[i] = pages[i]
    return present


@helper
def expiry_at(now, lifetime):
    """Return the step at which a priority ends that begins `now`; negative lifetime: never."""
    return NEVER if lifetime < 0 else now + lifetime


@kernel("int64(int64[::1], int64[::1], int64, int32[:], int32[:], int32[::1], int64, int64)")
def prefix_insert_cpu(pool, prefix, root, tokens, pages, out, priority, lifetime):
    # `pages` and `out` have one element for each whole page of `tokens`.
    if not try_lock(pool):
        return fail(BUSY, 0)
    tokens, pages = np.ascontiguousarray(tokens), np.ascontiguousarray(pages)
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
