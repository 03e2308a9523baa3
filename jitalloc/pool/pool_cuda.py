"""PagePool on the GPU: the calls of the CPU, each one launch, or few, on the current stream."""

from __future__ import annotations

from typing import Any

import numpy as np

from jitalloc.arguments import as_count
from jitalloc.errors import InvalidArgument, OutOfPages
from jitalloc.gpu.arguments import as_device, as_device_out, as_integers
from jitalloc.gpu.slab import ITEMS, MOST_BLOCKS
from jitalloc.pool.loops.merging_cuda import SPAN
from jitalloc.pool.loops.owners_cuda import (
    owners_count_cuda,
    owners_free_cuda,
    owners_free_ring_cuda,
    owners_free_slots_cuda,
    owners_free_slots_ring_cuda,
    owners_mark_slots_cuda,
    owners_share_cuda,
    owners_take_off_cuda,
)
from jitalloc.pool.loops.pool_cuda import (
    pool_admit_cuda,
    pool_alloc_batch_cuda,
    pool_alloc_cuda,
    pool_alloc_run_cuda,
    pool_merge_cuda,
    pool_total_cuda,
)
from jitalloc.pool.loops.tokens_cuda import tokens_decode_cuda, tokens_extend_cuda
from jitalloc.pool.pool import FreeGroup, PageBatch, PagePool
from jitalloc.pool.upkeep_cuda import CudaPoolUpkeep
from jitalloc.state import INT32, INT64, NULL

LARGE = 16384  # pages that one block does not look at, or hand out, by itself
HELPERS = 128  # blocks that a call starts for a merge that could be due in it
MANY = 16384  # elements that one block puts into a ring by itself
MOST_GROUPS = 1024  # whose calls are remembered
SPREAD = ITEMS * 65536  # elements in whose place up to 65,536 slots take a thread each


class CudaPagePool(CudaPoolUpkeep, PagePool, device="cuda"):
    """A `PagePool` whose arrays live on the GPU; made by `PagePool(..., device="cuda")`.

    The calls are those of the CPU, with the same results and the same state, and these differences.

    - Arrays are CuPy's, or anything on the GPU with `__cuda_array_interface__` or DLPack: page ids
      `int32`, slots `int64`, lengths and counts either. Host memory is refused, never copied.
    - A call is one launch, or two for very many pages, on the stream of the pool (`stream`,
      elsewhere CuPy's current one), and waits for nothing, unless its docstring says so. Counts
      that the CPU returns as an int come as `int64[1]` on the GPU.
    - A call that fails there changes nothing and fills its results with NULL. The first failure is
      kept; the next call that waits raises it, as the exception of the CPU with a note on which
      call it was, and forgets it. `fault` shows it to what runs on the GPU.
    - Calls on one pool have to be ordered: one stream, or events between streams. Where they were
      not, and the pool is left as within a call, the next call that waits raises `CorruptState`.
      Threads may share a pool: the launches of a call stay together. A new pool is there for all
      streams, since making it waits for the GPU.
    - Given fixed shapes and caller buffers, every call that does not wait can be captured in a CUDA
      graph, once its kernels are loaded (`jitalloc.warmup(device="cuda")`). What would make an
      array meanwhile, or wait, raises `InvalidArgument` and says which argument it needs.
      `restore` and `resize` make the arrays anew: graphs captured before are stale.
    - A process made by `os.fork` cannot use the pool, and is told so by `WrongDevice`.

    Results made without `out` come from CuPy's memory for the stream, and go back to it in the
    order of the stream. Who uses them on another stream waits for an event first, and holds them
    until that is done.
    """

    __slots__ = ()

    def _mergers(self, most: int = HELPERS) -> int:
        """Return in how many blocks at least a call starts in which a merge could be due."""
        if self.order != "sorted" or self.num_pages <= LARGE:  # elsewhere nothing waits for one
            return 1
        threads: int = self._gpu.threads
        return min(-(-self.num_pages // (SPAN * threads)), most)

    def alloc(self, n: int, *, contiguous: bool = False, out: Any = None) -> Any:
        """Take `n` pages, each with one owner, or none: see `PagePool.alloc`.

        Where they are not there, the result is NULL, and `OutOfPages` is raised later. Only for
        more pages than the pool has, it is raised at once. One launch, whatever the size, merge
        included.
        """
        if type(n) is not int or not 0 <= n <= self.num_pages:
            n = as_count("n", n)
            if n > self.num_pages:
                raise OutOfPages(n, self.available)
        if contiguous and self.order != "sorted":
            raise InvalidArgument(
                "contiguous", True, f"needs a pool of order 'sorted', this one is {self.order!r}"
            )
        pages = as_device_out(self._gpu, "out", out, INT32, n)
        if contiguous:
            self._start(pool_alloc_run_cuda, 0, pages)
        else:
            self._start(pool_alloc_cuda, n, pages, blocks=self._mergers())
        return pages

    def try_alloc(self, n: int) -> Any:
        """Take `n` pages, or return None where they are not there. Waits for the GPU."""
        n = as_count("n", n)
        with self._calls:
            return self.alloc(n) if n <= self.available else None

    def alloc_batch(self, counts: Any, *, indptr: Any = None, out: Any = None) -> PageBatch:
        """Take `counts[i]` pages for each of B sequences: see `PagePool.alloc_batch`.

        Parameters
        ----------
        counts : int32[B] or int64[B]
        indptr : int32[B + 1], optional
            Buffer for where the pages of each sequence begin.
        out : int32[any], optional
            Buffer for the pages, NULL behind the last. Without it the call waits for the GPU, to
            learn how many there are.

        Very many pages or sequences take two launches: all blocks add up the counts, then all
        write `indptr`, merge if need be, and hand out.
        """
        gpu = self._gpu
        counts, batch, wide = as_integers(gpu, "counts", counts)
        starts = as_device_out(gpu, "indptr", indptr, INT32, batch + 1)
        pages = as_device_out(gpu, "out", out, INT32, self.num_pages if out is None else None)
        summed = max(4 * batch, pages.size) > LARGE  # a tile of counts costs a block most
        elements, blocks = max(batch, pages.size) if summed else pages.size, self._mergers()
        arguments = (counts, starts, pages, wide, int(summed))
        with self._calls:
            if summed:
                self._start(pool_total_cuda, elements, counts, batch, wide, blocks=blocks)
            self._start(pool_alloc_batch_cuda, elements, *arguments, blocks=blocks)
            if out is None:
                self._settled()
                pages = pages[: int(gpu.download(starts[-1:])[0])]
        return PageBatch(starts, pages)

    def admit(self, counts: Any, *, out: Any = None) -> Any:
        """Return how many leading sequences of a batch would fit, as `int64[1]` on the GPU.

        `counts` is `int32[B]` or `int64[B]`. One launch, whatever the size.
        """
        gpu = self._gpu
        counts, batch, wide = as_integers(gpu, "counts", counts)
        fit = as_device_out(gpu, "out", out, INT64, 1)
        self._start(pool_admit_cuda, batch, counts, fit, batch, wide)
        return fit

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

    def refcount(self, pages: Any, *, out: Any = None) -> Any:
        """Return how many owners each page has: see `PagePool.refcount`."""
        pages = as_device(self._gpu, "pages", pages, INT32)
        counts = as_device_out(self._gpu, "out", out, INT32, pages.size)
        self._start(owners_count_cuda, pages.size, pages, counts)
        return counts

    def merge(self, *, out: Any = None) -> Any:
        """Merge the released pages into the freelist; how many, as `int64[1]` on the GPU."""
        merged = as_device_out(self._gpu, "out", out, INT64, 1)
        self._start(pool_merge_cuda, 0, merged, blocks=self._mergers(MOST_BLOCKS))
        return merged

    def alloc_extend(
        self, prefix_lens: Any, seq_lens: Any, last_slots: Any, *, out: Any = None
    ) -> Any:
        """Return slots for a batch of prompt extensions: see `PagePool.alloc_extend`.

        Parameters
        ----------
        prefix_lens, seq_lens : int32[B] or int64[B]
            A sequence whose `seq_lens` is NULL is padding: it takes nothing and gets no slots, and
            its other two elements are not looked at.
        last_slots : int64[B]
        out : int64[any], optional
            Buffer for the slots, NULL behind the last. Without it the call waits for the GPU, to
            learn how many there are.
        """
        gpu = self._gpu
        prefixes, batch, wide = as_integers(gpu, "prefix_lens", prefix_lens)
        lengths, _batch, wide_too = as_integers(gpu, "seq_lens", seq_lens, batch)
        last_slots = as_device(gpu, "last_slots", last_slots, INT64, batch)
        total = None
        if out is None:
            before, after = (
                gpu.download(gpu.adopt("lengths", each)).astype(INT64)
                for each in (prefix_lens, seq_lens)
            )
            grown = np.where(after == NULL, 0, after - before)
            total = int(np.clip(grown, 0, self.num_pages * self.page_size).sum())
        slots = as_device_out(gpu, "out", out, INT64, total)
        elements = max(slots.size, min(ITEMS * slots.size, SPREAD))
        arguments = (prefixes, lengths, last_slots, slots, wide | 2 * wide_too)
        with self._calls:
            self._start(tokens_extend_cuda, elements, *arguments, blocks=self._mergers())
            if out is None:
                self._settled()
        return slots

    def alloc_decode(self, seq_lens: Any, last_slots: Any, *, out: Any = None) -> Any:
        """Return the slot of one new token for each sequence: see `PagePool.alloc_decode`.

        `seq_lens` is `int32[B]` or `int64[B]`. A sequence whose length there is NULL is padding: it
        takes nothing, its slot is NULL, and its last slot is not looked at. `out` may be
        `last_slots` itself; if the call fails, it is NULL like any other.
        """
        gpu = self._gpu
        lengths, batch, wide = as_integers(gpu, "seq_lens", seq_lens)
        last_slots = as_device(gpu, "last_slots", last_slots, INT64, batch)
        slots = as_device_out(gpu, "out", out, INT64, batch)
        arguments = (lengths, last_slots, slots, wide)
        self._start_block(tokens_decode_cuda, batch, *arguments, blocks=self._mergers())
        return slots

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
