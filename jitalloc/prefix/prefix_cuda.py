"""PrefixCache on a pool of the GPU: the index on the host, what it gains and gives up launched."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jitalloc.arguments import as_pages
from jitalloc.errors import CorruptState, WrongDevice, corrupt_error
from jitalloc.gpu.arguments import as_device
from jitalloc.gpu.device import Device
from jitalloc.gpu.record import FAULT_STATUS, RECORD_SLOTS
from jitalloc.gpu.slab import blocks_for
from jitalloc.pool.holders import Moves
from jitalloc.pool.pool_cuda import CudaPagePool
from jitalloc.pool.shadow_cuda import PoolShadow
from jitalloc.prefix.loops.prefix_cuda import prefix_fetch_cuda, prefix_insert_cuda
from jitalloc.prefix.loops.reclaim import (
    reclaim_choose_cpu,
    reclaim_invalidate_cpu,
    reclaim_past_cpu,
)
from jitalloc.prefix.loops.upkeep import prefix_upkeep_check_cpu
from jitalloc.prefix.loops.upkeep_cuda import prefix_upkeep_rename_cuda
from jitalloc.prefix.matches import InsertResult
from jitalloc.prefix.prefix import PrefixCache
from jitalloc.prefix.state import UNCACHED, prefix_arrays
from jitalloc.prefix.upkeep import PrefixSnapshot
from jitalloc.snapshot import uncopied
from jitalloc.state import HEADER_SLOTS, INT32, INT64, words

FETCHED = RECORD_SLOTS + HEADER_SLOTS  # words before the rest of what is fetched at once


class CudaPrefixCache(PrefixCache, device="cuda"):
    """A `PrefixCache` on a pool of the GPU; made by `PrefixCache(pool)`.

    What follows links follows them on the host: the index lives there, in arrays of NumPy, and the
    loops are those of the CPU. The calls have the same results and leave the same state, with
    these differences.

    - Tokens and pages come from the host, as on the CPU, or as `int32` arrays on the GPU, which
      are copied from there: then the call waits for the GPU. Page ids of results are known on the
      host, and are arrays of NumPy; so are those of a batch.
    - `match`, `match_batch`, `lookup`, `touch`, `release`, `pin`, `unpin`, and what tells of the
      cache alone (`stats`, `num_cached`) launch nothing and wait for nothing: they cost what they
      cost on the CPU.
    - `evict` and `clear` launch the free of what gives way, in the order of the stream, and do not
      wait. A page that its user has freed too often shows later: see `CudaPagePool`. `out` of
      `evict` lies on the host. `invalidate` waits, to learn how many pages went free.
    - `insert` waits once, to see that the pages are held, then launches what makes the cache an
      owner. A failure of an earlier call is raised instead, and then nothing was done.
    - `check`, `snapshot` and `restore` wait. `snapshot` gives copies for caches of any device.
    - While a CUDA graph is captured or runs, whatever does not launch goes on as ever; what does is
      refused in a capture.

    The ids of tokens stand on the GPU as well, by the slots of the pool: those of cached pages, and
    those that the sequences of a `PagedKVCache` are known to hold.
    """

    __reduce_ex__ = uncopied("it lives on the GPU; a snapshot() of it can be")

    pool: CudaPagePool
    _tokens: Any  # int32[num_pages * page_size] on the GPU

    @property
    def _gpu(self) -> Device:
        gpu: Device = self.pool._gpu
        return gpu

    @property
    def _shadow(self) -> PoolShadow:
        return self.pool._cast()

    def _install(self, slab: NDArray[np.int64]) -> None:
        self.pool._cast()
        super()._install(slab)
        self._tokens = self._gpu.keep(self.arrays.tokens.reshape(-1))

    # What lies on the GPU, or comes from there.

    def _there(self, name: str, values: Any, dtype: np.dtype[Any] = INT32) -> Any:
        """Return `values` where they are an array of the GPU, else None."""
        if type(values) is np.ndarray:
            return None
        try:
            return as_device(self._gpu, name, values, dtype)
        except WrongDevice:
            if hasattr(values, "__cuda_array_interface__"):
                raise  # that of another one
            return None

    def _as_tokens(self, tokens: Any) -> NDArray[np.int32]:
        there = self._there("tokens", tokens)
        return super()._as_tokens(tokens if there is None else self._gpu.download(there))

    def _bounds(self, indptr: Any, size: int) -> NDArray[np.int64]:
        there = self._there("indptr", indptr, INT64)
        return super()._bounds(indptr if there is None else self._gpu.download(there), size)

    def _fetch(
        self, pages: Any, tokens: Any
    ) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
        """Return arrays of the GPU, and how many owners the pages have: `(pages, owners, tokens)`.

        Waits, and raises the first failure.
        """
        gpu, pool = self._gpu, self.pool
        n, size = pages.size, 2 * pages.size + tokens.size
        there = gpu.empty(FETCHED + (size + 1) // 2, INT64)
        out = there[FETCHED:].view(INT32)[:size]
        pool._start(prefix_fetch_cuda, size, pages, tokens, there[:FETCHED], out)
        here = gpu.download(there)
        if here[FAULT_STATUS]:
            pool._settled()
        pool._meet(here)
        got = here[FETCHED:].view(INT32)
        return got[:n], got[n : 2 * n], got[2 * n : size]

    # What changes the pool.

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

        Waits for the GPU, once.

        Parameters
        ----------
        tokens : int32[n] on the GPU, or array_like
        pages : int32[n // page_size] on the GPU, or array_like
        namespace : Hashable, optional
        priority, lifetime : int, optional

        Returns
        -------
        InsertResult
            Its pages are known on the host.
        """
        gpu, size = self._gpu, self.page_size
        ids, named = self._there("tokens", tokens), self._there("pages", pages)
        given = super()._as_tokens(tokens) if ids is None else ids
        if named is None:
            named = gpu.upload(np.ascontiguousarray(as_pages(pages)))
        insert = super().insert

        def work() -> InsertResult:
            with self.lock, self.pool._shape, self.pool._calls:
                held, owners, fetched = self._fetch(
                    named, gpu.empty(0, INT32) if ids is None else ids
                )
                known = given if ids is None else fetched
                with self._shadow.owned(held, owners):
                    options: dict[str, Any] = {"priority": priority, "lifetime": lifetime}
                    result = insert(known, held, namespace, **options)
                if result.num_new:
                    first, last = result.num_present * size, held.size * size
                    new = gpu.upload(known[first:last]) if ids is None else ids[first:last]
                    adopted = named[result.num_present :]
                    self.pool._start(prefix_insert_cuda, new.size, self._tokens, adopted, new, size)
                return result

        return self.pool._uninterrupted(work)

    def _give_way(self, n: int, reason: int, out: NDArray[np.int32]) -> int:
        def work() -> int:
            with self.pool._everyone(), self.pool._calls:
                self._follow()
                victims = out if out.size else np.empty(min(n, self.pool.num_pages), INT32)
                count = self._run(reclaim_choose_cpu, n, reason, victims)
                if count > 0:
                    self._free(victims[:count])
                return count

        return self.pool._uninterrupted(work)

    def _free(self, pages: NDArray[np.int32]) -> Any:
        """Launch the free of pages that have left the cache; return where it tells how many."""
        released = self._gpu.empty(1, INT64)
        self.pool._free(self._gpu.upload(pages), released, 0)
        return released

    def _as_pages(self, pages: Any) -> NDArray[np.int32]:
        there = self._there("pages", pages)
        return super()._as_pages(pages if there is None else self._gpu.download(there))

    def _forget(self, asked: tuple[Any, ...], released: NDArray[np.int64]) -> int:
        def work() -> int:
            with self.pool._everyone(), self.pool._calls:
                self._follow()
                count = self._run(reclaim_invalidate_cpu, *asked, np.empty(0, INT64))
                if count > 0:
                    freed = self._free(asked[-1][:count])
                    released[:] = self._gpu.download(freed)
                return count

        return self.pool._uninterrupted(work)

    @contextmanager
    def _all_owners(self) -> Iterator[None]:
        """Let loops see how many owners each page has. Waits."""
        owners = self._shadow.owners
        owners[:] = self._gpu.download(self.pool.arrays.refcount)
        try:
            yield
        finally:
            owners[:] = 0

    def _follow(self) -> None:
        """Let the index lock what sequences on the GPU lock by now; waits where there are any."""
        for each in self._sequences():
            each._follow()

    def _sequences(self) -> list[Any]:
        """Return the caches of sequences that stand on this one."""
        mine = (each for each in self.pool._holders if getattr(each, "prefix_cache", None) is self)
        return sorted(mine, key=lambda each: each.rank)

    @property
    def num_locked(self) -> int:
        """Cached pages that some match, pin or sequence holds a lock on.

        Behind sequences it waits, to learn what these lock by now.
        """
        with self.pool._everyone():
            self._follow()
            return super().num_locked

    @property
    def num_evictable(self) -> int:
        """Cached pages that `evict` could take now; waits like `num_locked`."""
        with self.pool._everyone():
            self._follow()
            return super().num_evictable

    # The whole state.

    def check(self) -> None:
        """Raise the first failure, or verify every link: see `PrefixCache.check`.

        Waits for the GPU and copies the pool's state, and the ids of tokens.
        """
        with self.pool._everyone():
            self._follow()
            super().check()
            self._check_tokens()

    def _check_tokens(self) -> None:
        cached = self.arrays.following_pages != UNCACHED
        wrong = (self._tokens_here() != self.arrays.tokens).any(axis=1) & cached
        if wrong.any():
            raise CorruptState(f"tokens of page {np.argmax(wrong)} differ from those on the GPU")

    def _copy_on_cpu(self) -> PrefixCache:
        """Wait, raise the first failure, or return a cache of the CPU in the same state.

        Its pool has the other holders of this one's, but not this cache.
        """
        pool = self.pool._copy_on_cpu()
        pool._holders.discard(self)
        there = PrefixCache(pool, **self._options())
        there._epoch, there._namespaces = self._epoch, self._namespaces.copy()
        there._slab = self._slab.copy()
        there.arrays = prefix_arrays(there._slab, there.arrays.header)  # its own may be broken
        there.arrays.tokens[:] = self._tokens_here()
        return there

    def _tokens_here(self) -> NDArray[np.int32]:
        """Wait, and return a copy of all token ids, `int32[num_pages, page_size]`."""
        tokens: NDArray[np.int32] = self._gpu.download(self._tokens)
        return tokens.reshape(-1, self.page_size)

    def _check_slab(self, slab: NDArray[np.int64]) -> None:
        pool = self.pool._copy_on_cpu()
        seen = np.zeros(words(pool.num_pages), np.uint64)
        status = pool._run(prefix_upkeep_check_cpu, slab, seen)
        if status < 0:
            raise corrupt_error(status)

    def _refcounts(self) -> NDArray[np.int32]:
        return self.pool._copy_on_cpu().arrays.refcount

    def snapshot(self) -> PrefixSnapshot:
        """Return a copy of the complete state on the host, for caches of any device. Waits."""
        with self.pool._everyone():
            self.pool._settled()
            snapshot = super().snapshot()
            slab = snapshot.slab.copy()
            prefix_arrays(slab).tokens[:] = self._tokens_here()
            slab.flags.writeable = False
            return PrefixSnapshot(slab, snapshot.namespaces)

    # What the pool calls, being locked.

    def _rename_pages(self, moves: Moves) -> None:
        gpu = self._gpu
        here = Moves(*(gpu.download(each) for each in moves))
        with self._shadow.closed():
            super()._rename_pages(here)
        elements = here.src.size * self.page_size
        if elements:
            arrays = [gpu.wrap(each) for each in (self._tokens, *moves)]
            blocks = blocks_for(gpu, elements)
            gpu.launch(prefix_upkeep_rename_cuda, blocks, gpu.threads, *arrays, self.page_size)

    def _give_up_past(self, num_pages: int) -> None:
        self._follow()
        gone = np.empty(self.pool.num_pages, INT32)

        def give_up() -> None:
            with self._all_owners():
                count = self._run(reclaim_past_cpu, num_pages, gone, 0)
            if count > 0:
                self._free(gone[:count])
                self._shadow.advance(-1)  # part of the resize

        self.pool._uninterrupted(give_up)

    def _resize_pages(self, num_pages: int) -> Callable[[], None]:
        resized = super()._resize_pages(num_pages)

        def follow() -> None:
            before = self._tokens
            self._shadow.retire()
            resized()
            kept = min(before.size, self._tokens.size)
            self._tokens[:kept] = before[:kept]

        return follow
