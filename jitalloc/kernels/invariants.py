"""What must hold in a prefix cache, page by page and run by run.

Shared by the loops of the prefix cache. No field is believed before it has been looked at: a broken
one must neither lead out of an array nor round in a circle.
"""

from __future__ import annotations

import numpy as np

from jitalloc._intrinsics import bit, fail
from jitalloc._jit import helper
from jitalloc.errors import (
    BAD_CHILDREN,
    BAD_LINK,
    BAD_LOCKS,
    BAD_PREFIX_COUNT,
    BAD_PREFIX_HEADER,
    BAD_QUEUE,
    BAD_RUN,
    CACHED_FREE,
)
from jitalloc.kernels.pool import pool_views
from jitalloc.kernels.runs import (
    next_pages,
    prev_pages,
    run_class,
    run_records,
    run_stamps,
)
from jitalloc.prefix_state import (
    BY_LFU,
    BY_PRIORITY,
    BY_SLRU,
    CLOCK,
    EVICTED,
    HIT_PAGES,
    INSERTED,
    LOOKUPS,
    MOST_USES,
    NUM_CACHED,
    NUM_LOCKED,
    NUM_PINNED,
    NUM_PROTECTED,
    PAGES,
    PAGES_ASKED,
    PINS_SHIFT,
    POLICY,
    QUEUE_NEXT,
    QUEUE_PREV,
    QUEUED,
    ROW,
    RUN_CHILD,
    RUN_END,
    RUN_LENGTH,
    RUN_LOCKS,
    RUN_STATE,
    SIBLING_NEXT,
    SIBLING_PREV,
    TOKENS_ASKED,
    TOP,
    UNCACHED,
    USES_SHIFT,
    WHEEL_NOW,
)
from jitalloc.state import FIRST_PAGE, STEP


@helper
def is_run(prefix, page):
    """Return whether `page`, any number, is the first page of a run."""
    nexts, prevs = next_pages(prefix), prev_pages(prefix)
    if page < 0 or page >= prefix[PAGES] or nexts[page] == UNCACHED:
        return False
    end = np.int64(prevs[page])
    return end < -1 or (0 <= end < prefix[PAGES] and UNCACHED < nexts[end] < 0)


@helper
def count_fault(pool, prefix):
    """Return the first header slot that is out of its range, or -1."""
    for slot in (CLOCK, LOOKUPS, TOKENS_ASKED, PAGES_ASKED, HIT_PAGES, WHEEL_NOW):
        if prefix[slot] < 0:
            return slot
    gone = np.int64(0)
    for reason in range(3):
        if prefix[EVICTED + reason] < 0:
            return EVICTED + reason
        gone += prefix[EVICTED + reason]
    if prefix[INSERTED] - gone != prefix[NUM_CACHED]:
        return INSERTED
    if prefix[HIT_PAGES] > prefix[PAGES_ASKED]:
        return HIT_PAGES
    if prefix[PAGES_ASKED] > prefix[TOKENS_ASKED] // prefix[ROW]:
        return PAGES_ASKED
    if prefix[WHEEL_NOW] > (pool[STEP] if prefix[POLICY] == BY_PRIORITY else 0):
        return WHEEL_NOW
    if prefix[TOP] < -1 or prefix[TOP] >= prefix[PAGES]:
        return TOP
    return -1


@helper
def link_fault(pool, prefix):
    """Return the status word of the first page whose links contradict others, or 0."""
    _free_pages, refcount, _released = pool_views(pool)
    nexts, prevs = next_pages(prefix), prev_pages(prefix)
    n = prefix[PAGES]
    for page in range(n):
        behind, before = np.int64(nexts[page]), np.int64(prevs[page])
        if behind == UNCACHED:
            continue
        if page < pool[FIRST_PAGE] or refcount[page] < 1:
            return fail(CACHED_FREE, page)
        if behind >= n or ~behind >= n or before >= n or before == -1:
            return fail(BAD_LINK, page)
        if behind >= 0 and (nexts[behind] == UNCACHED or prevs[behind] != page):
            return fail(BAD_LINK, page)
        if before >= 0 and (nexts[before] == UNCACHED or 0 <= nexts[before] != page):
            return fail(BAD_LINK, page)
    return np.int64(0)


@helper
def run_fault(prefix, run, seen):
    """Mark the pages of `run` in `seen`; return the status word of the first fault, or 0."""
    runs, nexts = run_records(prefix), next_pages(prefix)
    length, state = np.int64(runs[run, RUN_LENGTH]), runs[run, RUN_STATE]
    if length < 1 or length > prefix[PAGES] or state < 0:
        return fail(BAD_RUN, run)
    page = run
    for i in range(length):
        if seen[page >> 6] & bit(page) != np.uint64(0):
            return fail(BAD_LINK, page)
        seen[page >> 6] |= bit(page)
        last = page
        page = np.int64(nexts[page])
        if (page < 0) != (i == length - 1):
            return fail(BAD_RUN, run)
    if page != ~run or runs[run, RUN_END] != last:
        return fail(BAD_RUN, run)
    stamp = run_stamps(prefix)[run]
    uses, kind = (state >> USES_SHIFT) & MOST_USES, state & 255
    if stamp < length or stamp > prefix[CLOCK]:
        return fail(BAD_RUN, run)
    if prefix[POLICY] == BY_LFU or prefix[POLICY] == BY_SLRU:
        if kind > uses or (prefix[POLICY] == BY_SLRU and kind > 1):
            return fail(BAD_RUN, run)
    elif prefix[POLICY] != BY_PRIORITY and kind != 0:
        return fail(BAD_RUN, run)
    if runs[run, RUN_LOCKS] < state >> PINS_SHIFT:
        return fail(BAD_LOCKS, run)
    if state & QUEUED == 0:
        if runs[run, RUN_LOCKS] == 0 and runs[run, RUN_CHILD] < 0:
            return fail(BAD_QUEUE, run)
        if runs[run, QUEUE_NEXT] != -1 or runs[run, QUEUE_PREV] != -1:
            return fail(BAD_QUEUE, run)
    return np.int64(0)


@helper
def children_fault(prefix, run, left):
    """Walk the runs behind `run` (-1: the roots), at most `left`.

    Returns how many there are, or the status word of the first fault.
    """
    runs, prevs = run_records(prefix), prev_pages(prefix)
    child = np.int64(runs[run, RUN_CHILD]) if run >= 0 else prefix[TOP]
    before = np.int64(-1)
    count, locks, pins = np.int64(0), np.int64(0), np.int64(0)
    while child != -1:
        if count == left or not is_run(prefix, child) or runs[child, SIBLING_PREV] != before:
            return fail(BAD_CHILDREN, max(run, np.int64(0)))
        if prevs[child] >= 0 if run < 0 else prevs[child] != runs[run, RUN_END]:
            return fail(BAD_CHILDREN, max(run, np.int64(0)))
        count += 1
        locks += runs[child, RUN_LOCKS]
        pins += runs[child, RUN_STATE] >> PINS_SHIFT
        before = child
        child = np.int64(runs[child, SIBLING_NEXT])
    if run >= 0 and (locks > runs[run, RUN_LOCKS] or pins > runs[run, RUN_STATE] >> PINS_SHIFT):
        return fail(BAD_LOCKS, run)
    return count


@helper
def runs_fault(prefix, seen):
    """Check every run and the counts of pages; return how many runs there are, or the fault."""
    runs = run_records(prefix)
    count, children = np.int64(0), np.int64(0)
    cached, locked, pinned, protected = np.int64(0), np.int64(0), np.int64(0), np.int64(0)
    for page in range(prefix[PAGES]):
        run = np.int64(page)
        if not is_run(prefix, run):
            continue
        status = run_fault(prefix, run, seen)
        if status < 0:
            return status
        count += 1
        cached += runs[run, RUN_LENGTH]
        if runs[run, RUN_STATE] >> PINS_SHIFT > 0:
            pinned += runs[run, RUN_LENGTH]
        if runs[run, RUN_LOCKS] > 0:
            locked += runs[run, RUN_LENGTH]
        elif prefix[POLICY] == BY_SLRU:
            protected += run_class(prefix, run) * runs[run, RUN_LENGTH]
    for page in range(-1, prefix[PAGES]):
        run = np.int64(page)
        if run < 0 or is_run(prefix, run):
            found = children_fault(prefix, run, count - children)
            if found < 0:
                return found
            children += found
    if children != count:
        return fail(BAD_PREFIX_COUNT, NUM_CACHED)
    for slot, right in ((NUM_CACHED, cached), (NUM_LOCKED, locked), (NUM_PINNED, pinned)):
        if prefix[slot] != right:
            return fail(BAD_PREFIX_HEADER, slot)
    if prefix[NUM_PROTECTED] != protected:
        return fail(BAD_PREFIX_HEADER, NUM_PROTECTED)
    nexts = next_pages(prefix)
    for page in range(prefix[PAGES]):
        if nexts[page] != UNCACHED:
            cached -= 1
    return count if cached == 0 else fail(BAD_PREFIX_COUNT, NUM_CACHED)
