"""What every part shares: dtypes, `NULL`, the header of a slab and its lock.

Each part (a pool, its tables, a prefix cache, slots) lives in one `int64` buffer, its *slab*: a
header of `HEADER_SLOTS` words, then the columns one behind the other. Kernels get the slab whole
(one array costs 0.17 us to hand over, six cost 0.41 us) and cut views out of it; people get the
same views by name. The layout of each stands with it, and the invariants as equations above the
arrays: `jitalloc.pool.state`, `jitalloc.sequences.state`, `jitalloc.prefix.state`,
`jitalloc.slots.state`, `jitalloc.slots.prefix_state`.
"""

from __future__ import annotations

from typing import Final

import numpy as np

INT32: Final = np.dtype(np.int32)
INT64: Final = np.dtype(np.int64)
UINT64: Final = np.dtype(np.uint64)
NO_TOKENS: Final = np.empty(0, np.int32)
INT32_MAX: Final = 2**31 - 1

NULL: Final = -1
"""Page id that names no page."""

HEADER_SLOTS: Final = 16
WORD_BITS: Final = 64

LOCK: Final = 13  # of each header; 0: nobody is inside; 1: a kernel is
RETIRED: Final = 2  # another slab has taken the place of this one
FORKING: Final = 3  # the process is being copied


def words(bits: int) -> int:
    """Return how many 64-bit words hold `bits` bits."""
    return (bits + WORD_BITS - 1) // WORD_BITS


def page_shift(page_size: int) -> int:
    """Return log2(page_size), or -1 where `page_size` is no power of two."""
    return page_size.bit_length() - 1 if page_size & (page_size - 1) == 0 else -1
