"""The flat arrays of a slot prefix cache: which slot holds which tokens.

Slab of a `SlotPrefixCache` of N entries of up to M tokens, T = a power of two, at least 4 N::

    header      int64[32]
    entries     int64[N, ENTRY_COLUMNS]    a line of the processor's cache each
    nodes       int32[2 N, NODE_COLUMNS]   half a line each
    table       int64[T, 2]                (key, value), open addressing; key 0: nothing here
    tokens      int32[N, M]                row e: the tokens of entry e

The entries hang in a compressed radix tree. A node stands for the prefix of DEPTH tokens that
all entries below it share; the text of its edge is not stored anew, any entry below has it.
Tokens lie in rows of fixed width rather than in an arena, since rows need no compaction, and
memory that was never written costs nothing: the operating system brings it in by the page.

The table finds the child of a node by the first token of its edge, and the entry of a slot.
Its keys are `(node + 1) << 32 | token` and `(2 N + 1) << 32 | slot`.

Invariants, between any two calls::

    a node is the root (0), or has an entry, or has two children or more; NODES <= 2 N
    NODE_NEWEST is the entry below (or at) the node that was used last
    the children of a node, from NODE_CHILD by NODE_FOLLOWING, descend strictly by its ENTRY_CLOCK
    the queue from OLDEST by ENTRY_FOLLOWING to LATEST holds each entry without pins, ENTRY_CLOCK
        ascends strictly; an entry with pins is not in it
    the table holds NODES - 1 children and ENTRIES slots, nothing else
    an entry or node given back waits on its stack; those from *_USED on were never taken
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from jitalloc.state import INT32

# Header; state.LOCK lies between.
CAPACITY: Final = 0
MAX_TOKENS: Final = 1
TABLE_BITS: Final = 2  # T == 1 << TABLE_BITS
ENTRIES: Final = 3
PINNED_ENTRIES: Final = 4
OLDEST: Final = 5  # ends of the queue, NIL where it is empty
LATEST: Final = 6
FREE_ENTRY: Final = 7  # tops of the stacks, NIL where they are empty
ENTRIES_USED: Final = 8
FREE_NODE: Final = 9
NODES_USED: Final = 10
NODES: Final = 11
CLOCK: Final = 12  # uses so far: each gets a number of its own
LOOKUPS: Final = 14
HITS: Final = 15
TOKENS_ASKED: Final = 16
TOKENS_FOUND: Final = 17
INSERTIONS: Final = 18
SLOT_EVICTIONS: Final = 19
PREFIX_HEADER_SLOTS: Final = 32

NIL: Final = -1  # no entry, no node, no value
GONE: Final = -2  # ENTRY_NODE or NODE_PARENT of what was given back
ROOT: Final = 0

ENTRY_CLOCK: Final = 0  # when it was used last
ENTRY_SLOT: Final = 1
ENTRY_VERSION: Final = 2
ENTRY_LENGTH: Final = 3  # tokens
ENTRY_PINS: Final = 4
ENTRY_NODE: Final = 5
ENTRY_FOLLOWING: Final = 6  # in the queue: used after this one
ENTRY_PREVIOUS: Final = 7
ENTRY_COLUMNS: Final = 8

NODE_PARENT: Final = 0
NODE_DEPTH: Final = 1
NODE_NEWEST: Final = 2
NODE_ENTRY: Final = 3  # the entry that ends here, or NIL
NODE_CHILD: Final = 4  # the child whose newest entry is the newest
NODE_FOLLOWING: Final = 5  # among siblings: the one used before this one
NODE_PREVIOUS: Final = 6
NODE_TOKEN: Final = 7  # first token of the edge from the parent
NODE_COLUMNS: Final = 8

# What `check` finds, and what it says. The detail is a header slot, an entry or a node.
BAD_SLOT_PREFIX_HEADER: Final = 104
BAD_ENTRY: Final = 105
BAD_ENTRY_TOKENS: Final = 106
BAD_ENTRY_STACK: Final = 107
BAD_SLOT_QUEUE: Final = 108
BAD_SLOT_NODE: Final = 109
BAD_NODE_STACK: Final = 110
BAD_NODE_NEWEST: Final = 111
BAD_SLOT_CHILDREN: Final = 112
BAD_TABLE: Final = 113


SLOT_PREFIX_CORRUPT_REASONS: Final = {
    BAD_SLOT_PREFIX_HEADER: "prefix header[{}] contradicts the arrays or the cache's own sizes",
    BAD_ENTRY: "a column of entry {} is out of its range, or its node or slot leads elsewhere",
    BAD_ENTRY_TOKENS: "the tokens of entry {} are not those of its node",
    BAD_ENTRY_STACK: "the stack of free entries is broken at entry {}",
    BAD_SLOT_QUEUE: "the queue is broken at entry {}",
    BAD_SLOT_NODE: "a column of node {} is out of its range, or the node should not be there",
    BAD_NODE_STACK: "the stack of free nodes is broken at node {}",
    BAD_NODE_NEWEST: "node {} does not name the entry used last below it",
    BAD_SLOT_CHILDREN: "the children of node {} are not linked in the order of their use",
    BAD_TABLE: "the table holds {} keys, or does not lead to every node and slot",
}


@dataclass(frozen=True, slots=True)
class SlotPrefixArrays:
    """Named views into a slot prefix cache's slab.

    Attributes
    ----------
    slab : int64[...]
    header : int64[32]
    entries : int64[capacity, ENTRY_COLUMNS]
    nodes : int32[2 * capacity, NODE_COLUMNS]
    table : int64[1 << TABLE_BITS, 2]
    tokens : int32[capacity, max_tokens]
    """

    slab: NDArray[np.int64]
    header: NDArray[np.int64]
    entries: NDArray[np.int64]
    nodes: NDArray[np.int32]
    table: NDArray[np.int64]
    tokens: NDArray[np.int32]


def table_bits(capacity: int) -> int:
    """Return log2 of the table's length; it is never more than three quarters full."""
    return (4 * capacity - 1).bit_length()


def slot_prefix_rows(capacity: int) -> int:
    """Return the word of the slab at which the tokens begin."""
    records = capacity * (ENTRY_COLUMNS + NODE_COLUMNS)
    return PREFIX_HEADER_SLOTS + records + (2 << table_bits(capacity))


def slot_prefix_slab_words(capacity: int, max_tokens: int) -> int:
    """Return the length of a slot prefix cache's slab in 8-byte words."""
    return slot_prefix_rows(capacity) + (capacity * max_tokens + 1) // 2


def slot_prefix_arrays(slab: NDArray[np.int64], capacity: int, max_tokens: int) -> SlotPrefixArrays:
    """Cut the named views out of a slot prefix cache's slab."""
    n, width = capacity, max_tokens
    nodes = PREFIX_HEADER_SLOTS + n * ENTRY_COLUMNS
    table = nodes + n * NODE_COLUMNS
    tokens = slot_prefix_rows(n)
    return SlotPrefixArrays(
        slab=slab,
        header=slab[:PREFIX_HEADER_SLOTS],
        entries=slab[PREFIX_HEADER_SLOTS:nodes].reshape(n, ENTRY_COLUMNS),
        nodes=slab[nodes:table].view(INT32).reshape(2 * n, NODE_COLUMNS),
        table=slab[table:tokens].reshape(-1, 2),
        tokens=slab[tokens:].view(INT32)[: n * width].reshape(n, width),
    )
