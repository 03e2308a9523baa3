"""The flat arrays behind cache slots: one row of the cache a request, and what is known of it.

Slab of a `SlotAllocator` of N slots, W = ceil(N / 64) words a bitmap, S = ceil(W / 64)::

    header      int64[16]    the scalars, by the constants below
    summary     uint64[S]    bit w: free[w] is not zero
    free        uint64[W]    bit s: slot s is free
    versions    int64[N]     how often the slot was taken so far

Invariants, between any two calls::

    popcount(free) == FREE_SLOTS;  no bit past slot N - 1, nor past word W - 1 in the summary
    summary bit w  <=>  free[w] != 0;  summary[s] == 0 for s < LOWEST
    N - FREE_SLOTS <= PEAK_SLOTS <= N;  versions[s] >= 1 where slot s is taken
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from jitalloc.state import HEADER_SLOTS, UINT64, words

# Header of a slot allocator; state.LOCK is the lock of both headers.
NUM_SLOTS: Final = 0
FREE_SLOTS: Final = 1
LOWEST: Final = 2  # no word of the summary below this one has a bit
PEAK_SLOTS: Final = 3  # most slots taken at once

# Calls on the GPU that the host does not wait for; `state.CALL_KINDS` of a slot allocator.
SLOT_CALL_KINDS: Final = ("alloc_batch", "free_batch")

# What `check` finds, and what it says. The detail is a header slot, a word, or a slot.
BAD_SLOT_HEADER: Final = 100
BAD_SLOT_BITMAP: Final = 101
BAD_SLOT_SUMMARY: Final = 102
BAD_SLOT_VERSION: Final = 103

SLOT_CORRUPT_REASONS: Final = {
    BAD_SLOT_HEADER: "slot header[{}] contradicts the arrays or the allocator's own sizes",
    BAD_SLOT_BITMAP: "free has bits past the last slot, or not header[FREE_SLOTS] of them ({})",
    BAD_SLOT_SUMMARY: "summary word {} contradicts the words of free that it sums up",
    BAD_SLOT_VERSION: "the version of slot {} is negative, or 0 though the slot is taken",
}


@dataclass(frozen=True, slots=True)
class SlotArrays:
    """Named views into a slot allocator's slab.

    Attributes
    ----------
    slab : int64[...]
        The one buffer that the others are views of.
    header : int64[16]
    summary : uint64[ceil(ceil(num_slots / 64) / 64)]
    free : uint64[ceil(num_slots / 64)]
    versions : int64[num_slots]
    """

    slab: NDArray[np.int64]
    header: NDArray[np.int64]
    summary: NDArray[np.uint64]
    free: NDArray[np.uint64]
    versions: NDArray[np.int64]


def slot_slab_words(num_slots: int) -> int:
    """Return the length of a slot allocator's slab in 8-byte words."""
    return HEADER_SLOTS + words(words(num_slots)) + words(num_slots) + num_slots


def slot_arrays(slab: NDArray[np.int64], num_slots: int) -> SlotArrays:
    """Cut the named views out of a slot allocator's slab."""
    n = num_slots
    free = HEADER_SLOTS + words(words(n))
    versions = free + words(n)
    return SlotArrays(
        slab=slab,
        header=slab[:HEADER_SLOTS],
        summary=slab[HEADER_SLOTS:free].view(UINT64),
        free=slab[free:versions].view(UINT64),
        versions=slab[versions:],
    )
