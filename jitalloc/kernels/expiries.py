"""When priorities expire: which runs lose their priority by a given step, in O(1) each.

Shared by the loops of the prefix cache. A radix heap: list 0 holds what expires at EXPIRY_NOW, list
b what differs from it first in bit b - 1. EXPIRY_NOW only grows, so a run goes down the lists at
most 64 times, and runs of equal expiry stay in the order in which they were armed.
"""

from __future__ import annotations

import numpy as np

from jitalloc._jit import counting, helper, int32_rows
from jitalloc.kernels.nodes import FIRST, LAST, run_expiries
from jitalloc.prefix_state import (
    BUCKETS_AT,
    BY_PRIORITY,
    EXPIRY_ENDS_AT,
    EXPIRY_LINKS_AT,
    EXPIRY_LISTS,
    EXPIRY_NOW,
    NEVER,
    POLICY,
)


@counting
def expiry_ends(prefix):
    """Return the first (row FIRST) and the last run (row LAST) of each list."""
    return int32_rows(prefix, EXPIRY_ENDS_AT, 2, EXPIRY_LISTS)


@counting
def expiry_links(prefix):
    """Return for each run those before (column 0) and behind it (column 1) in its list."""
    return int32_rows(
        prefix, prefix[EXPIRY_LINKS_AT], prefix[BUCKETS_AT] - prefix[EXPIRY_LINKS_AT], 2
    )


@helper
def expiry_list(prefix, expiry):
    """Return the list that `expiry` belongs to."""
    different = expiry ^ prefix[EXPIRY_NOW]
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
def expiry_link(prefix, run, behind):
    """Put `run`, whose expiry stands already, in front of the run `behind`; -1: at the end."""
    ends, links = expiry_ends(prefix), expiry_links(prefix)
    at = expiry_list(prefix, run_expiries(prefix)[run])
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
def expiry_unlink(prefix, run):
    """Take `run` out of the list of its expiry, where it is in one."""
    if not is_armed(prefix, run):
        return
    ends, links = expiry_ends(prefix), expiry_links(prefix)
    at = expiry_list(prefix, run_expiries(prefix)[run])
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
    expiry_unlink(prefix, run)
    run_expiries(prefix)[run] = expiry
    if expiry < NEVER:
        expiry_link(prefix, run, np.int64(-1))


@helper
def expiry_due(prefix, now):
    """Return the run whose expiry comes first, or -1 where none is at or before `now`."""
    ends, links = expiry_ends(prefix), expiry_links(prefix)
    at = np.int64(0)
    while at < EXPIRY_LISTS:
        run = np.int64(ends[FIRST, at])
        if run < 0:
            at += 1
            continue
        if at == 0:
            return run if prefix[EXPIRY_NOW] <= now else np.int64(-1)
        # The earliest that could stand here. Seen from there, all of it goes further down.
        earliest = ((prefix[EXPIRY_NOW] >> (at - 1)) | 1) << (at - 1)
        if earliest > now:
            return np.int64(-1)
        ends[FIRST, at] = -1
        ends[LAST, at] = -1
        prefix[EXPIRY_NOW] = earliest
        while run >= 0:
            behind = np.int64(links[run, 1])
            expiry_link(prefix, run, np.int64(-1))
            run = behind
        at = np.int64(0)
    return np.int64(-1)
