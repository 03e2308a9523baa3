"""Who holds a page: sharing, freeing, reference counts."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jitalloc._jit import BUSY_STATUS
from jitalloc.arguments import as_lengths, as_pages
from jitalloc.errors import InvalidPage, NestedFreeGroup, argument_error
from jitalloc.kernels.owners import (
    owners_count_cpu,
    owners_free_cpu,
    owners_free_slots_cpu,
    owners_share_cpu,
)
from jitalloc.state import INT32
from jitalloc.upkeep import PoolUpkeep


class FreeGroup:
    """Frees that wait for the end of a `with` block (see `PageOwners.free_group`).

    Attributes
    ----------
    released : int
        After the block: how many pages were released by it.
    """

    __slots__ = ("__weakref__", "_gathered", "_pool", "_thread", "released")

    def __init__(self, pool: PageOwners) -> None:
        self._pool = pool
        self._gathered: list[NDArray[np.int32]] = []
        self._thread = 0
        self.released = 0

    def __enter__(self) -> Self:
        if self._pool._open_group() is not None:
            raise NestedFreeGroup("a free_group is open on this pool already")
        self._thread = threading.get_ident()
        # Weakly: an interruption between here and the block leaves nobody to close the group.
        self._pool._group = weakref.ref(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool._group = None
        gathered, self._gathered = self._gathered, []
        if gathered:
            self.released = self._pool._free_gathered(gathered)

    def _is_mine(self) -> bool:
        """Return whether the calling thread opened the group."""
        return self._thread == threading.get_ident()

    def _gather(self, pages: NDArray[np.int32]) -> None:
        """Keep `pages`, a copy of the caller's, for the end of the block."""
        self._gathered.append(pages)


def group_error(error: InvalidPage, sizes: Sequence[int]) -> InvalidPage:
    """Return the error of a group whose calls had `sizes`, with its call and the position there."""
    call, position = 0, error.position or 0
    while position >= sizes[call]:
        position -= sizes[call]
        call += 1
    name = f"pages (free call {call} of the group)"
    return type(error)(name, error.value, error.expected, position)


class PageOwners(PoolUpkeep):
    """The part of `PagePool` that counts who holds a page."""

    __slots__ = ()

    def share(self, pages: ArrayLike) -> None:
        """Add one owner to each page, all or nothing.

        Parameters
        ----------
        pages : array_like of int32[n]
            Held pages; one named twice gets two owners.

        Raises
        ------
        InvalidPage
            A page is out of range, reserved or free.
        InvalidArgument, WrongDevice
            `pages` is no flat array of integers on the CPU.

        Examples
        --------
        >>> pool = jitalloc.PagePool(4)
        >>> pages = pool.alloc(2)
        >>> pool.share(pages)
        >>> pool.free(pages), pool.free(pages)
        (0, 2)
        """
        pages = as_pages(pages)
        status = self._run(owners_share_cpu, pages)
        if status < 0:
            raise self._page_error(status, pages)

    def free(self, pages: ArrayLike) -> int:
        """Take one owner off each page, all or nothing; pages without owners are released.

        Parameters
        ----------
        pages : array_like of int32[n]
            A page may be named as often as it has owners.

        Returns
        -------
        int
            How many pages were released (0 inside a `free_group`, which releases at its end).

        Raises
        ------
        DoubleFree
            A page is free already, or is named more often than it has owners.
        InvalidPage
            A page is out of range or reserved.
        InvalidArgument, WrongDevice
            `pages` is no flat array of integers on the CPU.

        Notes
        -----
        The cost does not depend on the size of the pool. In the order `sorted`, released pages
        wait in a bitmap until `merge`; in `fifo` and `lifo` they can be allocated at once.

        Examples
        --------
        >>> pool = jitalloc.PagePool(4)
        >>> pages = pool.alloc(2)
        >>> pool.free(pages)
        2
        >>> pool.free(pages)
        Traceback (most recent call last):
        jitalloc.errors.DoubleFree: pages[0] = 0: freed more often than it has owners
        """
        try:
            fast = pages.dtype is INT32 and pages.ndim == 1  # type: ignore[union-attr]
        except AttributeError:
            fast = False
        if not fast:
            pages = as_pages(pages)
        if self._group is not None:
            group = self._open_group()
            if group is not None and group._is_mine():
                group._gather(as_pages(pages).copy())
                return 0
        try:
            status: int = owners_free_cpu.run(self._slab, pages)
        except TypeError:  # an array of another library: as_pages says what is wrong with it
            pages = as_pages(pages)
            status = owners_free_cpu.run(self._slab, pages)
        if status < 0:
            if status == BUSY_STATUS:
                status = self._run(owners_free_cpu, pages)
            if status < 0:
                raise self._page_error(status, as_pages(pages))
        return status

    def _open_group(self) -> FreeGroup | None:
        group: FreeGroup | None = None if self._group is None else self._group()
        return group

    def free_group(self) -> FreeGroup:
        """Gather the frees of a `with` block and release them by one call at its end.

        Inside the block `free` copies the ids and returns 0. At the end all are freed, all or
        nothing. If the block raises, what was gathered before is released all the same. Frees
        by other threads are not gathered.

        Returns
        -------
        FreeGroup
            For one `with` statement; `released` says afterwards how many pages went free.

        Raises
        ------
        NestedFreeGroup
            On entering the block: a group is open on this pool already.
        DoubleFree, InvalidPage
            At the end of the block: an id was bad. `position` counts within the call that
            named it, and the message says which call of the block that was.

        Examples
        --------
        >>> pool = jitalloc.PagePool(8)
        >>> first, second = pool.alloc(3), pool.alloc(2)
        >>> with pool.free_group() as group:
        ...     _ = pool.free(first)
        ...     _ = pool.free(second)
        >>> group.released
        5
        """
        return FreeGroup(self)

    def _free_gathered(self, gathered: list[NDArray[np.int32]]) -> int:
        pages = np.concatenate(gathered)
        status = self._run(owners_free_cpu, pages)
        if status >= 0:
            return status
        raise group_error(self._page_error(status, pages), [each.size for each in gathered])

    def free_slots(self, slots: ArrayLike) -> int:
        """Take one owner off each page that holds at least one of `slots`, all or nothing.

        Parameters
        ----------
        slots : array_like of int64[n]
            Slots in any order; a page is freed once however many of its slots are named.

        Returns
        -------
        int
            How many pages were released.

        Raises
        ------
        InvalidArgument
            A slot is outside the pool or lies in a page that nobody holds.
        """
        slots = as_lengths("slots", slots)
        with self._shape:
            scratch = np.empty(min(slots.size, self.num_pages), np.int32)
            status = self._run(owners_free_slots_cpu, slots, scratch)
        if status < 0:
            raise argument_error(status, "slots", slots, *self._slot_bounds())
        return status

    def _slot_bounds(self) -> tuple[int, int]:
        first = self.page_size if self.null_page else 0
        return first, self.num_pages * self.page_size - 1

    def refcount(self, pages: ArrayLike) -> NDArray[Any]:
        """Return how many owners each page has.

        Parameters
        ----------
        pages : array_like of int32[n]

        Returns
        -------
        int32[n]
            0 for free and released pages; 1 for the null page.

        Raises
        ------
        InvalidPage
            A page is out of range.
        """
        pages = as_pages(pages)
        counts = np.empty(pages.size, np.int32)
        status = self._run(owners_count_cpu, pages, counts)
        if status < 0:
            raise self._page_error(status, pages)
        return counts
