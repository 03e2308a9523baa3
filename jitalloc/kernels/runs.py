"""Runs of cached pages: the columns of the slab, and what stands in them for a run.

Shared by the loops of the prefix cache. `end` stands for the last page of a run, or for the root
of a namespace, `-2 - namespace`; `run` for the first page of one.
"""

from __future__ import annotations

import numpy as np

from jitalloc._intrinsics import int32_column, int32_rows, int64_column
from jitalloc._jit import counting, helper
from jitalloc.prefix_state import (
    EXPIRIES_AT,
    NEXT_AT,
    PAGES,
    PREV_AT,
    ROW,
    RUN_FIELDS,
    RUN_STATE,
    RUNS_AT,
    STAMPS_AT,
    TOKENS_AT,
)

FIRST = 0  # rows of `queues` and of `wheel`
LAST = 1


@counting
def next_pages(prefix):
    """Return the column of the pages behind each page in its run."""
    return int32_column(prefix, prefix[NEXT_AT], prefix[PAGES])


@counting
def prev_pages(prefix):
    """Return the column of the pages before each page on its path."""
    return int32_column(prefix, prefix[PREV_AT], prefix[PAGES])


@counting
def run_records(prefix):
    """Return the records of the runs, by their first pages."""
    return int32_rows(prefix, prefix[RUNS_AT], prefix[PAGES], RUN_FIELDS)


@counting
def run_stamps(prefix):
    """Return the stamps of the runs' first pages."""
    return int64_column(prefix, prefix[STAMPS_AT], prefix[PAGES])


@counting
def run_expiries(prefix):
    """Return the expiries of the runs (policy `priority` only)."""
    return int64_column(prefix, prefix[EXPIRIES_AT], prefix[NEXT_AT] - prefix[EXPIRIES_AT])


@counting
def token_column(prefix):
    """Return the tokens of all pages, one page behind the other."""
    return int32_column(prefix, prefix[TOKENS_AT], prefix[PAGES] * prefix[ROW])


@helper
def run_of(prefix, end):
    """Return the run that ends with page `end`."""
    return np.int64(~next_pages(prefix)[end])


@helper
def run_class(prefix, run):
    """Return the class of `run`: the queue that it belongs to."""
    return np.int64(run_records(prefix)[run, RUN_STATE] & 255)
