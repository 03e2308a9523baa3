"""Where runs are split and joined, which shows in no result.

Shared by the loops of the prefix cache.
"""

from __future__ import annotations

import numpy as np

from jitalloc._jit import helper
from jitalloc.kernels.children import hash_link, hash_unlink
from jitalloc.kernels.expiries import expiry_link, expiry_links, expiry_unlink, is_armed
from jitalloc.kernels.nodes import next_pages, run_expiries, run_of, run_records, run_stamps
from jitalloc.kernels.queues import queue_link, queue_unlink
from jitalloc.prefix_state import (
    BY_PRIORITY,
    POLICY,
    QUEUE_NEXT,
    QUEUE_PREV,
    QUEUED,
    RUN_CHILD,
    RUN_END,
    RUN_LENGTH,
    RUN_LOCKS,
    RUN_STATE,
    SIBLING_NEXT,
    SIBLING_PREV,
)


@helper
def split_run(prefix, run, end, kept):
    """Split `run` behind its page `end`, the `kept`-th of it."""
    runs, nexts, stamps = run_records(prefix), next_pages(prefix), run_stamps(prefix)
    tail, last = np.int64(nexts[end]), np.int64(runs[run, RUN_END])
    runs[tail, RUN_END] = last
    runs[tail, RUN_LENGTH] = runs[run, RUN_LENGTH] - kept
    runs[tail, RUN_CHILD] = runs[run, RUN_CHILD]
    runs[tail, SIBLING_NEXT] = -1
    runs[tail, SIBLING_PREV] = -1
    runs[tail, RUN_LOCKS] = runs[run, RUN_LOCKS]
    runs[tail, RUN_STATE] = runs[run, RUN_STATE] & ~QUEUED
    runs[tail, QUEUE_NEXT] = -1
    runs[tail, QUEUE_PREV] = -1
    stamps[tail] = stamps[run] - kept
    nexts[last] = ~tail
    nexts[end] = ~run
    runs[run, RUN_END] = end
    runs[run, RUN_LENGTH] = kept
    runs[run, RUN_CHILD] = tail
    hash_link(prefix, tail)
    if runs[run, RUN_STATE] & QUEUED != 0:
        queue_link(prefix, tail, run)
    if prefix[POLICY] == BY_PRIORITY:
        run_expiries(prefix)[tail] = run_expiries(prefix)[run]
        if is_armed(prefix, run):
            expiry_link(prefix, tail, run)


@helper
def split_after(prefix, end):
    """See to it that a run ends with the cached page `end` (O(1) where one does)."""
    nexts = next_pages(prefix)
    if end < 0 or nexts[end] < 0:
        return
    left, page = np.int64(0), end
    while nexts[page] >= 0:
        page = np.int64(nexts[page])
        left += 1
    run = run_of(prefix, page)
    split_run(prefix, run, end, run_records(prefix)[run, RUN_LENGTH] - left)


@helper
def may_join(prefix, run, child):
    """Return whether the run `child` can become the tail of `run`, from which it follows."""
    runs, stamps = run_records(prefix), run_stamps(prefix)
    if (
        runs[run, RUN_STATE] != runs[child, RUN_STATE]
        or runs[run, RUN_LOCKS] != runs[child, RUN_LOCKS]
        or runs[run, RUN_CHILD] != child
        or runs[child, SIBLING_NEXT] >= 0
        or stamps[child] != stamps[run] - runs[run, RUN_LENGTH]
    ):
        return False
    if prefix[POLICY] != BY_PRIORITY:
        return True
    expiries = run_expiries(prefix)
    return expiries[run] == expiries[child] and (
        not is_armed(prefix, child) or expiry_links(prefix)[child, 1] == run
    )


@helper
def join_runs(prefix, run, child):
    """Make the run `child` the tail of `run`; both are queued or both are not."""
    runs, nexts = run_records(prefix), next_pages(prefix)
    hash_unlink(prefix, child)
    queue_unlink(prefix, child)
    expiry_unlink(prefix, child)
    last = np.int64(runs[child, RUN_END])
    nexts[runs[run, RUN_END]] = child
    nexts[last] = ~run
    runs[run, RUN_END] = last
    runs[run, RUN_LENGTH] += runs[child, RUN_LENGTH]
    runs[run, RUN_CHILD] = runs[child, RUN_CHILD]
