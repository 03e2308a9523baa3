"""What a replay measures while it runs."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter_ns

import numpy as np
from numpy.typing import NDArray

from jitalloc.pool import PagePool
from jitalloc.prefix import PrefixCache
from jitalloc.replay.timeline import Timeline
from jitalloc.replay.transfers import Transfers
from jitalloc.sequences import PagedKVCache
from jitalloc.state import INT32


class Stopwatch:
    """Adds up the time in its `with` blocks, which do not nest; 40 to 75 ns each are its own.

    Attributes
    ----------
    spent : int
        Nanoseconds since somebody set it to zero.
    """

    __slots__ = ("_start", "spent")

    def __init__(self) -> None:
        self.spent = 0
        self._start = 0

    def __enter__(self) -> None:
        self._start = perf_counter_ns()

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        end = perf_counter_ns()  # before all else: what follows is not to be timed
        self.spent += end - self._start


@dataclass(slots=True)
class Meter:
    """Figures of one replay, filled in by the simulator.

    Attributes
    ----------
    pool : PagePool
    cache : PagedKVCache
    prefix : PrefixCache or None
    now : float
        Virtual time in seconds.
    seen, finished, rejected, preemptions : int
        Requests that arrived, were served to the end, or can never fit; sequences sent back.
    prompt_tokens, cached_tokens : int
        Tokens of prompts that were computed, and that were found in the cache instead.
    decode_tokens : int
        Tokens of responses.
    recomputed_tokens, restored_tokens : int
        Tokens of sequences that had been sent back: computed again, and found in the cache.
    lookup_tokens, lookup_hit_tokens, lookup_pages, lookup_hit_pages : int
        Tokens and whole pages of the prompts looked up for the first time (those that can
        never fit are looked up in vain), and what of that was found.
    calls : int
        Allocator calls.
    timed : Stopwatch
        Times them: `with meter.timed:` stands around each. Begins anew with each step.
    steps : array of int64
        Nanoseconds of allocator time, one entry a step.
    timeline : Timeline
    transfers : Transfers
    page_runs, page_runs_of : int
        Runs of consecutive page ids, and in how many sequences they were counted.
    held_time, cached_time, time : float
        Pages that sequences hold and pages cached beside them, each times how long they were
        that, and how long that is in all.
    held_peak, cached_peak : int
        The most of each.
    """

    pool: PagePool
    cache: PagedKVCache
    prefix: PrefixCache | None = None
    now: float = 0.0
    seen: int = 0
    finished: int = 0
    rejected: int = 0
    preemptions: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    decode_tokens: int = 0
    recomputed_tokens: int = 0
    restored_tokens: int = 0
    lookup_tokens: int = 0
    lookup_hit_tokens: int = 0
    lookup_pages: int = 0
    lookup_hit_pages: int = 0
    calls: int = 0
    timed: Stopwatch = field(default_factory=Stopwatch)
    steps: array[int] = field(default_factory=lambda: array("q"))
    timeline: Timeline = field(init=False)
    transfers: Transfers = field(init=False)
    page_runs: int = 0
    page_runs_of: int = 0
    held_time: float = 0.0
    cached_time: float = 0.0
    time: float = 0.0
    held_peak: int = 0
    cached_peak: int = 0

    def __post_init__(self) -> None:
        self.timeline = Timeline(self.pool)
        self.transfers = Transfers(self.pool)

    @property
    def reclaimable(self) -> int:
        """Cached pages that no sequence holds: they give way when pages run short."""
        return 0 if self.prefix is None else self.prefix.num_evictable

    @property
    def obtainable(self) -> int:
        """Pages that can be had: free ones, and cached ones that would give way."""
        return self.pool.available + self.reclaimable

    def look_up(self, tokens: int, length: int, cached: int) -> None:
        """Count the first look-up of a prompt of `tokens`, looked up as `length` tokens."""
        size = self.pool.page_size
        found = min(cached, tokens)
        self.lookup_tokens += tokens
        self.lookup_hit_tokens += found
        self.lookup_pages += length // size
        self.lookup_hit_pages += cached // size
        self.timeline.look_up(tokens, found)

    def hold(self, start: float, length: float, running: int, waiting: int) -> None:
        """Count the pages in use now as in use from `start` for `length`."""
        cached = self.reclaimable
        held = self.pool.num_used - cached
        self.held_time += held * length
        self.cached_time += cached * length
        self.time += length
        self.held_peak = max(self.held_peak, held)
        self.cached_peak = max(self.cached_peak, cached)
        self.timeline.add(start, length, (held, cached, running, waiting))

    def end_step(self) -> None:
        """Close a step: what the allocator took since the last one is its time."""
        self.steps.append(self.timed.spent)
        self.timed.spent = 0

    def count_runs(self, rows: Sequence[int] | NDArray[np.int32]) -> None:
        """Count the runs of consecutive page ids in the sequences of `rows`."""
        table = self.cache.page_table_csr(self.transfers.up(np.array(rows, INT32)))
        pages, indptr = (self.transfers.down(each) for each in (table.indices, table.indptr))
        if pages.size:
            starts = np.ones(pages.size, bool)
            starts[1:] = pages[1:] != pages[:-1] + 1
            first = indptr[:-1]
            starts[first[first < pages.size]] = True
            self.page_runs += int(np.count_nonzero(starts))
        self.page_runs_of += len(rows)
