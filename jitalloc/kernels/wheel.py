"""The wheel of expiries: which runs lose their priority by a given step, in O(1) each.

Shared by the loops of the prefix cache. A radix heap: list 0 holds what expires at WHEEL_NOW, list
b what differs from it first in bit b - 1. WHEEL_NOW only grows, so a run goes down the lists at
most 64 times, and runs of equal expiry stay in the order in which they were armed.
"""

from __future__ import annotations

import numpy as np

from jitalloc._intrinsics import int32_rows
from jitalloc._jit import counting, helper
from jitalloc.kernels.runs import FIRST, LAST, run_expiries
from jitalloc.prefix_state import (
    BUCKETS_AT,
    BY_PRIORITY,
    LINKS_AT,
    NEVER,
    POLICY,
    WHEEL_AT,
    WHEEL_LISTS,
    WHEEL_NOW,
)


@counting
def wheel_ends(prefix):
    """Return the first (row FIRST) and the last run (row LAST) of each list."""
    return int32_rows(prefix, WHEEL_AT, 2, WHEEL_LISTS)


@counting
def wheel_links(prefix):
    """Return for each run those before (column 0) and behind it (column 1) in its list."""
    return int32_rows(prefix, prefix[LINKS_AT], prefix[BUCKETS_AT] - prefix[LINKS_AT], 2)


@helper
def wheel_list(prefix, expiry):
    """Return the list that `expiry` belongs to."""
    different = expiry ^ prefix[WHEEL_NOW]
    bits = np.int64(0)
    while different != 0:
        different >>= 1
        bits += 1
    return bits


@helper
def is_armed(prefix, run):
    """Return whether the priority of `run` ends some time."""
    return prefix[POLICY] == BY_PRIORITY and 0 <= run_expiries(prefix)[run] < NEVER


@helper
def wheel_link(prefix, run, behind):
    """Put `run`, whose expiry stands already, in front of the run `behind`; -1: at the end."""
    ends, links = wheel_ends(prefix), wheel_links(prefix)
    at = wheel_list(prefix, run_expiries(prefix)[run])
    before = np.int64(ends[LAST, at] if behind < 0 else links[behind, 0])
    links[run, 0] = before
    links[run, 1] = behind
    if before >= 0:
        links[before, 1] = run
    else:
        ends[FIRST, at] = run
    if behind >= 0:
        links[behind, 0] = run
    else:
        ends[LAST, at] = run


@helper
def wheel_unlink(prefix, run):
    """Take `run` out of the wheel, where it is in it."""
    if not is_armed(prefix, run):
        return
    ends, links = wheel_ends(prefix), wheel_links(prefix)
    at = wheel_list(prefix, run_expiries(prefix)[run])
    before, behind = np.int64(links[run, 0]), np.int64(links[run, 1])
    if before >= 0:
        links[before, 1] = behind
    else:
        ends[FIRST, at] = behind
    if behind >= 0:
        links[behind, 0] = before
    else:
        ends[LAST, at] = before


@helper
def arm(prefix, run, expiry):
    """Let the priority of `run` end at `expiry`."""
    wheel_unlink(prefix, run)
    run_expiries(prefix)[run] = expiry
    if expiry < NEVER:
        wheel_link(prefix, run, np.int64(-1))


@helper
def wheel_due(prefix, now):
    """Return the run whose expiry comes first, or -1 where none is at or before `now`."""
    ends, links = wheel_ends(prefix), wheel_links(prefix)
    at = np.int64(0)
    while at < WHEEL_LISTS:
        run = np.int64(ends[FIRST, at])
        if run < 0:
            at += 1
            continue
        if at == 0:
            return run if prefix[WHEEL_NOW] <= now else np.int64(-1)
        # The earliest that could stand here. Seen from there, all of it goes further down.
        earliest = ((prefix[WHEEL_NOW] >> (at - 1)) | 1) << (at - 1)
        if earliest > now:
            return np.int64(-1)
        ends[FIRST, at] = -1
        ends[LAST, at] = -1
        prefix[WHEEL_NOW] = earliest
        while run >= 0:
            behind = np.int64(links[run, 1])
            wheel_link(prefix, run, np.int64(-1))
            run = behind
        at = np.int64(0)
    return np.int64(-1)
