"""PagePool on the GPU: the calls of the CPU, each one launch, or few, on the current stream."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from itertools import count
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from jitalloc.arguments import as_count
from jitalloc.cuda.arguments import as_device, as_device_out, as_integers
from jitalloc.cuda.faults import fault_error
from jitalloc.cuda.owners import CudaPageOwners
from jitalloc.cuda.shadow import ShadowedPool
from jitalloc.cuda.slab import ITEMS, blocks_for
from jitalloc.errors import CorruptState, InvalidArgument, JitallocError, OutOfPages
from jitalloc.kernels.cuda.merging import MOST_BLOCKS, SPAN, scratch_words
from jitalloc.kernels.cuda.pool import (
    pool_admit_cuda,
    pool_alloc_batch_cuda,
    pool_alloc_cuda,
    pool_alloc_run_cuda,
    pool_merge_cuda,
    pool_total_cuda,
)
from jitalloc.kernels.cuda.tokens import tokens_decode_cuda, tokens_extend_cuda
from jitalloc.kernels.cuda.upkeep import (
    upkeep_clear_cuda,
    upkeep_defragment_cuda,
    upkeep_resize_cuda,
)
from jitalloc.moves import Moves
from jitalloc.pool import PageBatch, PagePool
from jitalloc.snapshot import PoolSnapshot
from jitalloc.state import (
    FAULT_WANTED,
    FREE,
    INT32,
    INT64,
    NULL,
    NUM_PAGES,
    RECORD_SLOTS,
    RELEASED,
    STEP,
    pool_arrays,
    pool_slab_words,
)
from jitalloc.stats import PoolStats

T = TypeVar("T")

LARGE = 16384  # pages that one block does not look at, or hand out, by itself
HELPERS = 128  # blocks that a call starts for a merge that could be due in it
SPREAD = ITEMS * 65536  # elements in whose place up to 65,536 slots take a thread each


class CudaPagePool(ShadowedPool, CudaPageOwners, PagePool, device="cuda"):
    """A `PagePool` whose arrays live on the GPU; made by `PagePool(..., device="cuda")`.

    The calls are those of the CPU, with the same results and the same state, and these differences.

    - Arrays are CuPy's, or anything on the GPU with `__cuda_array_interface__` or DLPack: page ids
      `int32`, slots `int64`, lengths and counts either. Host memory is refused, never copied.
    - A call is one launch on CuPy's current stream, or two for very many pages, and waits for
      nothing, unless its docstring says so. Counts that the CPU returns as an int come as
      `int64[1]` on the GPU.
    - A call that fails there changes nothing and fills its results with NULL. The first failure is
      kept; the next call that waits raises it, as the exception of the CPU with a note on which
      call it was, and forgets it.
    - Calls on one pool have to be ordered: one stream, or events between streams.
    - Given fixed shapes and caller buffers, every call that does not wait can be captured in a CUDA
      graph. `restore` and `resize` make the arrays anew: graphs captured before are stale.
    """

    __slots__ = ("_gpu", "_group_numbers", "_groups", "_record", "_shadow", "_state", "_words")

    def _install(self, slab: NDArray[np.int64]) -> None:
        if not hasattr(self, "_shadow"):
            self._shadow = None
        self._put(slab, self._scratch(int(slab[NUM_PAGES])))
        self._groups, self._group_numbers = {}, count(1)
        self._name_arrays(int(slab[NUM_PAGES]))
        self._restart_host(slab)

    def _name_arrays(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self.arrays = pool_arrays(self._slab, num_pages)

    def _scratch(self, num_pages: int) -> int:
        return scratch_words(num_pages, self.order)

    def _helped(self, elements: int, most: int = HELPERS) -> int:
        """Return for how many elements a call starts blocks, so that they can do a merge too."""
        if self.order != "sorted" or self.num_pages <= LARGE:  # elsewhere nothing waits for one
            return elements
        each = ITEMS * self._gpu.threads
        pages = -(-self.num_pages // (SPAN * self._gpu.threads)) * each
        return max(elements, min(pages, most * each))

    def _uninterrupted(self, work: Callable[[], T]) -> T:
        carried: Callable[[], T] = self._gpu.carried(work)
        return super()._uninterrupted(carried)

    def _fault(self, record: NDArray[np.int64]) -> JitallocError:
        self._meet(record)
        calls = self._groups.get(int(record[FAULT_WANTED]))
        self._groups.clear()
        return fault_error(record, self.page_size, self.null_page, self.num_pages, calls)

    def _settled(self) -> NDArray[np.int64]:
        self._bring_time()
        words = super()._settled()
        self._meet(words)
        self._groups.clear()  # they all went well
        return words

    def _header(self) -> NDArray[np.int64]:
        """Wait, raise the first failure, or return the header of the pool."""
        return self._settled()[RECORD_SLOTS:]

    def _copy_on_cpu(self) -> PagePool:
        """Wait, raise the first failure, or return a pool of the CPU in the same state."""
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
            self._start(pool_alloc_cuda, self._helped(n), pages)
        return pages

    def try_alloc(self, n: int) -> Any:
        """Take `n` pages, or return None where they are not there. Waits for the GPU."""
        return self.alloc(n) if as_count("n", n) <= self.available else None

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
        elements = self._helped(max(batch, pages.size) if summed else pages.size)
        if summed:
            self._start(pool_total_cuda, elements, counts, batch, wide)
        self._start(pool_alloc_batch_cuda, elements, counts, starts, pages, wide, int(summed))
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

    def merge(self, *, out: Any = None) -> Any:
        """Merge the released pages into the freelist; how many, as `int64[1]` on the GPU."""
        merged = as_device_out(self._gpu, "out", out, INT64, 1)
        self._start(pool_merge_cuda, self._helped(0, MOST_BLOCKS), merged)
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
        elements = self._helped(max(slots.size, min(ITEMS * slots.size, SPREAD)))
        wides = wide | 2 * wide_too
        self._start(tokens_extend_cuda, elements, prefixes, lengths, last_slots, slots, wides)
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
        blocks = blocks_for(gpu, self._helped(0))
        self._start_block(
            tokens_decode_cuda, batch, lengths, last_slots, slots, wide, blocks=blocks
        )
        return slots

    def clear(self) -> None:
        """Make every page free again, ids ascending in every order: see `PagePool.clear`.

        Waits for the GPU where there are caches on the pool, to see that they hold nothing.
        """
        self._refuse_with_sequences("clear")
        self._start(upkeep_clear_cuda, self.num_pages)

    def stats(self) -> PoolStats:
        """Return totals, counters and fragmentation. Waits for the GPU and copies the state."""
        return self._copy_on_cpu().stats()

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
        scratch = self._scratch(num_pages)
        words = np.zeros(RECORD_SLOTS + pool_slab_words(num_pages) + scratch, np.int64)
        words[RECORD_SLOTS + NUM_PAGES] = num_pages

        def work() -> None:
            self._settled()
            followers = [holder._resize_pages(num_pages) for holder in self._holders]
            new = self._gpu.upload(words)
            self._start(upkeep_resize_cuda, 0, new[RECORD_SLOTS:])
            self._settled()
            for follow in followers:
                follow()
            self._resize_host(num_pages)
            new[:RECORD_SLOTS] = self._record
            self._use(new, scratch)
            self._name_arrays(num_pages)

        with self._everyone():
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
