"""The flat arrays of a prefix cache: columns, records of nodes, and the invariants as equations.

A prefix cache keeps a compressed radix tree of pages. A *node* is a piece of a path in which no
page has another child than the page that follows it; it is named by its first page, and what is
the same for all of its pages stands once, in the record of that page. So a lock, a touch or an
eviction costs one step a node.

Prefix slab of N pages of S tokens, B buckets (the largest power of two that is <= N)::

    header          int64[48]         the scalars, by the constants below
    filled          int64[4]          bit c: queue c holds a node
    queue_ends      int32[2, 256]     first and last node of each queue, NULL where it is empty
    expiry_ends     int32[2, 66]      first and last node of each list of expiries
    stamps          int64[N]          position of the node's first page in the order of all pushes
    expiries        int64[N or 0]     step at which the node's priority ends (policy `priority`
                                      only)
    following_pages int32[N]          the page that follows p in its node; at its end ~(first page
                                      of the node); UNCACHED where p is not in the cache
    previous_pages  int32[N]          the page before p on its path, or -2 - namespace at the root
    nodes           int32[N, 11]      the record of each node, by the constants below
    expiry_links    int32[N or 0, 2]  previous and following node in the list of its expiry
    buckets         int32[B]          hash table of nodes by (page before, tokens of the first page)
    tokens          int32[N, S]       tokens of each page; rows of uncached pages belong to others

Invariants, between any two calls::

    page i of a node has the stamp stamps[first] - i; all stamps differ; a queue ascends in them
    NODE_LOCKS of a node >= sum of NODE_LOCKS of its children
    a node with NODE_LOCKS == 0 and without a child is queued; others may be (they are parked
        when an eviction meets them)
    NUM_CACHED: pages with following_pages != UNCACHED
    NUM_LOCKED, NUM_PINNED: those of nodes with NODE_LOCKS > 0, with pins > 0
    NUM_PROTECTED: pages of class 1 with NODE_LOCKS == 0 (policy `slru`)
    each cached page is one owner in the pool's refcount
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, get_args

import numpy as np
from numpy.typing import NDArray

from jitalloc.choices import PrefixPolicy
from jitalloc.state import INT32

UNCACHED: Final = -(2**31)
NEVER: Final = 2**62
"""Expiry of a priority that does not end."""

PREFIX_SLOTS: Final = 48

# Header: sizes and options,
PAGES: Final = 0
PREFIX_PAGE_SIZE: Final = 1  # tokens a page, as in the pool
POLICY: Final = 2
BUCKET_MASK: Final = 3
EPOCH: Final = 4  # how often page ids were renamed, or the whole state replaced
PIN_BUDGET: Final = 5
CAPACITY: Final = 6  # how many pages may be protected
DEFAULT: Final = 7  # the priority without an end
# what a resize takes over,
HASH_MASK: Final = 8  # ANDed on each hash: all ones, but for tests that force collisions
NUM_CACHED: Final = 9
NUM_LOCKED: Final = 10
NUM_PINNED: Final = 11
NUM_PROTECTED: Final = 12
CLOCK: Final = 13  # the last stamp given
TOP: Final = 14  # first of the list of nodes at a root, the most recently used first
EXPIRY_NOW: Final = 15  # every expiry in the lists is at or past it
LOOKUPS: Final = 16
TOKENS_ASKED: Final = 17
PAGES_ASKED: Final = 18
HIT_PAGES: Final = 19
INSERTED: Final = 20
EVICTED: Final = 21  # three slots, by the reason
REQUESTED: Final = 0
PRESSURE: Final = 1
CLEARED: Final = 2
# and where each column begins, in words of the slab.
STAMPS_AT: Final = 24
EXPIRIES_AT: Final = 25
FOLLOWING_AT: Final = 26
PREVIOUS_AT: Final = 27
NODES_AT: Final = 28
EXPIRY_LINKS_AT: Final = 29
BUCKETS_AT: Final = 30
TOKENS_AT: Final = 31
SLAB_END: Final = 32

QUEUES: Final = 256
EXPIRY_LISTS: Final = 66
FILLED_AT: Final = PREFIX_SLOTS
QUEUE_ENDS_AT: Final = FILLED_AT + QUEUES // 64
EXPIRY_ENDS_AT: Final = QUEUE_ENDS_AT + QUEUES
COLUMNS_AT: Final = EXPIRY_ENDS_AT + EXPIRY_LISTS

# Record of a node.
NODE_END: Final = 0  # last page
NODE_LENGTH: Final = 1  # pages
NODE_CHILD: Final = 2  # first of the list of its children, the most recently used first
SIBLING_FOLLOWING: Final = 3
SIBLING_PREVIOUS: Final = 4
NODE_LOCKS: Final = 5
QUEUE_FOLLOWING: Final = 6
QUEUE_PREVIOUS: Final = 7
NODE_STATE: Final = 8  # class (8 bits), uses (8 bits), queued, hidden (a bit each), pins (13)
CHAIN_FOLLOWING: Final = 9  # nodes of the same bucket
CHAIN_PREVIOUS: Final = 10  # ~bucket where there is none
NODE_FIELDS: Final = 11

# Columns of `expiry_links`.
EXPIRY_PREVIOUS: Final = 0
EXPIRY_FOLLOWING: Final = 1

MOST_USES: Final = 255
MOST_PRIORITY: Final = 100
USES_SHIFT: Final = 8
QUEUED: Final = 1 << 16
HIDDEN: Final = 1 << 17  # invalidated while it was locked: nobody finds it, nor what follows it
PINS_SHIFT: Final = 18
MOST_PINS: Final = (1 << 13) - 1

# Record of a match: what its caller holds, and the kernel of its release reads.
MATCH_HELD: Final = 0  # HELD_NOT, HELD_LOCK or HELD_PIN
MATCH_PAGES: Final = 1
MATCH_END: Final = 2  # last page, or -2 - namespace
MATCH_PARTIAL_PAGE: Final = 3
MATCH_PARTIAL_TOKENS: Final = 4
MATCH_EPOCH: Final = 5
MATCH_FIELDS: Final = 6
HELD_NOT: Final = 0
HELD_LOCK: Final = 1
HELD_PIN: Final = 2

# Policies: which page gives way first.
BY_LRU: Final = 0
BY_FIFO: Final = 1
BY_MRU: Final = 2
BY_LFU: Final = 3
BY_SLRU: Final = 4
BY_PRIORITY: Final = 5
PREFIX_POLICIES: Final[tuple[PrefixPolicy, ...]] = get_args(PrefixPolicy)


@dataclass(frozen=True, slots=True)
class PrefixArrays:
    """Named views into the slab of a prefix cache. They live until its pool is resized.

    Attributes
    ----------
    slab : int64[...]
        The one buffer that the others are views of.
    header : int64[48]
    stamps : int64[num_pages]
    following_pages : int32[num_pages]
    previous_pages : int32[num_pages]
    nodes : int32[num_pages, 11]
    buckets : int32[power of two]
    tokens : int32[num_pages, page_size]
    """

    slab: NDArray[np.int64]
    header: NDArray[np.int64]
    stamps: NDArray[np.int64]
    following_pages: NDArray[np.int32]
    previous_pages: NDArray[np.int32]
    nodes: NDArray[np.int32]
    buckets: NDArray[np.int32]
    tokens: NDArray[np.int32]


def prefix_header(num_pages: int, page_size: int, policy: int) -> NDArray[np.int64]:
    """Return the header of an empty prefix cache; its options are all zero."""
    timed = num_pages if policy == BY_PRIORITY else 0
    half = (num_pages + 1) // 2
    buckets = 1 << (num_pages.bit_length() - 1)
    sizes = {
        STAMPS_AT: num_pages,
        EXPIRIES_AT: timed,
        FOLLOWING_AT: half,
        PREVIOUS_AT: half,
        NODES_AT: (num_pages * NODE_FIELDS + 1) // 2,
        EXPIRY_LINKS_AT: timed,
        BUCKETS_AT: (buckets + 1) // 2,
        TOKENS_AT: (num_pages * page_size + 1) // 2,
    }
    header = np.zeros(PREFIX_SLOTS, np.int64)
    header[PAGES], header[PREFIX_PAGE_SIZE], header[POLICY] = num_pages, page_size, policy
    header[HASH_MASK], header[BUCKET_MASK], header[TOP] = -1, buckets - 1, -1
    at = COLUMNS_AT
    for slot, size in sizes.items():
        header[slot] = at
        at += size
    header[SLAB_END] = at
    return header


def empty_prefix(header: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the slab of an empty prefix cache with this header."""
    slab = np.zeros(header[SLAB_END], np.int64)
    slab[:PREFIX_SLOTS] = header
    slab[QUEUE_ENDS_AT:COLUMNS_AT] = -1
    arrays = prefix_arrays(slab)
    arrays.following_pages[:] = UNCACHED
    arrays.buckets[:] = -1
    return slab


def prefix_arrays(slab: NDArray[np.int64], header: NDArray[np.int64] | None = None) -> PrefixArrays:
    """Cut the named views out of the slab of a prefix cache; `header`: a copy of its own.

    A slab on the GPU needs one, or each size would be waited for.
    """
    at = (slab if header is None else header)[:PREFIX_SLOTS].tolist()
    n, size, buckets = at[PAGES], at[PREFIX_PAGE_SIZE], at[BUCKET_MASK] + 1

    def column(slot: int, count: int) -> NDArray[np.int32]:
        return slab[at[slot] : at[slot] + (count + 1) // 2].view(INT32)[:count]

    return PrefixArrays(
        slab=slab,
        header=slab[:PREFIX_SLOTS],
        stamps=slab[at[STAMPS_AT] : at[EXPIRIES_AT]],
        following_pages=column(FOLLOWING_AT, n),
        previous_pages=column(PREVIOUS_AT, n),
        nodes=column(NODES_AT, n * NODE_FIELDS).reshape(n, NODE_FIELDS),
        buckets=column(BUCKETS_AT, buckets),
        tokens=column(TOKENS_AT, n * size).reshape(n, size),
    )
