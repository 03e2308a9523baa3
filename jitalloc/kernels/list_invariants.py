"""What must hold in the lists of a prefix cache: hash table, queues, wheel.

Shared by the loops of the prefix cache; `invariants.py` comes first.
"""

from __future__ import annotations

import numpy as np

from jitalloc._intrinsics import fail
from jitalloc._jit import helper
from jitalloc.errors import (
    BAD_BUCKET,
    BAD_PREFIX_COUNT,
    BAD_PREFIX_HEADER,
    BAD_QUEUE,
    BAD_WHEEL,
)
from jitalloc.kernels.children import bucket_column, page_hash
from jitalloc.kernels.invariants import count_fault, is_run, link_fault, runs_fault
from jitalloc.kernels.queues import queue_ends
from jitalloc.kernels.runs import (
    FIRST,
    LAST,
    prev_pages,
    run_class,
    run_expiries,
    run_records,
    run_stamps,
    token_column,
)
from jitalloc.kernels.wheel import is_armed, wheel_ends, wheel_links, wheel_list
from jitalloc.prefix_state import (
    BUCKET_MASK,
    BUCKETS_AT,
    BY_PRIORITY,
    CHAIN_NEXT,
    CHAIN_PREV,
    FILLED_AT,
    NEVER,
    PAGES,
    POLICY,
    QUEUE_NEXT,
    QUEUE_PREV,
    QUEUED,
    QUEUES,
    ROW,
    RUN_LENGTH,
    RUN_STATE,
    WHEEL_LISTS,
    WHEEL_NOW,
)


@helper
def bucket_fault(prefix, count):
    """Check the hash table, which must hold `count` runs; return 0 or the fault."""
    runs, prevs = run_records(prefix), prev_pages(prefix)
    buckets = bucket_column(prefix)
    for at in range(buckets.size):
        run, before = np.int64(buckets[at]), np.int64(~at)
        while run != -1:
            if count == 0 or not is_run(prefix, run):
                return fail(BAD_BUCKET, at)
            code = page_hash(prefix, np.int64(prevs[run]), token_column(prefix), run * prefix[ROW])
            if runs[run, CHAIN_PREV] != before or code & prefix[BUCKET_MASK] != at:
                return fail(BAD_BUCKET, at)
            count -= 1
            before = run
            run = np.int64(runs[run, CHAIN_NEXT])
    return np.int64(0) if count == 0 else fail(BAD_PREFIX_COUNT, BUCKETS_AT)


@helper
def queue_fault(prefix):
    """Check every queue; return 0 or the fault."""
    runs, ends, stamps = run_records(prefix), queue_ends(prefix), run_stamps(prefix)
    count = np.int64(0)
    for page in range(prefix[PAGES]):
        if is_run(prefix, np.int64(page)) and runs[page, RUN_STATE] & QUEUED != 0:
            count += 1
    for queue in range(QUEUES):
        run, before = np.int64(ends[FIRST, queue]), np.int64(-1)
        filled = (prefix[FILLED_AT + (queue >> 6)] >> (queue & 63)) & 1
        if (run != -1) != (filled == 1):
            return fail(BAD_QUEUE, max(run, np.int64(0)))
        while run != -1:
            if count == 0 or not is_run(prefix, run) or runs[run, RUN_STATE] & QUEUED == 0:
                return fail(BAD_QUEUE, max(run, np.int64(0)))
            if run_class(prefix, run) != queue or runs[run, QUEUE_PREV] != before:
                return fail(BAD_QUEUE, run)
            if before >= 0 and stamps[run] - runs[run, RUN_LENGTH] < stamps[before]:
                return fail(BAD_QUEUE, run)
            count -= 1
            before = run
            run = np.int64(runs[run, QUEUE_NEXT])
        if ends[LAST, queue] != before:
            return fail(BAD_QUEUE, max(before, np.int64(0)))
    return np.int64(0) if count == 0 else fail(BAD_PREFIX_COUNT, FILLED_AT)


@helper
def wheel_fault(prefix):
    """Check every list of the wheel; return 0 or the fault."""
    ends, links = wheel_ends(prefix), wheel_links(prefix)
    count = np.int64(0)
    if prefix[POLICY] == BY_PRIORITY:
        expiries = run_expiries(prefix)
        for page in range(prefix[PAGES]):
            if is_run(prefix, np.int64(page)):
                if expiries[page] < prefix[WHEEL_NOW] or expiries[page] > NEVER:
                    return fail(BAD_WHEEL, page)
                count += is_armed(prefix, np.int64(page))
    for at in range(WHEEL_LISTS):
        run, before = np.int64(ends[FIRST, at]), np.int64(-1)
        while run != -1:
            if count == 0 or not is_run(prefix, run) or not is_armed(prefix, run):
                return fail(BAD_WHEEL, max(run, np.int64(0)))
            if links[run, 0] != before or wheel_list(prefix, run_expiries(prefix)[run]) != at:
                return fail(BAD_WHEEL, run)
            count -= 1
            before = run
            run = np.int64(links[run, 1])
        if ends[LAST, at] != before:
            return fail(BAD_WHEEL, max(before, np.int64(0)))
    return np.int64(0) if count == 0 else fail(BAD_PREFIX_COUNT, WHEEL_NOW)


@helper
def prefix_fault(pool, prefix, seen):
    """Return the status word of the first broken invariant, or 0."""
    slot = count_fault(pool, prefix)
    if slot >= 0:
        return fail(BAD_PREFIX_HEADER, slot)
    status = link_fault(pool, prefix)
    if status == 0:
        status = runs_fault(prefix, seen)
    if status >= 0:
        status = bucket_fault(prefix, status)
    if status >= 0:
        status = queue_fault(prefix)
    if status >= 0:
        status = wheel_fault(prefix)
    return status
