"""A pool on the GPU as a whole: its arrays, its complete state, its size, its first failure."""

from __future__ import annotations

import itertools
import os
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from jitalloc.arguments import as_count, check_bool
from jitalloc.errors import CorruptState, JitallocError
from jitalloc.gpu.arguments import as_device_out
from jitalloc.gpu.kernel import CudaKernel
from jitalloc.gpu.record import FAULT_WANTED, RECORD_SLOTS
from jitalloc.gpu.slab import CudaSlab
from jitalloc.pool.faults_cuda import fault_error
from jitalloc.pool.holders import Moves
from jitalloc.pool.loops.merging_cuda import scratch_words
from jitalloc.pool.loops.upkeep_cuda import (
    upkeep_advance_cuda,
    upkeep_clear_cuda,
    upkeep_defragment_cuda,
    upkeep_resize_cuda,
)
from jitalloc.pool.pool import PagePool
from jitalloc.pool.records import PoolSnapshot, PoolStats
from jitalloc.pool.shadow_cuda import PoolShadow
from jitalloc.pool.state import FREE, NUM_PAGES, RELEASED, STEP, pool_arrays, pool_slab_words
from jitalloc.pool.upkeep import PoolUpkeep
from jitalloc.state import INT32, INT64

T = TypeVar("T")


class CudaPoolUpkeep(CudaSlab, PoolUpkeep):
    """A pool on the GPU as a whole; what it does: `CudaPagePool`.

    Where a prefix cache stands on the pool, loops of the host follow it by a `PoolShadow`.
    """

    __slots__ = (
        "_gpu",
        "_group_numbers",
        "_groups",
        "_lock",
        "_record",
        "_shadow",
        "_state",
        "_words",
    )

    _groups: dict[int, list[int]]  # by number: the sizes of their calls, until somebody waits
    _group_numbers: Iterator[int]

    def _choose(self, stream: Any) -> None:
        super()._choose(stream)
        self._shadow: PoolShadow | None = None

    def _install(self, slab: NDArray[np.int64]) -> None:
        num_pages = int(slab[NUM_PAGES])
        self._groups, self._group_numbers = {}, itertools.count(1)
        self._put(slab, scratch_words(num_pages, self.order))
        self._name_arrays(num_pages)
        if self._shadow is not None:
            self._shadow.restart(slab)
            self._host = self._shadow.slab

    def _name_arrays(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self.arrays = pool_arrays(self._slab, num_pages)

    def _uninterrupted(self, work: Callable[[], T]) -> T:
        carried: Callable[[], T] = self._gpu.carried(work)
        return super()._uninterrupted(carried)

    def _fault(self, record: NDArray[np.int64]) -> JitallocError:
        self._meet(record)
        calls = self._groups.get(int(record[FAULT_WANTED]))
        self._groups.clear()
        return fault_error(record, self.page_size, self.null_page, self.num_pages, calls)

    def _settled(self) -> NDArray[np.int64]:
        known: list[int] = []
        launched = None
        if self._groups or self._shadow is not None:
            with self._calls:  # all of these have been launched
                known = list(self._groups)
                launched = self._bring_time()
        words = super()._settled()
        if launched is not None:
            with self._calls:
                self._meet(words, launched)
        for each in known:  # they all went well
            self._groups.pop(each, None)
        return words

    def _header(self) -> NDArray[np.int64]:
        """Wait, raise the first failure, or return the header of the pool."""
        return self._settled()[RECORD_SLOTS:]

    @property
    def num_free(self) -> int:
        """Pages in the freelist. Waits for the GPU."""
        return int(self._header()[FREE])

    @property
    def num_released(self) -> int:
        """Pages that were freed and wait for `merge`. Waits for the GPU."""
        return int(self._header()[RELEASED])

    @property
    def available(self) -> int:
        """Pages that can be allocated now. Waits for the GPU."""
        header = self._header()
        return int(header[FREE] + header[RELEASED])

    @property
    def step(self) -> int:
        """The logical clock: successful calls so far that may change the pool. Waits."""
        return int(self._header()[STEP])

    def _cast(self) -> PoolShadow:
        """Let loops of the host see the pool, and return how. Waits, the first time."""
        if self._shadow is None:
            self._shadow = PoolShadow(self._settled()[RECORD_SLOTS:])
            self._host = self._shadow.slab
        return self._shadow

    def _bring_time(self) -> int | None:
        """Let the clock of the GPU count the steps of the host, unless its stream is captured.

        Returns the step of the pool once all that was launched has run. Within the lock of calls.
        """
        shadow = self._shadow
        if shadow is None:
            return None
        if shadow.pending and not self._gpu.capturing():
            steps = shadow.pending
            self._gpu.launch(upkeep_advance_cuda, 1, 1, *self._state, steps)
            shadow.there += steps
        return shadow.there

    def _tick(self, kernel: CudaKernel) -> None:
        if self._shadow is not None and kernel.step:
            self._bring_time()
            self._shadow.start()

    def _meet(self, words: NDArray[np.int64], launched: int | None = None) -> None:
        """Follow a record and header that have come down, within the lock of calls.

        `launched`: what `_bring_time` has returned, where others may have launched since: then
        what came down tells nothing.
        """
        if self._shadow is not None and launched in (None, self._shadow.there):
            self._shadow.meet(words[RECORD_SLOTS:])

    def _copy_on_cpu(self) -> PagePool:
        """Wait, raise the first failure, or return a pool of the CPU in the same state."""
        with self._calls:
            self._settled()
            slab = self._gpu.download(self._slab)
        if slab[NUM_PAGES] != self.num_pages:
            raise CorruptState(
                f"pool header[{NUM_PAGES}] is {slab[NUM_PAGES]}, the pool has {self.num_pages}"
            )
        pool = PagePool(
            1 + self.null_page, self.page_size, order=self.order, null_page=self.null_page
        )
        pool._install(slab)
        pool._holders = weakref.WeakSet(self._holders)  # who are asked for the pages that they hold
        return pool

    def clear(self) -> None:
        """Make every page free again, ids ascending in every order: see `PagePool.clear`.

        Waits for the GPU where there are caches on the pool, to see that they hold nothing.
        """
        self._refuse_with_sequences("clear")
        self._start(upkeep_clear_cuda, self.num_pages)

    def stats(self, *, runs: bool = True) -> PoolStats:
        """Return totals, counters and fragmentation: see `PagePool.stats`. Waits for the GPU.

        With `runs` it copies the state, without them only the header.
        """
        check_bool("runs", runs)
        if runs:
            return self._copy_on_cpu().stats()
        return self._stats_of(self._settled()[RECORD_SLOTS:], None)

    def check(self, held: Any = None) -> None:
        """Raise the first failure, or verify every invariant page by page: see `PagePool.check`.

        Waits for the GPU and copies the state. `held` may lie on either side.
        """
        pool = self._copy_on_cpu()
        if hasattr(held, "__cuda_array_interface__"):
            held = self._gpu.download(self._gpu.adopt("held", held))
        pool.check(held)

    def snapshot(self) -> PoolSnapshot:
        """Return a copy of the complete state on the CPU, for pools of any device. Waits."""
        return self._copy_on_cpu().snapshot()

    def _take_over(self, snapshot: PoolSnapshot, then: Callable[[], None] = lambda: None) -> None:
        self._gpu.wait()  # while a stream is captured, it is refused before anything has changed
        followers = [holder._resize_pages(snapshot.num_pages) for holder in self._holders]
        for follow in followers:
            follow()
        then()
        self.page_size = snapshot.page_size
        self.order = snapshot.order
        self.null_page = snapshot.null_page
        self._install(snapshot.slab)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Return a new pool on the GPU with the state that `save` wrote: see `PagePool.load`."""
        saved = PagePool.load(path).snapshot()
        pool = cls(1 + saved.null_page, saved.page_size, device="cuda", null_page=saved.null_page)
        pool.restore(saved)
        return pool

    def resize(self, num_pages: int) -> None:
        """Grow or shrink the pool; waits for the GPU: see `PagePool.resize`."""
        num_pages = as_count("num_pages", num_pages, 1 + self.null_page)
        scratch = scratch_words(num_pages, self.order)
        words = np.zeros(RECORD_SLOTS + pool_slab_words(num_pages) + scratch, np.int64)
        words[RECORD_SLOTS + NUM_PAGES] = num_pages

        def change() -> None:
            followers = [holder._resize_pages(num_pages) for holder in self._holders]
            new = self._gpu.keep(words)
            self._start(upkeep_resize_cuda, 0, new[RECORD_SLOTS:])
            self._settled()
            for follow in followers:
                follow()
            if self._shadow is not None:
                self._shadow.resize(num_pages)
                self._host = self._shadow.slab
            new[:RECORD_SLOTS] = self._record
            self._use(new, scratch)
            self._settled()  # there for every stream
            self._name_arrays(num_pages)

        def work() -> None:
            with self._calls:
                change()

        with self._everyone():
            with self._calls:  # in this thread: what makes room takes the locks that it holds
                self._settled()
                self._cut_off(num_pages)
            self._uninterrupted(work)

    def defragment(self, *, src: Any = None, dst: Any = None, out: Any = None) -> Moves:
        """Pack the used pages to the lowest ids: see `PagePool.defragment`.

        Waits for the GPU where there are caches on the pool, whose pages have to follow.

        Parameters
        ----------
        src, dst : int32[any], optional
            Buffers for the pages that move, NULL behind the last; half of the pool is enough.
            Without both the call waits for the GPU, to learn how many there are.
        out : int64[1], optional
            Buffer for how many move.
        """
        gpu, half = self._gpu, self.num_pages // 2
        brought = src is not None and dst is not None
        src = as_device_out(gpu, "src", src, INT32, half if src is None else None)
        dst = as_device_out(gpu, "dst", dst, INT32, half if dst is None else None)
        count = as_device_out(gpu, "out", out, INT64, 1)

        def work() -> Moves:
            with self._calls:
                self._settled()  # what failed before is raised before pages move
                self._start(upkeep_defragment_cuda, 0, src, dst, count)
                self._settled()
                moved = int(gpu.download(count)[0])
                moves = Moves(src[:moved], dst[:moved])
                for holder in self._holders:
                    holder._rename_pages(moves)
            return moves

        if brought and not self._holders:
            self._start(upkeep_defragment_cuda, 0, src, dst, count)
            return Moves(src, dst)
        with self._everyone():
            moves = self._uninterrupted(work)
        return Moves(src, dst) if brought else moves
