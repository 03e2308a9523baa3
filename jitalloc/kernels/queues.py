"""The order in which runs give way: queues by class, and the wheel of expiring priorities.

Shared by the loops of the prefix cache. Locking a run leaves it in its queue; an eviction that
meets it there takes it out (it is *parked*), and it comes back when it is pushed again, or when
its last lock or child goes.
"""

from __future__ import annotations

import numpy as np

from jitalloc._intrinsics import int32_rows, trailing_zeros
from jitalloc._jit import counting, helper
from jitalloc.kernels.runs import FIRST, LAST, run_class, run_expiries, run_records, run_stamps
from jitalloc.kernels.wheel import arm, wheel_due
from jitalloc.prefix_state import (
    BY_LFU,
    BY_MRU,
    BY_PRIORITY,
    BY_SLRU,
    CLOCK,
    DEFAULT,
    FILLED_AT,
    NEVER,
    NUM_PROTECTED,
    POLICY,
    QUEUE_NEXT,
    QUEUE_PREV,
    QUEUED,
    QUEUES,
    QUEUES_AT,
    RUN_CHILD,
    RUN_LENGTH,
    RUN_LOCKS,
    RUN_STATE,
    USES_SHIFT,
)


@counting
def queue_ends(prefix):
    """Return the first (row FIRST) and the last run (row LAST) of each queue."""
    return int32_rows(prefix, QUEUES_AT, 2, QUEUES)


@helper
def queue_link(prefix, run, before):
    """Put `run` into the queue of its class, in front of the run `before`; -1: at the end."""
    runs, ends = run_records(prefix), queue_ends(prefix)
    queue = run_class(prefix, run)
    behind = np.int64(ends[LAST, queue] if before < 0 else runs[before, QUEUE_PREV])
    runs[run, QUEUE_PREV] = behind
    runs[run, QUEUE_NEXT] = before
    if behind >= 0:
        runs[behind, QUEUE_NEXT] = run
    else:
        ends[FIRST, queue] = run
        prefix[FILLED_AT + (queue >> 6)] |= np.int64(1) << (queue & 63)
    if before >= 0:
        runs[before, QUEUE_PREV] = run
    else:
        ends[LAST, queue] = run
    runs[run, RUN_STATE] |= QUEUED


@helper
def queue_unlink(prefix, run):
    """Take `run` out of its queue, where it is in one."""
    runs, ends = run_records(prefix), queue_ends(prefix)
    if runs[run, RUN_STATE] & QUEUED == 0:
        return
    queue = run_class(prefix, run)
    behind, before = np.int64(runs[run, QUEUE_PREV]), np.int64(runs[run, QUEUE_NEXT])
    if behind >= 0:
        runs[behind, QUEUE_NEXT] = before
    else:
        ends[FIRST, queue] = before
    if before >= 0:
        runs[before, QUEUE_PREV] = behind
    else:
        ends[LAST, queue] = behind
    if behind < 0 and before < 0:
        prefix[FILLED_AT + (queue >> 6)] &= ~(np.int64(1) << (queue & 63))
    runs[run, QUEUE_NEXT] = -1
    runs[run, QUEUE_PREV] = -1
    runs[run, RUN_STATE] &= ~QUEUED


@helper
def set_class(prefix, run, new):
    """Give `run`, which must be in no queue, the class `new`."""
    runs = run_records(prefix)
    if prefix[POLICY] == BY_SLRU and runs[run, RUN_LOCKS] == 0:
        prefix[NUM_PROTECTED] += (new - run_class(prefix, run)) * runs[run, RUN_LENGTH]
    runs[run, RUN_STATE] = (runs[run, RUN_STATE] & ~255) | new


@helper
def push(prefix, run):
    """Put `run` at the end of the queue that its class now is, with new stamps."""
    runs = run_records(prefix)
    queue_unlink(prefix, run)
    policy = prefix[POLICY]
    uses = (runs[run, RUN_STATE] >> USES_SHIFT) & 255
    if policy == BY_LFU:
        set_class(prefix, run, uses)
    elif policy == BY_SLRU:
        set_class(prefix, run, min(uses, 1))
    prefix[CLOCK] += runs[run, RUN_LENGTH]
    run_stamps(prefix)[run] = prefix[CLOCK]
    queue_link(prefix, run, np.int64(-1))


@helper
def put_back(prefix, run):
    """Put `run` back to where its stamp belongs, if it can be evicted and is parked."""
    runs = run_records(prefix)
    if runs[run, RUN_LOCKS] == 0 and runs[run, RUN_CHILD] < 0:
        put_in_order(prefix, run)


@helper
def put_in_order(prefix, run):
    """Put `run`, if it is parked, into its queue where its stamp belongs.

    The scan begins at the end that evictions take from, for what stood there when the run was
    parked has mostly gone.
    """
    runs, ends = run_records(prefix), queue_ends(prefix)
    if runs[run, RUN_STATE] & QUEUED != 0:
        return
    stamps = run_stamps(prefix)
    queue = run_class(prefix, run)
    if prefix[POLICY] == BY_MRU:
        before = np.int64(-1)
        other = np.int64(ends[LAST, queue])
        while other >= 0 and stamps[other] > stamps[run]:
            before = other
            other = np.int64(runs[other, QUEUE_PREV])
    else:
        before = np.int64(ends[FIRST, queue])
        while before >= 0 and stamps[before] < stamps[run]:
            before = np.int64(runs[before, QUEUE_NEXT])
    queue_link(prefix, run, before)


@helper
def lowest_queue(prefix):
    """Return the lowest queue that is not empty, or -1."""
    for word in range(QUEUES // 64):
        bits = prefix[FILLED_AT + word]
        if bits != 0:
            return np.int64(word * 64 + trailing_zeros(np.uint64(bits)))
    return np.int64(-1)


@helper
def next_victim(prefix):
    """Return the run that gives way next, parking those that cannot; there must be one."""
    runs, ends = run_records(prefix), queue_ends(prefix)
    side = LAST if prefix[POLICY] == BY_MRU else FIRST
    while True:
        run = np.int64(ends[side, lowest_queue(prefix)])
        if runs[run, RUN_LOCKS] == 0 and runs[run, RUN_CHILD] < 0:
            return run
        queue_unlink(prefix, run)


@helper
def oldest_protected(prefix):
    """Return the unlocked run of queue 1 with the smallest stamp, parking locked ones before it."""
    ends = queue_ends(prefix)
    run = np.int64(ends[FIRST, 1])
    while run >= 0 and run_records(prefix)[run, RUN_LOCKS] > 0:
        queue_unlink(prefix, run)
        run = np.int64(ends[FIRST, 1])
    return run


@helper
def raise_priority(prefix, run, priority, expiry):
    """Give `run` a priority and its expiry, where that is more than it has."""
    own = run_class(prefix, run)
    if priority > own or (priority == own and expiry > run_expiries(prefix)[run]):
        queue_unlink(prefix, run)
        set_class(prefix, run, priority)
        arm(prefix, run, expiry)


@helper
def expire(prefix, now):
    """Let every priority that ends at or before `now` fall back to the default."""
    if prefix[POLICY] != BY_PRIORITY:
        return
    run = wheel_due(prefix, now)
    while run >= 0:
        arm(prefix, run, np.int64(NEVER))
        queue_unlink(prefix, run)
        set_class(prefix, run, prefix[DEFAULT])
        push(prefix, run)
        run = wheel_due(prefix, now)
