"""The arrays of a block table: header slots, columns, eviction policies, and the invariants.

Table slab of R rows of M pages::

    header      int64[16]
    taken       uint64[ceil(R / 64)]  bit r: a sequence lives in row r
    marks       uint64[ceil(R / 64)]  scratch of one call; all zero between calls
    columns     int64[ROW_COLUMNS, R] one fact a row, by the constants below
    pages       int32[R, M]           page ids in order, NULL behind the last

Invariants::

    popcount(taken) == ACTIVE
    pages[r, i] != NULL  <=>  i < ceil(length[r] / page_size);  length[r] == 0 in a free row
    each (r, i) with a page is one owner in refcount[pages[r, i]]
    0 <= known[r], computed[r], gap[r] <= length[r];  known[r] == locked[r] == 0 without a prefix
        cache
    what a sequence publishes lies within min(known[r], computed[r]), and what it finds cached is
        computed: gap[r] == 0  =>  min(locked[r] * page_size, length[r]) <= computed[r]
    locked[r] > 0  =>  lock_end[r] is cached, locked[r] pages deep, and locked; else it is 0
    pages[r, i] is the page i of that path for each i < min(locked[r], known[r] / page_size)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, get_args

import numpy as np
from numpy.typing import NDArray

from jitalloc.choices import EvictionPolicy
from jitalloc.state import HEADER_SLOTS, INT32, UINT64, words

# Table header.
NUM_ROWS: Final = 0
MAX_PAGES: Final = 1
ACTIVE: Final = 2
SEQ_ALLOCATIONS: Final = 3
SEQ_FREES: Final = 4
SEQ_FORKS: Final = 5
PAGE_COPIES: Final = 6
EVICTIONS: Final = 7
PEAK_ACTIVE: Final = 8
TOKENS_DROPPED: Final = 9
ROW_PAGE_SIZE: Final = 10  # the pool's, so that exports need no pool
ROW_PAGE_SHIFT: Final = 11
LEADER: Final = 14  # on the GPU, within a call of several blocks: how many have begun; else 0
DUE: Final = 15  # and whether a merge is due: sequences/loops/leading_cuda.py

# Row columns.
LENGTH: Final = 0  # tokens
LAST_USED: Final = 1  # STEP of the last call that wrote to the sequence
USES: Final = 2  # how many such calls
PRIORITY: Final = 3
PINNED: Final = 4  # 0 or 1
BORN: Final = 5  # STEP at which the sequence was made
KNOWN: Final = 6  # leading tokens whose ids stand in the prefix cache's token rows
LOCKED: Final = 7  # leading pages that stand in the prefix cache, locked by the sequence
LOCK_END: Final = 8  # the last page of the path that it locks, where LOCKED > 0
NAMESPACE: Final = 9  # number of the namespace that its prefix is looked up in
GAP: Final = 10  # 1 + the tokens before what a window dropped; 0 where there is no gap
COMPUTED: Final = 11  # leading tokens whose keys and values are written
ROW_COLUMNS: Final = 12

# Policies: which sequence gives way first.
LRU: Final = 0  # the one written to longest ago
LFU: Final = 1  # the one written to least often
LONGEST: Final = 2
PRIORITY_FIRST: Final = 3  # the lowest priority
STREAMING: Final = 4  # the longest, and only what lies between its sinks and its window
EVICTION_POLICIES: Final[tuple[EvictionPolicy, ...]] = get_args(EvictionPolicy)


@dataclass(frozen=True, slots=True)
class TableArrays:
    """Named views into a block table's slab.

    Attributes
    ----------
    slab : int64[...]
    header : int64[16]
    taken : uint64[ceil(max_sequences / 64)]
    marks : uint64[ceil(max_sequences / 64)]
    columns : int64[ROW_COLUMNS, max_sequences]
    pages : int32[max_sequences, max_pages_per_sequence]
    """

    slab: NDArray[np.int64]
    header: NDArray[np.int64]
    taken: NDArray[np.uint64]
    marks: NDArray[np.uint64]
    columns: NDArray[np.int64]
    pages: NDArray[np.int32]


def table_slab_words(num_rows: int, max_pages: int) -> int:
    """Return the length of a block table's slab in 8-byte words."""
    return (
        HEADER_SLOTS
        + 2 * words(num_rows)
        + ROW_COLUMNS * num_rows
        + (num_rows * max_pages + 1) // 2
    )


def table_arrays(
    slab: NDArray[np.int64], num_rows: int | None = None, max_pages: int | None = None
) -> TableArrays:
    """Cut the named views out of a block table's slab, whose header tells the sizes not given."""
    rows = int(slab[NUM_ROWS]) if num_rows is None else num_rows
    width = int(slab[MAX_PAGES]) if max_pages is None else max_pages
    marks = HEADER_SLOTS + words(rows)
    columns = marks + words(rows)
    pages = columns + ROW_COLUMNS * rows
    return TableArrays(
        slab=slab,
        header=slab[:HEADER_SLOTS],
        taken=slab[HEADER_SLOTS:marks].view(UINT64),
        marks=slab[marks:columns].view(UINT64),
        columns=slab[columns:pages].reshape(ROW_COLUMNS, rows),
        pages=slab[pages:].view(INT32)[: rows * width].reshape(rows, width),
    )
