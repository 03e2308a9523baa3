"""The arrays of a pool, its sizes and counters, and how kernels are run on it."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from jitalloc._jit import BUSY_STATUS, Kernel, wait_for_lock
from jitalloc.arguments import as_choice, as_count
from jitalloc.errors import InvalidArgument, InvalidPage, WrongDevice, page_error
from jitalloc.interrupts import uninterrupted
from jitalloc.kernels.upkeep import upkeep_clear_cpu
from jitalloc.moves import PageHolder
from jitalloc.on_device import OnDevice
from jitalloc.state import (
    FIRST_PAGE,
    FREE,
    NUM_PAGES,
    ORDER,
    ORDERS,
    PAGE_SHIFT,
    PAGE_SIZE,
    RELEASED,
    STEP,
    PoolArrays,
    page_shift,
    pool_arrays,
    pool_slab_words,
)

T = TypeVar("T")


class PoolSlab(OnDevice):
    """The part of `PagePool` that owns the arrays and runs kernels on them."""

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

    def __new__(
        cls,
        num_pages: int,
        page_size: int = 16,
        *,
        order: str = "sorted",
        device: str = "cpu",
        null_page: bool = False,
        stream: Any = None,
    ) -> Self:
        """Return a pool of the class that manages `device`."""
        return cls._on(device)

    def __init__(
        self,
        num_pages: int,
        page_size: int = 16,
        *,
        order: str = "sorted",
        device: str = "cpu",
        null_page: bool = False,
        stream: Any = None,
    ) -> None:
        order = as_choice("order", order, ORDERS)
        if not isinstance(device, str) or device != self.device:
            raise WrongDevice("device", device, f"this pool can live on {self.device!r} only")
        if not isinstance(null_page, bool):
            raise InvalidArgument("null_page", null_page, "must be a bool")
        num_pages = as_count("num_pages", num_pages, 1 + null_page)
        page_size = as_count("page_size", page_size, 1)
        self._choose(stream)
        slab = np.zeros(pool_slab_words(num_pages), np.int64)
        slab[NUM_PAGES] = num_pages
        slab[PAGE_SIZE] = page_size
        slab[PAGE_SHIFT] = page_shift(page_size)
        slab[ORDER] = ORDERS.index(order)
        slab[FIRST_PAGE] = int(null_page)
        slab[FREE] = num_pages - null_page
        upkeep_clear_cpu.run(slab)
        slab[STEP] = 0
        self.page_size = page_size
        self.order = order
        self.null_page = null_page
        self._group: Any = None
        self._shape = threading.RLock()  # held by who sizes a buffer by the pool, or resizes it
        self._holders: weakref.WeakSet[PageHolder] = weakref.WeakSet()
        self._install(slab)

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
        if status == BUSY_STATUS:  # the slab may be another one by and by
            status = wait_for_lock(lambda: kernel.run(self._slab, *args))
        return status

    @contextmanager
    def _everyone(self) -> Iterator[None]:
        """Keep the pool's size and the tables of all its holders as they are."""
        with ExitStack() as stack:
            for holder in sorted(self._holders, key=lambda each: each.rank):
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
