"""A pool as a whole: arrays, sizes and lock, statistics, checks, resizing, packing, saving."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jitalloc._jit import BUSY_STATUS, Kernel, wait_for_lock
from jitalloc.arguments import as_choice, as_count, as_pages, check_bool
from jitalloc.choices import Device, Order
from jitalloc.errors import (
    CorruptState,
    InvalidArgument,
    InvalidPage,
    PageInUse,
    SnapshotError,
    corrupt_error,
    page_error,
    unpack_status,
)
from jitalloc.forking import keep_quiet
from jitalloc.interrupts import uninterrupted
from jitalloc.on_device import OnDevice, called
from jitalloc.pool.holders import Moves, PageHolder
from jitalloc.pool.loops import upkeep as kernels
from jitalloc.pool.loops.owners import owners_count_cpu
from jitalloc.pool.records import PoolSnapshot, PoolStats
from jitalloc.pool.state import (
    ALLOCATED,
    FIRST_PAGE,
    FREE,
    FREED,
    MERGES,
    NUM_PAGES,
    ORDER,
    ORDERS,
    PAGE_SHIFT,
    PAGE_SIZE,
    PEAK_USED,
    RELEASED,
    STEP,
    PoolArrays,
    pool_arrays,
    pool_slab_words,
)
from jitalloc.snapshot import read_state, write_state
from jitalloc.state import HEADER_SLOTS, INT32_MAX, LOCK, page_shift, words

T = TypeVar("T")

LOOKS = 20


class PoolUpkeep(OnDevice):
    """A pool as a whole: its arrays, and how kernels are run on them; what it does: `PagePool`."""

    __slots__ = (
        "__weakref__",
        "_group",
        "_holders",
        "_host",
        "_shape",
        "_slab",
        "arrays",
        "null_page",
        "num_pages",
        "order",
        "page_size",
    )

    @called("PagePool")
    def __new__(
        cls,
        num_pages: int,
        page_size: int = 16,
        *,
        order: Order = "sorted",
        device: Device = "cpu",
        null_page: bool = False,
        stream: Any = None,
    ) -> Self:
        """Return a pool of the class that manages `device`."""
        return cls._on(device)

    @called("PagePool")
    def __init__(
        self,
        num_pages: int,
        page_size: int = 16,
        *,
        order: Order = "sorted",
        device: Device = "cpu",
        null_page: bool = False,
        stream: Any = None,
    ) -> None:
        chosen = as_choice("order", order, ORDERS)
        self._check_device(device)
        check_bool("null_page", null_page)
        num_pages = as_count("num_pages", num_pages, 1 + null_page)
        page_size = as_count("page_size", page_size, 1)
        self._choose(stream)
        slab = np.zeros(pool_slab_words(num_pages), np.int64)
        slab[NUM_PAGES] = num_pages
        slab[PAGE_SIZE] = page_size
        slab[PAGE_SHIFT] = page_shift(page_size)
        slab[ORDER] = ORDERS.index(chosen)
        slab[FIRST_PAGE] = int(null_page)
        slab[FREE] = num_pages - null_page
        kernels.upkeep_clear_cpu.run(slab)
        slab[STEP] = 0
        self.page_size = page_size
        self.order: Order = chosen
        self.null_page = null_page
        self._group: Any = None  # a weak reference to the `FreeGroup` that is open
        self._shape = threading.RLock()  # held by who sizes a buffer by the pool, or resizes it
        self._holders: weakref.WeakSet[PageHolder] = weakref.WeakSet()
        self._install(slab)
        keep_quiet(self, lock=self._shape, slab="_host")

    def _choose(self, stream: Any) -> None:
        """Choose where the arrays will live, and the stream of the calls."""
        if stream is not None:
            raise InvalidArgument("stream", stream, "a pool on the 'cpu' has no stream")

    def _install(self, slab: NDArray[np.int64]) -> None:
        self.num_pages = int(slab[NUM_PAGES])
        self.arrays: PoolArrays = pool_arrays(slab)
        self._slab = slab
        self._host = slab  # what loops of a prefix cache are given, on whatever device the pool is

    def _run(self, kernel: Kernel, *args: Any) -> int:
        """Run `kernel` on the slab, waiting while another thread is inside the pool."""
        status: int = kernel.run(self._slab, *args)
        if status == BUSY_STATUS:  # a closure here would cost each call 27 ns
            status = wait_for_lock(self._once, kernel, *args)
        return status

    def _once(self, kernel: Kernel, *args: Any) -> int:
        status: int = kernel.run(self._slab, *args)
        return status

    @contextmanager
    def _everyone(self) -> Iterator[None]:
        """Keep the pool's size and the tables of all its holders as they are."""
        with ExitStack() as stack:
            # The newest first: a cache of sequences stands on a prefix cache made before it, and
            # its calls, which hold its own lock, may come to need that of the prefix cache.
            for holder in sorted(self._holders, key=lambda each: -each.rank):
                stack.enter_context(holder.lock)
            stack.enter_context(self._shape)
            yield

    def _uninterrupted(self, work: Callable[[], T]) -> T:
        """Run `work`, which changes the arrays of several holders, to its end whatever arrives."""
        return uninterrupted(work)

    def _page_error(self, status: int, pages: NDArray[np.int32]) -> InvalidPage:
        return page_error(status, pages, int(self.null_page), self.num_pages - 1)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(num_pages={self.num_pages}, page_size={self.page_size}, "
            f"order={self.order!r}, device={self.device!r}, null_page={self.null_page}): "
            f"{self.num_used} used, {self.num_free} free, {self.num_released} released"
        )

    @property
    def num_free(self) -> int:
        """Pages in the freelist; those in `num_released` can be allocated as well."""
        return int(self._slab[FREE])

    @property
    def num_released(self) -> int:
        """Pages that were freed and wait for `merge` (always 0 unless the order is `sorted`)."""
        return int(self._slab[RELEASED])

    @property
    def available(self) -> int:
        """Pages that can be allocated now: `num_free + num_released`."""
        return int(self._slab[FREE] + self._slab[RELEASED])

    @property
    def num_used(self) -> int:
        """Pages that somebody holds; the null page is not counted."""
        return self.num_pages - self.null_page - self.available

    @property
    def utilization(self) -> float:
        """Share of the pages in circulation that somebody holds, 0.0 to 1.0."""
        return self.num_used / (self.num_pages - self.null_page)

    @property
    def step(self) -> int:
        """The logical clock: successful calls that may have changed the pool so far."""
        return int(self._slab[STEP])

    def stats(self, *, runs: bool = True) -> PoolStats:
        """Return totals, counters and fragmentation, in O(num_pages); without `runs`, in O(1).

        Parameters
        ----------
        runs : bool
            Look at every page for the longest run of free ones. Nothing but a look can tell it,
            and between two steps of an engine it changes: so who asks at each step leaves it out.

        Returns
        -------
        PoolStats
            A copy: it does not follow the pool. Without `runs` its `longest_run` and
            `fragmentation` are None.

        Raises
        ------
        InvalidArgument
            `runs` is no bool.

        Examples
        --------
        >>> pool = jitalloc.PagePool(8)
        >>> pages = pool.alloc(4)
        >>> pool.free(pages[1:2])
        1
        >>> stats = pool.stats()
        >>> stats.used, stats.longest_run, stats.fragmentation
        (3, 4, 0.19999999999999996)
        """
        check_bool("runs", runs)
        header = np.empty(HEADER_SLOTS, np.int64)
        longest = self._run(kernels.upkeep_stats_cpu, header, int(runs))
        return self._stats_of(header, longest if runs else None)

    def _stats_of(self, words: NDArray[np.int64], longest: int | None) -> PoolStats:
        """Return the figures of a header; `longest`: the longest run, where it is known."""
        header: list[int] = words.tolist()
        free, released = header[FREE], header[RELEASED]
        reserved = int(self.null_page)
        num_pages = header[NUM_PAGES]
        used = num_pages - reserved - free - released
        fragmentation = None
        if longest is not None:
            fragmentation = 1 - longest / (free + released) if longest else 0.0
        return PoolStats(
            num_pages=num_pages,
            page_size=self.page_size,
            free=free,
            released=released,
            used=used,
            reserved=reserved,
            peak_used=header[PEAK_USED],
            allocated=header[ALLOCATED],
            freed=header[FREED],
            merges=header[MERGES],
            step=header[STEP],
            longest_run=longest,
            fragmentation=fragmentation,
            utilization=used / (num_pages - reserved),
        )

    def check(self, held: ArrayLike | None = None) -> None:
        """Verify every invariant page by page, in O(num_pages).

        Parameters
        ----------
        held : array_like of int32, optional
            The ids that the caller itself holds, each as often as it owns it. With it, the
            reference counts must equal these plus the block tables on this pool exactly.

        Raises
        ------
        CorruptState
            An invariant of `jitalloc.pool.state` is broken; the message names it and the page.
        """
        with self._everyone():
            self._check_sizes()
            seen = np.zeros(words(self.num_pages), np.uint64)
            status = self._run(kernels.upkeep_check_cpu, seen)
            if status < 0:
                raise corrupt_error(status)
            self._check_owners(held)

    def _check_sizes(self) -> None:
        sizes = {
            NUM_PAGES: self.num_pages,
            PAGE_SIZE: self.page_size,
            PAGE_SHIFT: page_shift(self.page_size),
            FIRST_PAGE: int(self.null_page),
            ORDER: ORDERS.index(self.order),
        }
        for slot, value in sizes.items():
            if self._slab[slot] != value:
                raise CorruptState(
                    f"pool header[{slot}] is {self._slab[slot]}, the pool has {value}"
                )

    def _check_owners(self, held: ArrayLike | None) -> None:
        # A prefix cache may change between the look at its pages and that at the counts, for its
        # calls take the pool's lock only: what is broken is so however often one looks.
        broken, owners, counts = self._look_at_owners(held)
        for _ in range(LOOKS):
            if not broken.any():
                return
            again, owners, counts = self._look_at_owners(held)
            broken &= again
        if broken.any():
            page = int(np.argmax(broken))
            raise CorruptState(
                f"refcount of page {page} is {counts[page]}, but it has {owners[page]} owners"
            )

    def _look_at_owners(
        self, held: ArrayLike | None
    ) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.int64]]:
        """Return which pages have a wrong count, their owners, and their counts."""
        owners = np.zeros(self.num_pages, np.int64)
        for holder in self._holders:
            owners += np.bincount(holder._held_pages(), minlength=self.num_pages)
        counts = self.arrays.refcount.astype(np.int64)
        counts[: int(self.null_page)] = 0
        if held is not None:
            owners += self._counted(held)
        return counts < owners if held is None else counts != owners, owners, counts

    def _counted(self, held: ArrayLike) -> NDArray[np.int64]:
        pages = as_pages(held)
        status = owners_count_cpu.run(self._slab, pages, np.empty(pages.size, np.int32))
        if status < 0:
            raise self._page_error(status, pages)
        return np.bincount(pages, minlength=self.num_pages)

    def _refuse_with_sequences(self, call: str) -> None:
        live = sum(len(holder) for holder in self._holders)
        if live:
            raise InvalidArgument(
                call, live, "sequences or cached prefixes live on this pool: use their own calls"
            )

    def clear(self) -> None:
        """Make every page free again, ids ascending in every order; the counters go on.

        Raises
        ------
        InvalidArgument
            Sequences of a `PagedKVCache` live on this pool.
        """
        self._refuse_with_sequences("clear")
        self._run(kernels.upkeep_clear_cpu)

    def resize(self, num_pages: int) -> None:
        """Grow or shrink the pool while it is in use; no page changes its id.

        New pages join the freelist behind all others. Pages at or past the new end that only a
        prefix cache holds, unlocked, give way, with the cached pages that follow them. `arrays` is
        made anew.

        Parameters
        ----------
        num_pages : int
            The new size.

        Raises
        ------
        PageInUse
            Somebody else holds a page at or past the new end (`defragment` packs them to the
            front). Nothing has given way.
        InvalidArgument
            `num_pages` is no size for a pool.
        """
        num_pages = as_count("num_pages", num_pages, 1 + self.null_page)
        slab = np.zeros(pool_slab_words(num_pages), np.int64)
        slab[NUM_PAGES] = num_pages

        def work() -> int:
            self._cut_off(num_pages)
            followers = [holder._resize_pages(num_pages) for holder in self._holders]
            status = self._run(kernels.upkeep_resize_cpu, slab)
            if status == 0:
                for follow in followers:  # before the new slab lets anybody in
                    follow()
                self._install(slab)
            return status

        with self._everyone():
            status = self._uninterrupted(work)
        if status < 0:
            page = unpack_status(status)[1]
            raise PageInUse("num_pages", num_pages, f"page {page} is held and would be cut off")

    def _cut_off(self, num_pages: int) -> None:
        """Let cached pages past the end of a smaller pool give way, if it can be had by that."""
        if num_pages < self.num_pages:
            for holder in self._holders:
                holder._give_up_past(num_pages)

    def defragment(self) -> Moves:
        """Pack the used pages to the lowest ids; block tables on this pool follow.

        The used pages behind the boundary move, in ascending order, to the free pages before
        it, in ascending order; each keeps its reference count. Afterwards nothing is released
        and the freelist ascends, whatever the order.

        Returns
        -------
        Moves
            The pages that moved. Ids that the caller holds itself have to be changed by it.
        """

        def work() -> Moves:
            # At most min(used, free) pages move, but both may change until the lock is ours.
            src, dst = np.empty(self.num_pages, np.int32), np.empty(self.num_pages, np.int32)
            count = self._run(kernels.upkeep_defragment_cpu, src, dst)
            moves = Moves(src[:count].copy(), dst[:count].copy())
            for holder in self._holders:
                holder._rename_pages(moves)
            kernels.upkeep_unlock_cpu.run(self._slab)
            return moves

        with self._everyone():
            return self._uninterrupted(work)

    def snapshot(self) -> PoolSnapshot:
        """Return a copy of the complete state, for `restore` or another pool."""
        with self._shape:
            slab = np.empty_like(self._slab)
            self._run(kernels.upkeep_copy_cpu, slab)
            slab.flags.writeable = False
            return PoolSnapshot(self.num_pages, self.page_size, self.order, self.null_page, slab)

    def restore(self, snapshot: PoolSnapshot) -> None:
        """Take over the complete state of `snapshot`, its sizes and order included.

        Parameters
        ----------
        snapshot : PoolSnapshot
            From `snapshot()` of this pool or another one.

        Raises
        ------
        InvalidArgument
            Sequences of a `PagedKVCache` live on this pool, or a cache without any stands on it
            whose page size or null page differs.
        """
        if not isinstance(snapshot, PoolSnapshot):
            raise InvalidArgument("snapshot", snapshot, "must be a PoolSnapshot")
        with self._everyone():
            self._refuse_with_sequences("restore")
            self._fits(snapshot)
            self._uninterrupted(lambda: self._take_over(snapshot))

    def _fits(self, snapshot: PoolSnapshot) -> None:
        mine, theirs = ((pool.page_size, pool.null_page) for pool in (self, snapshot))
        if self._holders and mine != theirs:
            raise InvalidArgument(
                "snapshot", theirs, f"a cache on this pool needs (page_size, null_page) = {mine}"
            )

    def _take_over(self, snapshot: PoolSnapshot, then: Callable[[], None] = lambda: None) -> None:
        """Take over `snapshot`; `then` runs just before anybody is let in again."""
        slab = snapshot.slab.copy()
        followers = [holder._resize_pages(snapshot.num_pages) for holder in self._holders]
        self._run(kernels.upkeep_retire_cpu)
        for follow in followers:
            follow()
        then()
        self.page_size = snapshot.page_size
        self.order = snapshot.order
        self.null_page = snapshot.null_page
        self._install(slab)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the complete state to one `.npz` file, in one step or not at all.

        Parameters
        ----------
        path : str or path-like
            Replaced where it exists.

        Raises
        ------
        OSError
            The file cannot be written; what was there before is untouched.
        """
        write_state(path, "PagePool", {}, {"pool": self.snapshot().slab})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Return a new pool with the state that `save` wrote.

        Parameters
        ----------
        path : str or path-like

        Returns
        -------
        PagePool

        Raises
        ------
        SnapshotError
            The file is truncated, damaged, foreign or of another version.
        """
        _facts, arrays = read_state(path, "PagePool", ("pool",))
        return cls._from_slab(arrays["pool"], path)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self)._revive, (self.snapshot().slab,)

    @classmethod
    def _revive(cls, slab: NDArray[np.int64]) -> Self:
        """Return a copy of a pool: what `pickle` and `copy` call."""
        return cls._from_slab(slab.copy(), "copy")

    @classmethod
    def _from_slab(cls, slab: NDArray[Any], path: str | os.PathLike[str]) -> Self:
        if slab.dtype != np.int64 or slab.ndim != 1 or slab.size <= STEP:
            raise SnapshotError(f"{path}: the pool's array has the wrong shape")
        sizes = [int(slab[i]) for i in (NUM_PAGES, PAGE_SIZE, ORDER, FIRST_PAGE)]
        limits = ((1, INT32_MAX), (1, INT32_MAX), (0, len(ORDERS) - 1), (0, 1))
        if any(not low <= s <= high for s, (low, high) in zip(sizes, limits, strict=True)):
            raise SnapshotError(f"{path}: the pool's header is out of range")
        if slab[LOCK] != 0:
            raise SnapshotError(f"{path}: the pool was locked when it was saved")
        if slab.size != pool_slab_words(sizes[0]):
            raise SnapshotError(f"{path}: the pool's array has the wrong length")
        pool = cls(1 + sizes[3], sizes[1], order=ORDERS[sizes[2]], null_page=bool(sizes[3]))
        pool._install(np.ascontiguousarray(slab))
        try:
            pool.check()
        except CorruptState as error:
            raise SnapshotError(f"{path}: the pool is corrupt: {error}") from error
        return pool
