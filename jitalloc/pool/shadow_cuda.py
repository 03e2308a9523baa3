"""A pool of the GPU as the loops of the host see it: a lock, a clock, and owners they ask for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jitalloc._jit import BUSY_STATUS, wait_for_lock
from jitalloc.pool.loops.upkeep import upkeep_advance_cpu, upkeep_retire_cpu, upkeep_unlock_cpu
from jitalloc.pool.state import NUM_PAGES, STEP, PoolArrays, pool_arrays, pool_slab_words
from jitalloc.state import HEADER_SLOTS, LOCK, RETIRED


class PoolShadow:
    """Stands for the slab of a pool of the GPU wherever a loop of the host asks for one.

    The index of a prefix cache lives on the host, and so do its loops. Of the pool they need its
    sizes, a lock against each other, the step at which they run, and now and then how many owners
    some pages have. The step is that of a pool of the CPU after the same calls: the host counts
    what it launches and what it does itself, and brings the clock of the GPU up to date before the
    next launch that counts a step. Where a call failed there, or a CUDA graph ran, the host learns
    of it when it next waits.

    Attributes
    ----------
    slab : int64[...]
        As long as that of the pool. Apart from sizes, lock and step it says nothing between calls.
    there : int
        The step of the pool once all that was launched has run, as far as the host knows.
    """

    __slots__ = ("_arrays", "slab", "there")

    slab: NDArray[np.int64]
    _arrays: PoolArrays

    def __init__(self, header: NDArray[np.int64]) -> None:
        self.restart(header)

    def restart(self, header: NDArray[np.int64]) -> None:
        """Begin anew for a pool with this header; loops that were kept out are let in."""
        self.there = int(header[STEP])
        self._begin(header, int(header[NUM_PAGES]))

    def resize(self, num_pages: int) -> None:
        """Go on with so many pages, one step later; loops that were kept out are let in."""
        self.there += 1
        self.slab[STEP] += 1
        self._begin(self.slab, num_pages)

    def _begin(self, header: NDArray[np.int64], num_pages: int) -> None:
        slab = np.zeros(pool_slab_words(num_pages), np.int64)
        slab[:HEADER_SLOTS] = header[:HEADER_SLOTS]
        slab[NUM_PAGES], slab[LOCK] = num_pages, 0
        self._arrays = pool_arrays(slab)
        self.slab = slab

    @property
    def pending(self) -> int:
        """How many steps the host is ahead of what it has launched."""
        return int(self.slab[STEP]) - self.there

    def _locked(self, kernel: Any, *arguments: Any) -> None:
        """Run a kernel that takes the lock, waiting while another thread has it."""
        if kernel.run(self.slab, *arguments) == BUSY_STATUS:
            wait_for_lock(lambda: kernel.run(self.slab, *arguments))

    def start(self) -> None:
        """Follow a launch that is a step, and about to come."""
        self.advance(1)
        self.there += 1

    def meet(self, header: NDArray[np.int64]) -> None:
        """Follow what the GPU has done; `header`: that of the pool behind all launches."""
        missed = int(header[STEP]) - self.there
        if missed:
            self.advance(missed)
            self.there += missed

    def advance(self, steps: int) -> None:
        """Let the clock of the host go on by itself."""
        self._locked(upkeep_advance_cpu, steps)

    @property
    def owners(self) -> NDArray[np.int32]:
        """How many owners each page has, for loops to see and change; zero between calls."""
        return self._arrays.refcount

    @contextmanager
    def owned(self, pages: NDArray[np.int32], counts: NDArray[np.int32]) -> Iterator[None]:
        """Let loops see how many owners some pages have; those out of range are left out."""
        refcount = self._arrays.refcount
        known = pages[(pages >= 0) & (pages < refcount.size)]
        refcount[known] = counts[(pages >= 0) & (pages < refcount.size)]
        try:
            yield
        finally:
            refcount[known] = 0

    def retire(self) -> None:
        """Keep loops out until the pool has another shadow; a second time changes nothing."""
        if self.slab[LOCK] != RETIRED:
            self._locked(upkeep_retire_cpu)

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Keep loops out for the time of a `with` block."""
        self._locked(upkeep_retire_cpu)
        try:
            yield
        finally:
            upkeep_unlock_cpu.run(self.slab)
