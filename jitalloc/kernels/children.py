"""What follows a page: the hash table of runs, and the list of the children of each page.

Shared by the loops of the prefix cache.
"""

from __future__ import annotations

import numpy as np

from jitalloc._intrinsics import int32_column, mix
from jitalloc._jit import counting, helper
from jitalloc.kernels.runs import prev_pages, run_of, run_records, token_column
from jitalloc.prefix_state import (
    BUCKET_MASK,
    BUCKETS_AT,
    CHAIN_NEXT,
    CHAIN_PREV,
    HASH_MASK,
    ROW,
    RUN_CHILD,
    SIBLING_NEXT,
    SIBLING_PREV,
    TOP,
)


@helper
def page_hash(prefix, end, tokens, at):
    """Return the hash of a page that follows `end`, its tokens standing in `tokens` from `at` on.

    31 bits, to choose a bucket by; whoever looks there compares page before and tokens. `end` is
    mixed first, lest tokens that count like page ids cancel it.
    """
    even, odd = mix(np.uint64(end + 2**32), np.uint64(0)), np.uint64(prefix[ROW])
    for j in range(0, prefix[ROW] - 1, 2):  # two chains, for each waits for its multiplication
        even = mix(even, np.uint64(tokens[at + j]))
        odd = mix(odd, np.uint64(tokens[at + j + 1]))
    if prefix[ROW] & 1:
        even = mix(even, np.uint64(tokens[at + prefix[ROW] - 1]))
    folded = mix(even ^ (even >> np.uint64(32)), odd >> np.uint64(17))
    folded = mix(folded ^ (folded >> np.uint64(32)), np.uint64(0))
    return np.int64(folded >> np.uint64(33)) & prefix[HASH_MASK]


@counting
def bucket_column(prefix):
    """Return the first run of each bucket of the hash table."""
    return int32_column(prefix, prefix[BUCKETS_AT], prefix[BUCKET_MASK] + 1)


@helper
def hash_link(prefix, run):
    """Enter `run`, whose `prev_pages` and tokens stand already, into the hash table."""
    runs, buckets = run_records(prefix), bucket_column(prefix)
    end = np.int64(prev_pages(prefix)[run])
    code = page_hash(prefix, end, token_column(prefix), run * prefix[ROW])
    bucket = code & prefix[BUCKET_MASK]
    behind = np.int64(buckets[bucket])
    runs[run, CHAIN_NEXT] = behind
    runs[run, CHAIN_PREV] = ~bucket
    if behind >= 0:
        runs[behind, CHAIN_PREV] = run
    buckets[bucket] = run


@helper
def hash_unlink(prefix, run):
    """Take `run` out of the hash table.

    Linked both ways, so that an eviction only writes to what is not in a cache of the processor,
    and does not wait for it: 0.1 us a page instead of 0.35 with a million runs.
    """
    runs = run_records(prefix)
    before, behind = np.int64(runs[run, CHAIN_PREV]), np.int64(runs[run, CHAIN_NEXT])
    if before >= 0:
        runs[before, CHAIN_NEXT] = behind
    else:
        bucket_column(prefix)[~before] = behind
    if behind >= 0:
        runs[behind, CHAIN_PREV] = before


@helper
def first_child(prefix, end):
    """Return the most recently used run behind `end`, or -1; at a root, of any namespace."""
    if end < 0:
        return prefix[TOP]
    return np.int64(run_records(prefix)[run_of(prefix, end), RUN_CHILD])


@helper
def set_first_child(prefix, end, run):
    """Make `run` the first in the list of the runs behind `end`."""
    if end < 0:
        prefix[TOP] = run
    else:
        run_records(prefix)[run_of(prefix, end), RUN_CHILD] = run


@helper
def child_link(prefix, run):
    """Put `run` in front of the runs that follow the same page."""
    runs = run_records(prefix)
    end = np.int64(prev_pages(prefix)[run])
    other = first_child(prefix, end)
    runs[run, SIBLING_PREV] = -1
    runs[run, SIBLING_NEXT] = other
    if other >= 0:
        runs[other, SIBLING_PREV] = run
    set_first_child(prefix, end, run)


@helper
def child_unlink(prefix, run):
    """Take `run` out of the list of the runs that follow the same page."""
    runs = run_records(prefix)
    before, behind = np.int64(runs[run, SIBLING_PREV]), np.int64(runs[run, SIBLING_NEXT])
    if before >= 0:
        runs[before, SIBLING_NEXT] = behind
    else:
        set_first_child(prefix, np.int64(prev_pages(prefix)[run]), behind)
    if behind >= 0:
        runs[behind, SIBLING_PREV] = before


@helper
def child_to_front(prefix, run):
    """Make `run` the most recently used of those that follow the same page."""
    if run_records(prefix)[run, SIBLING_PREV] >= 0:
        child_unlink(prefix, run)
        child_link(prefix, run)
