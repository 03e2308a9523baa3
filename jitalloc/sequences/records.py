"""What sequences look like at one moment: plain records, copies of the state."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class SequenceInfo:
    """What is known of one sequence at one moment.

    Attributes
    ----------
    seq_id : Hashable
    row : int
        Its row in the block table.
    num_tokens : int
    num_computed : int
        How many of them, from the first on, count as computed: their keys and values are written.
    pages : int32[ceil(num_tokens / page_size)]
        Its page ids in order (a copy).
    shared_pages : int
        How many of them have other owners as well.
    last_used : int
        The pool's step of the last call that wrote to it.
    uses : int
        How many such calls there were.
    priority : int
    pinned : bool
    """

    seq_id: Hashable
    row: int
    num_tokens: int
    num_computed: int
    pages: NDArray[np.int32]
    shared_pages: int
    last_used: int
    uses: int
    priority: int
    pinned: bool


@dataclass(frozen=True, slots=True)
class SequenceStats:
    """What the sequences of a cache look like, and what happened to them.

    Attributes
    ----------
    active, peak_active : int
        Sequences now, and the most at once.
    tokens : int
        Tokens of all sequences; those of shared pages count for each.
    allocations, frees, forks, copies, evictions : int
        Sequences made (forks by `fork` among them) and ended, forks, pages copied on write,
        sequences evicted or cut, since the cache was made.
    tokens_dropped : int
        Tokens that evictions and windows dropped.
    free_pages : int
        Pages of the pool that are free or released.
    reclaimable_pages : int
        Pages that only the prefix cache holds and nobody locks: they give way on demand.
    held_pages : int
        All other pages in circulation. The three make up the pool without its null page.
    """

    active: int
    peak_active: int
    tokens: int
    allocations: int
    frees: int
    forks: int
    copies: int
    evictions: int
    tokens_dropped: int
    free_pages: int
    reclaimable_pages: int
    held_pages: int
