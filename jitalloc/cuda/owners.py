"""Who holds a page on the GPU: sharing, freeing, reference counts, and groups of frees."""

from __future__ import annotations

from typing import Any

from jitalloc.cuda.arguments import as_device, as_device_out
from jitalloc.cuda.upkeep import CudaPoolUpkeep
from jitalloc.kernels.cuda.owners import (
    owners_count_cuda,
    owners_free_cuda,
    owners_free_ring_cuda,
    owners_free_slots_cuda,
    owners_free_slots_ring_cuda,
    owners_mark_slots_cuda,
    owners_share_cuda,
    owners_take_off_cuda,
)
from jitalloc.owners import FreeGroup, PageOwners
from jitalloc.state import INT32, INT64

MOST_GROUPS = 1024  # whose calls are remembered
MANY = 16384  # elements that one block puts into a ring by itself


class CudaPageOwners(CudaPoolUpkeep, PageOwners):
    """The part of a pool on the GPU that counts who holds a page."""

    __slots__ = ()

    def share(self, pages: Any) -> None:
        """Add one owner to each page, all or nothing: see `PagePool.share`."""
        pages = as_device(self._gpu, "pages", pages, INT32)
        self._start(owners_share_cuda, pages.size, pages)

    def free(self, pages: Any, *, out: Any = None) -> Any:
        """Take one owner off each page: see `PagePool.free`.

        Parameters
        ----------
        pages : int32[n]
        out : int64[1], optional
            Buffer for the result.

        Returns
        -------
        int64[1]
            How many pages were released; 0 inside a `free_group`, which releases at its end.

        Raises
        ------
        WrongDevice, InvalidArgument
            `pages` or `out` is no such array of the GPU.
        DoubleFree, InvalidPage
            Later: see `CudaPagePool`.

        Notes
        -----
        It does not wait, and a million pages cost little more than their memory traffic. One launch
        in the order `sorted`. The freelists of `fifo` and `lifo` keep the order in which pages are
        named last: there, very many take two launches, and others are the work of one block. So is
        a call that fails, to say why.
        """
        pages = as_device(self._gpu, "pages", pages, INT32)
        count = as_device_out(self._gpu, "out", out, INT64, 1)
        group = self._open_group()
        if group is not None and group._is_mine():
            group._gather(self._gpu.copy(pages, "pages"))
            self._gpu.clear(count)
        else:
            self._free(pages, count, 0)
        return count

    def _free(self, pages: Any, count: Any, group: int) -> None:
        if self.order == "sorted":
            self._start(owners_free_cuda, pages.size, pages, count, group)
        elif pages.size <= MANY:
            self._start(owners_free_cuda, 0, pages, count, group)
        else:
            with self._calls:
                self._start(owners_take_off_cuda, pages.size, pages)
                self._start(owners_free_ring_cuda, pages.size, pages, count, group)

    def free_group(self) -> FreeGroup:
        """Gather the frees of a `with` block and release them by one call at its end.

        As on the CPU: see `PagePool.free_group`. Inside the block `free` copies the ids on the
        GPU and returns 0; nothing waits.

        Returns
        -------
        FreeGroup
            `released`, as `int64[1]` on the GPU, says afterwards how many pages went free.

        Raises
        ------
        NestedFreeGroup
            On entering the block: a group is open on this pool already.
        WrongDevice, InvalidArgument
            Within the block, by `free`: what was gathered before is released all the same.
        DoubleFree, InvalidPage
            Later, as for `free`. The position counts within the call that named the id, and the
            message says which call of the block that was: by what the host has noted of the last
            1,024 groups since it waited for the GPU. Elsewhere, as when a CUDA graph runs again,
            the position counts through the whole group.
        """
        group = FreeGroup(self)
        group.released = self._nothing()
        return group

    def _nothing(self) -> Any:
        count = self._gpu.empty(1, INT64, "free_group")
        self._gpu.clear(count)
        return count

    def _free_gathered(self, gathered: list[Any]) -> Any:
        count = self._gpu.empty(1, INT64, "free_group")
        pages = self._gpu.concatenate(gathered, "free_group")
        with self._calls:  # who waits takes the groups that he knows for done
            number = next(self._group_numbers)
            self._groups[number] = [each.size for each in gathered]
            if len(self._groups) > MOST_GROUPS:
                del self._groups[next(iter(self._groups))]
            self._free(pages, count, number)
        return count

    def free_slots(self, slots: Any, *, out: Any = None) -> Any:
        """Take one owner off each page that holds one of `slots`: see `PagePool.free_slots`.

        Returns how many pages were released, as `int64[1]` on the GPU. Launches are like those of
        `free`.
        """
        slots = as_device(self._gpu, "slots", slots, INT64)
        count = as_device_out(self._gpu, "out", out, INT64, 1)
        if self.order == "sorted":
            self._start(owners_free_slots_cuda, slots.size, slots, count)
        elif slots.size <= MANY:
            self._start(owners_free_slots_cuda, 0, slots, count)
        else:
            with self._calls:
                self._start(owners_mark_slots_cuda, slots.size, slots)
                self._start(owners_free_slots_ring_cuda, slots.size, slots, count)
        return count

    def refcount(self, pages: Any, *, out: Any = None) -> Any:
        """Return how many owners each page has: see `PagePool.refcount`."""
        pages = as_device(self._gpu, "pages", pages, INT32)
        counts = as_device_out(self._gpu, "out", out, INT32, pages.size)
        self._start(owners_count_cuda, pages.size, pages, counts)
        return counts
