"""What follows a page: the hash table of runs, and the list of the children of each page.

Shared by the loops of the prefix cache.
"""

from __future__ import annotations

import numpy as np

from jitalloc._jit import helper, int32_column, mix
from jitalloc.kernels.runs import prev_pages, run_of, run_records, token_column
from jitalloc.prefix_state import (
    BUCKET_MASK,
    BUCKETS_AT,
    CHAIN,
    HASH_MASK,
    ROW,
    RUN_CHILD,
    RUN_HASH,
    SIBLING_NEXT,
    SIBLING_PREV,
    TOP,
)


@helper
def page_hash(prefix, end, tokens, at):
    """Return the hash of a page that follows `end`, its tokens standing in `tokens` from `at` on.

    31 bits. It only filters: whoever finds a run by it compares the tokens.
    """
    even, odd = np.uint64(end + 2**32), np.uint64(prefix[ROW])
    for j in range(0, prefix[ROW] - 1, 2):  # two chains, for each waits for its multiplication
        even = mix(even, np.uint64(tokens[at + j]))
        odd = mix(odd, np.uint64(tokens[at + j + 1]))
    if prefix[ROW] & 1:
        even = mix(even, np.uint64(tokens[at + prefix[ROW] - 1]))
    folded = mix(even ^ (even >> np.uint64(32)), odd >> np.uint64(17))
    folded = mix(folded ^ (folded >> np.uint64(32)), np.uint64(0))
    return np.int64(folded >> np.uint64(33)) & prefix[HASH_MASK]


@helper
def hash_link(prefix, run):
    """Enter `run`, whose `prev_pages` and tokens stand already, into the hash table."""
    runs = run_records(prefix)
    buckets = int32_column(prefix, prefix[BUCKETS_AT], prefix[BUCKET_MASK] + 1)
    end = np.int64(prev_pages(prefix)[run])
    code = page_hash(prefix, end, token_column(prefix), run * prefix[ROW])
    bucket = code & prefix[BUCKET_MASK]
    runs[run, RUN_HASH] = code
    runs[run, CHAIN] = buckets[bucket]
    buckets[bucket] = run


@helper
def hash_unlink(prefix, run):
    """Take `run` out of the hash table."""
    runs = run_records(prefix)
    buckets = int32_column(prefix, prefix[BUCKETS_AT], prefix[BUCKET_MASK] + 1)
    bucket = runs[run, RUN_HASH] & prefix[BUCKET_MASK]
    other = np.int64(buckets[bucket])
    if other == run:
        buckets[bucket] = runs[run, CHAIN]
        return
    while runs[other, CHAIN] != run:
        other = np.int64(runs[other, CHAIN])
    runs[other, CHAIN] = runs[run, CHAIN]


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
