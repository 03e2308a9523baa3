"""The arrays of a pool: header slots, orders, and the invariants as equations.

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
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, get_args

import numpy as np
from numpy.typing import NDArray

from jitalloc.choices import Order
from jitalloc.state import HEADER_SLOTS, INT32, UINT64, words

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
# LOCK, the word 13, is the same in every slab: see `jitalloc.state`.

SORTED: Final = 0
FIFO: Final = 1
LIFO: Final = 2
ORDERS: Final[tuple[Order, ...]] = get_args(Order)


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
