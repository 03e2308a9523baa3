"""What pools and sequences look like at one moment: plain records, copies of the state."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class PoolStats:
    """What a pool looks like at one moment.

    Attributes
    ----------
    num_pages, page_size : int
    free : int
        Pages in the freelist.
    released : int
        Pages freed, but not yet merged into the freelist.
    used : int
        Pages that somebody holds (the null page not counted).
    reserved : int
        1 with a null page, else 0. `free + released + used + reserved == num_pages`.
    peak_used : int
        The most pages ever used at once.
    allocated, freed : int
        Pages handed out, and pages that came back, since the pool was made.
    merges : int
        How often released pages were merged.
    step : int
        The logical clock.
    longest_run : int
        Length of the longest run of consecutive free or released pages.
    fragmentation : float
        `1 - longest_run / (free + released)`; 0.0 where nothing is free.
    utilization : float
        `used / (num_pages - reserved)`.
    """

    num_pages: int
    page_size: int
    free: int
    released: int
    used: int
    reserved: int
    peak_used: int
    allocated: int
    freed: int
    merges: int
    step: int
    longest_run: int
    fragmentation: float
    utilization: float


@dataclass(frozen=True, slots=True)
class SequenceInfo:
    """What is known of one sequence at one moment.

    Attributes
    ----------
    seq_id : Hashable
    row : int
        Its row in the block table.
    num_tokens : int
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


@dataclass(frozen=True, slots=True)
class PrefixStats:
    """What a prefix cache was asked, and what became of its pages, since it was made.

    Attributes
    ----------
    lookups, tokens, pages : int
        Calls of `match`, and all tokens and whole pages that they asked for.
    hit_tokens, hit_pages : int
        How many of those were cached.
    inserted_pages : int
        Pages adopted.
    evicted_requested, evicted_pressure, evicted_cleared : int
        Pages that gave way to `evict`, to sequences that needed room, and to `clear`.
    """

    lookups: int
    tokens: int
    pages: int
    hit_tokens: int
    hit_pages: int
    inserted_pages: int
    evicted_requested: int
    evicted_pressure: int
    evicted_cleared: int
