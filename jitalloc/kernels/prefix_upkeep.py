"""Loops over a whole prefix cache: check, rename, resize, copy, unlock."""

from __future__ import annotations

import numpy as np

from jitalloc._intrinsics import fail, try_lock, unlock
from jitalloc._jit import helper, kernel
from jitalloc.errors import (
    BUSY,
)
from jitalloc.kernels.children import bucket_column, hash_link
from jitalloc.kernels.invariants import is_run
from jitalloc.kernels.list_invariants import prefix_fault
from jitalloc.kernels.paths import demote
from jitalloc.kernels.queues import put_in_order, queue_ends
from jitalloc.kernels.runs import (
    next_pages,
    prev_pages,
    run_class,
    run_expiries,
    run_records,
    run_stamps,
    token_column,
)
from jitalloc.kernels.wheel import wheel_ends, wheel_links
from jitalloc.prefix_state import (
    BY_PRIORITY,
    BY_SLRU,
    COLUMNS_AT,
    FILLED_AT,
    HASH_MASK,
    NUM_LOCKED,
    NUM_PINNED,
    NUM_PROTECTED,
    PAGES,
    PINS_SHIFT,
    POLICY,
    QUEUE_NEXT,
    QUEUE_PREV,
    ROW,
    RUN_CHILD,
    RUN_END,
    RUN_FIELDS,
    RUN_LENGTH,
    RUN_LOCKS,
    RUN_STATE,
    SIBLING_NEXT,
    SIBLING_PREV,
    STAMPS_AT,
    TOP,
    UNCACHED,
)


@kernel("int64(int64[::1], int64[::1], uint64[::1])")
def prefix_upkeep_check_cpu(pool, prefix, seen):
    # `seen`: a bit a page, all zero.
    if not try_lock(pool):
        return fail(BUSY, 0)
    status = prefix_fault(pool, prefix, seen)
    unlock(pool)
    return status


@kernel("int64(int64[::1], int64[::1], int64[::1])")
def prefix_upkeep_copy_cpu(pool, prefix, out):
    if not try_lock(pool):
        return fail(BUSY, 0)
    for i in range(prefix.size):
        out[i] = prefix[i]
    unlock(pool)
    return np.int64(0)


@kernel("int64(int64[::1], int64[::1], int32[::1])")
def prefix_upkeep_roots_cpu(pool, prefix, out):
    if not try_lock(pool):
        return fail(BUSY, 0)
    runs, prevs = run_records(prefix), prev_pages(prefix)
    count = np.int64(0)
    run = prefix[TOP]
    while run >= 0:
        out[count] = prevs[run]
        count += 1
        run = np.int64(runs[run, SIBLING_NEXT])
    unlock(pool)
    return count


@helper
def rehash(prefix):
    """Build the hash table anew."""
    buckets = bucket_column(prefix)
    for at in range(buckets.size):
        buckets[at] = -1
    for page in range(prefix[PAGES]):
        if is_run(prefix, np.int64(page)):
            hash_link(prefix, np.int64(page))


@helper
def copy_row(source, page, out, to):
    """Copy what stands in the columns of `source` for `page` to `to` in `out`."""
    next_pages(out)[to] = next_pages(source)[page]
    prev_pages(out)[to] = prev_pages(source)[page]
    run_stamps(out)[to] = run_stamps(source)[page]
    for field in range(RUN_FIELDS):
        run_records(out)[to, field] = run_records(source)[page, field]
    if source[POLICY] == BY_PRIORITY:
        run_expiries(out)[to] = run_expiries(source)[page]
        for side in range(2):
            wheel_links(out)[to, side] = wheel_links(source)[page, side]
    size = source[ROW]
    mine, theirs = token_column(source), token_column(out)
    for j in range(size):
        theirs[to * size + j] = mine[page * size + j]


@helper
def rename_all(pages, names):
    """Rename the pages in a row of links, where they are pages."""
    for i in range(pages.size):
        if pages[i] >= 0:
            pages[i] = names[pages[i]]


@kernel("int64(int64[::1], int32[::1], int32[::1], int32[::1])")
def prefix_upkeep_rename_cpu(prefix, names, src, dst):
    # The caller is inside the pool. `names[p]` is the new id of page `p`; the pages `dst` are free.
    runs, nexts, prevs = run_records(prefix), next_pages(prefix), prev_pages(prefix)
    for page in range(prefix[PAGES]):
        if is_run(prefix, np.int64(page)):
            for field in (RUN_END, RUN_CHILD, SIBLING_NEXT, SIBLING_PREV, QUEUE_NEXT, QUEUE_PREV):
                if runs[page, field] >= 0:
                    runs[page, field] = names[runs[page, field]]
            if prefix[POLICY] == BY_PRIORITY:
                rename_all(wheel_links(prefix)[page], names)
    for side in range(2):
        rename_all(queue_ends(prefix)[side], names)
        rename_all(wheel_ends(prefix)[side], names)
    if prefix[TOP] >= 0:
        prefix[TOP] = names[prefix[TOP]]
    for page in range(prefix[PAGES]):
        behind = nexts[page]
        if behind >= 0:
            nexts[page] = names[behind]
        elif behind != UNCACHED:
            nexts[page] = ~names[~behind]
        if behind != UNCACHED and prevs[page] >= 0:
            prevs[page] = names[prevs[page]]
    for i in range(src.size):
        copy_row(prefix, np.int64(src[i]), prefix, np.int64(dst[i]))
        nexts[src[i]] = UNCACHED
    rehash(prefix)
    return np.int64(0)


@kernel("int64(int64[::1], int64[::1])")
def prefix_upkeep_resize_cpu(prefix, new):
    # The caller is inside the pool. `new` is the slab of an empty cache of the new size, with its
    # options; whatever it counts or lists is taken over. No page past its end is cached.
    for slot in range(HASH_MASK, STAMPS_AT):
        new[slot] = prefix[slot]
    for word in range(FILLED_AT, COLUMNS_AT):
        new[word] = prefix[word]
    for page in range(min(prefix[PAGES], new[PAGES])):
        copy_row(prefix, np.int64(page), new, np.int64(page))
    rehash(new)
    return np.int64(0)


@kernel("int64(int64[::1], int64)")
def prefix_upkeep_unlock_cpu(prefix, alone):
    # Takes every lock and pin away; for a slab that nobody else has yet. What was parked for a
    # lock is queued again, children or not: `demote` finds there what is protected. It waits
    # for the locks of sequences, where there will be some (`alone` is 0).
    runs = run_records(prefix)
    prefix[NUM_LOCKED] = 0
    prefix[NUM_PINNED] = 0
    prefix[NUM_PROTECTED] = 0
    for run in range(prefix[PAGES]):
        if is_run(prefix, run):
            runs[run, RUN_LOCKS] = 0
            runs[run, RUN_STATE] &= (1 << PINS_SHIFT) - 1
            prefix[NUM_PROTECTED] += run_class(prefix, run) * runs[run, RUN_LENGTH]
    if prefix[POLICY] != BY_SLRU:
        prefix[NUM_PROTECTED] = 0
    for run in range(prefix[PAGES]):
        if is_run(prefix, run):
            put_in_order(prefix, np.int64(run))
    if alone != 0:
        demote(prefix)
    return np.int64(0)
