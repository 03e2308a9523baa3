"""When priorities expire: which nodes lose their priority by a given step, in O(1) each.

Shared by the loops of the prefix cache. A radix heap: list 0 holds what expires at EXPIRY_NOW, list
b what differs from it first in bit b - 1. EXPIRY_NOW only grows, so a node goes down the lists at
most 64 times, and nodes of equal expiry stay in the order in which they were armed.
"""

from __future__ import annotations

import numpy as np

from jitalloc._intrinsics import int32_rows
from jitalloc._jit import counting, helper
from jitalloc.prefix.loops.nodes import FIRST, LAST, node_expiries
from jitalloc.prefix.state import (
    BUCKETS_AT,
    BY_PRIORITY,
    EXPIRY_ENDS_AT,
    EXPIRY_FOLLOWING,
    EXPIRY_LINKS_AT,
    EXPIRY_LISTS,
    EXPIRY_NOW,
    EXPIRY_PREVIOUS,
    NEVER,
    POLICY,
)


@counting
def expiry_ends(prefix):
    """Return the first (row FIRST) and the last node (row LAST) of each list."""
    return int32_rows(prefix, EXPIRY_ENDS_AT, 2, EXPIRY_LISTS)


@counting
def expiry_links(prefix):
    """Return for each node the previous and the following one in its list."""
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
def is_armed(prefix, node):
    """Return whether the priority of `node` ends some time."""
    return prefix[POLICY] == BY_PRIORITY and 0 <= node_expiries(prefix)[node] < NEVER


@helper
def expiry_link(prefix, node, following):
    """Put `node`, whose expiry stands already, before the node `following`; -1: at the end."""
    ends, links = expiry_ends(prefix), expiry_links(prefix)
    at = expiry_list(prefix, node_expiries(prefix)[node])
    previous = np.int64(ends[LAST, at] if following < 0 else links[following, EXPIRY_PREVIOUS])
    links[node, EXPIRY_PREVIOUS] = previous
    links[node, EXPIRY_FOLLOWING] = following
    if previous >= 0:
        links[previous, EXPIRY_FOLLOWING] = node
    else:
        ends[FIRST, at] = node
    if following >= 0:
        links[following, EXPIRY_PREVIOUS] = node
    else:
        ends[LAST, at] = node


@helper
def expiry_unlink(prefix, node):
    """Take `node` out of the list of its expiry, where it is in one."""
    if not is_armed(prefix, node):
        return
    ends, links = expiry_ends(prefix), expiry_links(prefix)
    at = expiry_list(prefix, node_expiries(prefix)[node])
    previous = np.int64(links[node, EXPIRY_PREVIOUS])
    following = np.int64(links[node, EXPIRY_FOLLOWING])
    if previous >= 0:
        links[previous, EXPIRY_FOLLOWING] = following
    else:
        ends[FIRST, at] = following
    if following >= 0:
        links[following, EXPIRY_PREVIOUS] = previous
    else:
        ends[LAST, at] = previous


@helper
def arm(prefix, node, expiry):
    """Let the priority of `node` end at `expiry`."""
    expiry_unlink(prefix, node)
    node_expiries(prefix)[node] = expiry
    if expiry < NEVER:
        expiry_link(prefix, node, np.int64(-1))


@helper
def expiry_due(prefix, now):
    """Return the node whose expiry comes first, or -1 where none is at or before `now`."""
    ends, links = expiry_ends(prefix), expiry_links(prefix)
    at = np.int64(0)
    while at < EXPIRY_LISTS:
        node = np.int64(ends[FIRST, at])
        if node < 0:
            at += 1
            continue
        if at == 0:
            return node if prefix[EXPIRY_NOW] <= now else np.int64(-1)
        # The earliest that could stand here. Seen from there, all of it goes further down.
        earliest = ((prefix[EXPIRY_NOW] >> (at - 1)) | 1) << (at - 1)
        if earliest > now:
            return np.int64(-1)
        ends[FIRST, at] = -1
        ends[LAST, at] = -1
        prefix[EXPIRY_NOW] = earliest
        while node >= 0:
            following = np.int64(links[node, EXPIRY_FOLLOWING])
            expiry_link(prefix, node, np.int64(-1))
            node = following
        at = np.int64(0)
    return np.int64(-1)
