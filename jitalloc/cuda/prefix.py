"""PrefixCache on the GPU: the loops of the CPU, run by one thread beside the pool's arrays."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jitalloc._cuda_device import Device
from jitalloc._cuda_loops import scratch_words
from jitalloc._jit import Kernel
from jitalloc.cuda.arguments import as_device
from jitalloc.cuda.matches import CudaPrefixBatch, CudaPrefixMatch
from jitalloc.cuda.pool import CudaPagePool
from jitalloc.errors import (
    NEGATIVE_TOKEN,
    InvalidArgument,
    PinBudget,
    argument_error,
    unpack_status,
)
from jitalloc.kernels.cuda import prefix, prefix_upkeep, reclaim  # noqa: F401 (found by name)
from jitalloc.kernels.prefix import (
    prefix_insert_cpu,
    prefix_match_batch_cpu,
    prefix_match_cpu,
    prefix_pin_cpu,
    prefix_release_cpu,
)
from jitalloc.kernels.prefix_upkeep import prefix_upkeep_rename_cpu, prefix_upkeep_resize_cpu
from jitalloc.matches import InsertResult, PrefixBatch, PrefixMatch
from jitalloc.moves import Moves
from jitalloc.prefix import PrefixCache
from jitalloc.prefix_state import (
    EPOCH,
    HELD_NOT,
    MATCH_HELD,
    MATCH_PAGES,
    PAGES,
    PIN_BUDGET,
    PREFIX_SLOTS,
    UNCACHED,
    prefix_arrays,
)
from jitalloc.prefix_upkeep import PrefixSnapshot
from jitalloc.slab import BUSY_STATUS
from jitalloc.state import INT32, INT64


class CudaPrefixCache(PrefixCache, device="cuda"):
    """A `PrefixCache` on a pool of the GPU; made by `PrefixCache(pool)`.

    The calls are those of the CPU, with the same results and the same state, and these differences.

    - Tokens and pages are `int32` arrays on the GPU: CuPy's, or anything there with
      `__cuda_array_interface__` or DLPack. Host memory is refused, never copied.
    - Every call is one launch and waits for the GPU, for its answer is what the host goes on with:
      how long a prefix is, how many pages gave way. So errors come at once; an earlier call of the
      pool that failed is raised instead, and then nothing was done. Page ids stay on the GPU.
    - One thread runs the launch: the lists of the cache have no order but that of its steps.
    - `snapshot` gives copies for caches of any device. `check`, `snapshot` and `restore` copy the
      whole state to the CPU, or from there.
    - `_slab` has `scratch_words` of scratch behind the words of the CPU.
    """

    pool: CudaPagePool

    @property
    def _gpu(self) -> Device:
        gpu: Device = self.pool._gpu
        return gpu

    # Arrays.

    def _install(self, slab: NDArray[np.int64]) -> None:
        self._use(self._up(slab), slab)

    def _up(self, slab: NDArray[np.int64]) -> Any:
        """Return a copy of `slab` on the GPU, with scratch behind it."""
        scratch = np.zeros(scratch_words(int(slab[PAGES])), np.int64)
        return self._gpu.upload(np.concatenate([slab, scratch]))

    def _use(self, there: Any, slab: NDArray[np.int64]) -> None:
        """Take an array on the GPU that was made of `slab`."""
        self.arrays = prefix_arrays(there, slab[:PREFIX_SLOTS])
        self._slab = there

    def _down(self) -> NDArray[np.int64]:
        """Wait, raise the first failure, or return a copy of the slab without its scratch."""
        self.pool._settled()
        scratch = scratch_words(self.arrays.next_pages.size)
        return self._gpu.download(self._slab[:-scratch])

    def _header(self) -> NDArray[np.int64]:
        self.pool._settled()
        return self._gpu.download(self._slab[:PREFIX_SLOTS])

    def _run(self, kernel: Kernel, *args: Any) -> int:
        return self.pool._run(kernel, self._slab, *args)

    # Calls whose arguments lie on the GPU.

    def match(self, tokens: Any, namespace: Hashable = None) -> PrefixMatch:
        """Find the longest cached prefix, and lock it until `release`: see `PrefixCache.match`.

        Waits for the GPU.

        Parameters
        ----------
        tokens : int32[n]
        namespace : Hashable, optional

        Returns
        -------
        PrefixMatch
            Its pages lie on the GPU, its numbers are Python's.
        """
        return self._find(prefix_match_cpu, tokens, namespace)

    def _find(self, kernel: Kernel, tokens: Any, namespace: Hashable) -> PrefixMatch:
        """Look a prefix up and hold it, by the kernel of `match` or `pin`."""
        tokens = as_device(self._gpu, "tokens", tokens, INT32)
        root = self._root(namespace)
        match = CudaPrefixMatch(self, self._epoch, tokens.size // self.page_size, self._gpu)
        try:
            status = self._run(kernel, root, tokens, match._there)
            if status < 0:
                code, detail = unpack_status(status)
                if code == NEGATIVE_TOKEN:
                    raise argument_error(status, "tokens", tokens)
                raise PinBudget(detail, int(self._header()[PIN_BUDGET]))
            self._look(match)
        except BaseException:
            self._undo(match)
            raise
        return match

    def match_batch(
        self, tokens: Any, indptr: Any, namespaces: Sequence[Hashable] | None = None
    ) -> PrefixBatch:
        """Find and lock the longest cached prefixes of B prompts: see `PrefixCache.match_batch`.

        Waits for the GPU.

        Parameters
        ----------
        tokens : int32[n]
        indptr : int64[B + 1]
            On the GPU as well, and copied from there to be looked at.
        namespaces : sequence of Hashable, optional

        Returns
        -------
        PrefixBatch
            All its arrays lie on the GPU.
        """
        gpu = self._gpu
        tokens = as_device(gpu, "tokens", tokens, INT32)
        indptr = as_device(gpu, "indptr", indptr, INT64)
        bounds = self._bounds(gpu.download(indptr), tokens.size)
        roots = self._roots(namespaces, bounds.size - 1)
        pages = gpu.empty(int((np.diff(bounds) // self.page_size).sum()), INT32)
        batch = CudaPrefixBatch(self, self._epoch, roots.size, gpu)
        args = gpu.upload(roots), tokens, indptr, batch._there, pages
        try:
            status = self._run(prefix_match_batch_cpu, *args)
            if status < 0:
                raise argument_error(status, "tokens", tokens)
            self._look(batch)
            batch._fill(pages[:status], self.page_size)
        except BaseException:
            self._undo(batch)
            raise
        return batch

    def pin(self, tokens: Any, namespace: Hashable = None) -> PrefixMatch:
        """Lock the longest cached prefix for long: see `PrefixCache.pin`.

        Waits for the GPU.

        Parameters
        ----------
        tokens : int32[n]
        namespace : Hashable, optional

        Returns
        -------
        PrefixMatch
            Its pages lie on the GPU, its numbers are Python's.
        """
        return self._find(prefix_pin_cpu, tokens, namespace)

    def insert(
        self,
        tokens: Any,
        pages: Any,
        namespace: Hashable = None,
        *,
        priority: int | None = None,
        lifetime: int | None = None,
    ) -> InsertResult:
        """Keep pages by the tokens that they hold: see `PrefixCache.insert`.

        Waits for the GPU.

        Parameters
        ----------
        tokens : int32[n]
        pages : int32[n // page_size]
        namespace : Hashable, optional
        priority, lifetime : int, optional

        Returns
        -------
        InsertResult
            Its pages lie on the GPU.
        """
        gpu = self._gpu
        tokens = as_device(gpu, "tokens", tokens, INT32)
        pages = as_device(gpu, "pages", pages, INT32)
        needed = tokens.size // self.page_size
        if pages.size != needed:
            raise InvalidArgument("pages", pages.size, f"must be {needed}, one a whole page")
        options = self._priority(priority, lifetime)
        canonical = gpu.empty(needed, INT32)
        root = self._make_root(namespace)
        status = self._run(prefix_insert_cpu, root, tokens, pages, canonical, *options)
        if status < 0:
            raise self._insert_error(status, tokens, pages)
        return InsertResult(canonical, status, needed - status)

    # Locks. Who holds them is written on the GPU, by the kernels; a match has a copy of it.

    def _look(self, match: CudaPrefixMatch | CudaPrefixBatch) -> None:
        """Bring the numbers of a match down."""
        match._record[:] = self._gpu.download(match._there[: match._record.size])
        if isinstance(match, CudaPrefixMatch):
            match.num_pages = int(match._record[MATCH_PAGES])
            match.num_tokens = match.num_pages * self.page_size

    def _undo(self, match: CudaPrefixMatch | CudaPrefixBatch) -> None:
        """Give back what a look-up that failed or was interrupted has locked."""
        self._look(match)
        if match.locked:
            match.__exit__(None, None, None)

    def _give_back(self, match: PrefixMatch | PrefixBatch, held: int) -> None:
        if getattr(match, "_cache", None) is self:
            self._give_back_late(match, held, BUSY_STATUS)
        else:
            super()._give_back(match, held)  # which refuses it

    def _release(self, match: Any, held: int) -> int:
        status = self._run(prefix_release_cpu, match._there, match._size, held)
        if status == 0:
            match._records[:, MATCH_HELD] = HELD_NOT
        return status

    def _bring_up_to_date(self, match: Any) -> None:
        super()._bring_up_to_date(match)
        match._there[: match._record.size] = self._gpu.upload(match._record)

    # The whole state.

    def _copy_on_cpu(self) -> PrefixCache:
        """Wait, raise the first failure, or return a cache of the CPU in the same state.

        Its pool has the other holders of this one's, but not this cache.
        """
        pool = self.pool._copy_on_cpu()
        pool._holders.discard(self)
        there = PrefixCache(pool, **self._options())
        there._epoch = self._epoch
        there._namespaces = dict(self._namespaces)
        there._next_namespace, there._wrapped = self._next_namespace, self._wrapped
        there._slab = self._down()
        there.arrays = prefix_arrays(there._slab, there.arrays.header)  # its own may be broken
        return there

    def check(self) -> None:
        """Raise the first failure, or verify every link: see `PrefixCache.check`.

        Waits for the GPU and copies the state.
        """
        with self.pool._everyone():
            self._copy_on_cpu().check()

    def snapshot(self) -> PrefixSnapshot:
        """Return a copy of the complete state on the CPU, for caches of any device. Waits."""
        with self.lock, self.pool._shape:
            slab = self._down()
            slab.flags.writeable = False
            return PrefixSnapshot(slab, tuple(self._namespaces.items()))

    def restore(self, snapshot: PrefixSnapshot) -> None:
        """Take over a complete state without its locks and pins: see `PrefixCache.restore`.

        Waits for the GPU. `arrays` is made anew.
        """
        with self.pool._everyone():
            self._copy_on_cpu().restore(snapshot)  # refuses what does not fit
            self.pool._uninterrupted(lambda: self._take_over(snapshot, alone=True))

    # What the pool calls, being locked; pages that move are named on the GPU.

    def _rename_pages(self, moves: Moves) -> None:
        gpu = self._gpu
        src, dst = (gpu.download(each) for each in moves)
        names = np.arange(self.pool.num_pages, dtype=INT32)
        names[src] = dst
        self._epoch = self._epoch.end(Moves(src, dst))
        self._slab[EPOCH] = self._epoch.number
        self._run(prefix_upkeep_rename_cpu, gpu.upload(names), *moves)

    def _resize_pages(self, num_pages: int) -> Callable[[], None]:
        slab = self._new_slab(num_pages)
        there = self._up(slab)

        def follow() -> None:
            self._run(prefix_upkeep_resize_cpu, there)
            self._use(there, slab)

        return follow

    def _held_pages(self) -> NDArray[np.int32]:
        nexts = self._gpu.download(self.arrays.next_pages)
        return np.flatnonzero(nexts != UNCACHED).astype(INT32)
