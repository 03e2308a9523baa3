"""The flat arrays: dtypes, `NULL`, header slots, and the invariants as equations.

Each part (a pool, its tables) lives in one `int64` buffer, its *slab*: a header of
`HEADER_SLOTS` words, then the columns one behind the other. Kernels get the slab whole (one
array costs 0.17 us to hand over, six cost 0.41 us) and cut views out of it; people get the
same views by name from `PoolArrays` and `TableArrays`.

Pool slab of N pages, W = ceil(N / 64) words a bitmap, H = floor(N / 2) + 1 words an int32 column
(at least one element to spare, so that a loop without branches may read one past the end)::

    header      int64[16]    the scalars, by the constants below
    released    uint64[W]    bit p: page p is freed, but not yet merged into the freelist
    marks       uint64[W]    scratch of one call; all zero between calls
    free_pages  int32[N]     ring of FREE ids from HEAD on; `sorted`: ascending, ends at N
    refcount    int32[N]     owners of each page

Invariants, between any two calls::

    FREE + RELEASED + used + FIRST_PAGE == N
    page p is in exactly one of: free_pages[HEAD : HEAD+FREE], released, used (p >= FIRST_PAGE)
    refcount[p] == 0  <=>  p is free or released;  sum(refcount) == owners that hold pages
    order sorted:  free_pages[HEAD : N] ascends strictly and HEAD + FREE == N
    other orders:  RELEASED == 0
    refcount[0] == 1 where FIRST_PAGE == 1 (the null page: the pool itself holds it)

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
    0 <= known[r], gap[r] <= length[r];  known[r] == locked[r] == 0 without a prefix cache
    locked[r] > 0  =>  lock_end[r] is cached, locked[r] pages deep, and locked; else it is 0
    pages[r, i] is the page i of that path for each i < min(locked[r], known[r] / page_size)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

INT32: Final = np.dtype(np.int32)
INT64: Final = np.dtype(np.int64)
UINT64: Final = np.dtype(np.uint64)
NO_TOKENS: Final = np.empty(0, np.int32)
INT32_MAX: Final = 2**31 - 1

NULL: Final = -1
"""Page id that names no page."""

HEADER_SLOTS: Final = 16
WORD_BITS: Final = 64

# Pool header. STEP is the logical clock: each successful call that may change the pool is one tick.
NUM_PAGES: Final = 0
PAGE_SIZE: Final = 1
PAGE_SHIFT: Final = 2  # log2(page_size), or -1 where page_size is no power of two
ORDER: Final = 3
HEAD: Final = 4
FREE: Final = 5
RELEASED: Final = 6
FIRST_PAGE: Final = 7  # 1 with a null page, else 0
STEP: Final = 8
PEAK_USED: Final = 9
ALLOCATED: Final = 10  # pages handed out since the pool was made
FREED: Final = 11  # pages that came back
MERGES: Final = 12
LOCK: Final = 13  # 0: nobody is inside; 1: a kernel is; RETIRED: another slab took over

RETIRED: Final = 2

# Record of a pool on the GPU: what its calls leave for the host, in an int64 array of its own.
TICKET: Final = 0  # blocks of the call that are done; 0 between calls
CALLS: Final = 1  # calls so far
FAULT_STATUS: Final = 2  # status word of the first call that failed, or 0
FAULT_CALL: Final = 3  # how many calls came before it
FAULT_KIND: Final = 4  # which of CALL_KINDS it was
FAULT_VALUE: Final = 5  # the offending element, or the pages available where a run was asked for
FAULT_WANTED: Final = 6  # pages or elements that the call needed
RESULT: Final = 7  # what the loop returned that the host waits for
LOWEST: Final = 8  # of a call in several blocks: `call_min` in kernels/cuda/scan.py; else 0
ANSWER: Final = 13  # of a call on sequences by id: a result or status word, and a word more
ROWS_FREED: Final = 15  # sequences that have ended: ids on the host follow where it has changed
RECORD_SLOTS: Final = 16  # a cache line, so that the slab behind it begins one

CALL_KINDS: Final = (
    "alloc",
    "alloc_run",
    "alloc_batch",
    "admit",
    "merge",
    "share",
    "free",
    "free_slots",
    "refcount",
    "alloc_extend",
    "alloc_decode",
    "clear",
    "resize",
    "defragment",
    "block_tables",
    "slot_mapping",
    "page_table_csr",
    "seq_lens",
    "append_batch",
    "fork_batch",
    "reorder",
    "free_batch",
    "truncate_batch",
    "apply_streaming_llm_batch",
    "allocate_batch",
)

SORTED: Final = 0
FIFO: Final = 1
LIFO: Final = 2
ORDERS: Final = ("sorted", "fifo", "lifo")

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
DUE: Final = 15  # and whether a merge is due: kernels/cuda/leading.py

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
ROW_COLUMNS: Final = 11

# Policies: which sequence gives way first.
LRU: Final = 0  # the one written to longest ago
LFU: Final = 1  # the one written to least often
LONGEST: Final = 2
PRIORITY_FIRST: Final = 3  # the lowest priority
STREAMING: Final = 4  # the longest, and only what lies between its sinks and its window
EVICTION_POLICIES: Final = ("lru", "lfu", "longest", "priority", "streaming")


def words(bits: int) -> int:
    """Return how many 64-bit words hold `bits` bits."""
    return (bits + WORD_BITS - 1) // WORD_BITS


def page_shift(page_size: int) -> int:
    """Return log2(page_size), or -1 where `page_size` is no power of two."""
    return page_size.bit_length() - 1 if page_size & (page_size - 1) == 0 else -1


@dataclass(frozen=True, slots=True)
class PoolArrays:
    """Named views into a pool's slab. They live as long as the pool is not resized.

    Attributes
    ----------
    slab : int64[...]
        The one buffer that the others are views of.
    header : int64[16]
    released : uint64[ceil(num_pages / 64)]
    marks : uint64[ceil(num_pages / 64)]
    free_pages : int32[num_pages]
    refcount : int32[num_pages]
    """

    slab: NDArray[np.int64]
    header: NDArray[np.int64]
    released: NDArray[np.uint64]
    marks: NDArray[np.uint64]
    free_pages: NDArray[np.int32]
    refcount: NDArray[np.int32]


def pool_slab_words(num_pages: int) -> int:
    """Return the length of a pool's slab in 8-byte words."""
    return HEADER_SLOTS + 2 * words(num_pages) + 2 * (num_pages // 2 + 1)


def pool_arrays(slab: NDArray[np.int64], num_pages: int | None = None) -> PoolArrays:
    """Cut the named views out of a pool's slab, whose header tells `num_pages` if nobody does."""
    n = int(slab[NUM_PAGES]) if num_pages is None else num_pages
    w, h = words(n), n // 2 + 1
    bitmaps = HEADER_SLOTS + 2 * w
    return PoolArrays(
        slab=slab,
        header=slab[:HEADER_SLOTS],
        released=slab[HEADER_SLOTS : HEADER_SLOTS + w].view(UINT64),
        marks=slab[HEADER_SLOTS + w : bitmaps].view(UINT64),
        free_pages=slab[bitmaps : bitmaps + h].view(INT32)[:n],
        refcount=slab[bitmaps + h : bitmaps + 2 * h].view(INT32)[:n],
    )


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
