"""What a replay measures while it runs."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from jitalloc.pool import PagePool
from jitalloc.replay.timeline import Timeline
from jitalloc.sequences import PagedKVCache


@dataclass(slots=True)
class Meter:
    """Figures of one replay, filled in by the simulator.

    Attributes
    ----------
    pool : PagePool
    cache : PagedKVCache
    now : float
        Virtual time in seconds.
    seen, finished, rejected, preemptions : int
        Requests that arrived, were served to the end, or can never fit; sequences sent back.
    prompt_tokens, decode_tokens, recomputed_tokens : int
        Tokens computed: of prompts, of responses, and again after a preemption.
    calls, spent : int
        Allocator calls, and nanoseconds in them since the last step ended.
    steps : array of int64
        Nanoseconds of allocator time, one entry a step.
    timeline : Timeline
    page_runs, page_runs_of : int
        Runs of consecutive page ids, and in how many sequences they were counted.
    page_time, time : float
        Pages in use times how long they were, and how long that is in all.
    """

    pool: PagePool
    cache: PagedKVCache
    now: float = 0.0
    seen: int = 0
    finished: int = 0
    rejected: int = 0
    preemptions: int = 0
    prompt_tokens: int = 0
    decode_tokens: int = 0
    recomputed_tokens: int = 0
    calls: int = 0
    spent: int = 0
    steps: array[int] = field(default_factory=lambda: array("q"))
    timeline: Timeline = field(init=False)
    page_runs: int = 0
    page_runs_of: int = 0
    page_time: float = 0.0
    time: float = 0.0

    def __post_init__(self) -> None:
        self.timeline = Timeline(self.pool)

    def hold(self, start: float, length: float, running: int, waiting: int) -> None:
        """Count the pages in use now as in use from `start` for `length`."""
        used = self.pool.num_used
        self.page_time += used * length
        self.time += length
        self.timeline.add(start, length, used, running, waiting)

    def end_step(self) -> None:
        """Close a step: what the allocator took since the last one is its time."""
        self.steps.append(self.spent)
        self.spent = 0

    def count_runs(self, rows: NDArray[np.int32]) -> None:
        """Count the runs of consecutive page ids in the sequences of `rows`."""
        table = self.cache.page_table_csr(rows)
        pages = table.indices
        if pages.size:
            starts = np.ones(pages.size, bool)
            starts[1:] = pages[1:] != pages[:-1] + 1
            first = table.indptr[:-1]
            starts[first[first < pages.size]] = True
            self.page_runs += int(np.count_nonzero(starts))
        self.page_runs_of += len(rows)
