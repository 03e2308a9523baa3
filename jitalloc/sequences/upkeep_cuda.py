"""Sequences on the GPU as a whole: what they are made of, their state on the CPU and back."""

from __future__ import annotations

import os
import weakref
from collections.abc import Hashable, Iterable
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from jitalloc.pool.holders import Moves
from jitalloc.pool.pool import PagePool
from jitalloc.pool.pool_cuda import CudaPagePool
from jitalloc.prefix.prefix import PrefixCache
from jitalloc.sequences.files import CacheSnapshot
from jitalloc.sequences.ids_cuda import CudaSequenceIds
from jitalloc.sequences.launcher_cuda import SequenceLauncher
from jitalloc.sequences.prefix_rows_cuda import CudaPrefixRows
from jitalloc.sequences.records import SequenceInfo
from jitalloc.sequences.rows_cuda import CudaSequenceRows
from jitalloc.sequences.sequences import PagedKVCache
from jitalloc.sequences.state import LOCKED, NAMESPACE
from jitalloc.sequences.tables_cuda import CudaBlockTables
from jitalloc.sequences.upkeep import SequenceUpkeep
from jitalloc.snapshot import uncopied


class CudaSequenceUpkeep(SequenceUpkeep):
    """`SequenceUpkeep` of sequences whose block table lives on the GPU."""

    __reduce_ex__ = uncopied("it lives on the GPU; a snapshot() of it can be")

    pool: Any
    tables: Any
    prefix_cache: Any
    _ids: CudaSequenceIds
    _rows: CudaSequenceRows
    _launcher: SequenceLauncher

    def _make(self, max_sequences: int, max_pages_per_sequence: int, pad: int) -> None:
        self.tables = CudaBlockTables(self.pool, max_sequences, max_pages_per_sequence, pad)
        self._ids = CudaSequenceIds(self.tables)
        prefix = self.prefix_cache
        self._launcher = SequenceLauncher(self.pool, self.tables, self._ids, prefix)
        if prefix is None:
            self._rows = CudaSequenceRows(self._launcher)
        else:
            self._rows = CudaPrefixRows(self._launcher, prefix)

    def rows(self, seq_ids: Iterable[Hashable]) -> Any:
        """Return the rows of sequences as `int32[B]` on the GPU: see `PagedKVCache.rows`.

        They are copied there: keep them as long as the batch stays the same.
        """
        return self.pool._gpu.upload(super().rows(seq_ids))

    def sequence(self, seq_id: Hashable) -> SequenceInfo:
        """Return what is known of a sequence, `pages` on the GPU: see `PagedKVCache.sequence`."""
        return super().sequence(seq_id)

    def _follow(self) -> None:
        """Let the index of the prefix cache, if any, lock what the rows lock by now. Waits."""
        self._rows.follow()

    # What the pool asks of a holder of pages.

    def _rename_pages(self, moves: Moves) -> None:
        gpu = self.pool._gpu
        names = np.arange(self.pool.num_pages, dtype=np.int32)
        names[gpu.download(moves.src)] = gpu.download(moves.dst)
        self.tables._rename(gpu.upload(names))
        self._rows.rename_pages(moves)

    def _holds_locks(self) -> bool:
        return bool(self.tables._copy_on_cpu().columns[LOCKED].any())

    def _roots_in_use(self) -> NDArray[np.int64]:
        namespaces: NDArray[np.int64] = self.tables._copy_on_cpu().columns[NAMESPACE]
        return -2 - namespaces

    def _held_pages(self) -> NDArray[np.int32]:
        pages = self.tables._copy_on_cpu().pages
        held: NDArray[np.int32] = pages[pages >= 0]
        return held

    # The complete state.

    def _copy_on_cpu(self) -> PagedKVCache:
        """Wait, raise the first failure, or return a cache of the CPU in the same state.

        Its pool has the other holders of this one's.
        """
        old: Any = self.prefix_cache
        if old is not None:
            self._follow()
            old._check_tokens()
        prefix = None if old is None else old._copy_on_cpu()
        pool: PagePool = self.pool._copy_on_cpu() if prefix is None else prefix.pool
        mine = (self, old)
        pool._holders = weakref.WeakSet(each for each in self.pool._holders if each not in mine)
        if prefix is not None:
            pool._holders.add(prefix)
        cache = PagedKVCache(
            pool,
            self.tables.max_sequences,
            self.tables.max_pages_per_sequence,
            prefix_cache=prefix,
            **self._options(),
        )
        arrays = self.tables._copy_on_cpu()
        cache.tables._slab, cache.tables.arrays = arrays.slab, arrays
        cache._ids.rows, cache._ids.by_row = dict(self._ids.rows), list(self._ids.by_row)
        return cache

    def check(self, held: Any = None) -> None:
        """Raise the first failure, or verify the complete state: see `PagedKVCache.check`.

        Waits for the GPU and copies the state. `held` may lie on either side.
        """
        with self.pool._everyone():
            cache = self._copy_on_cpu()
        if hasattr(held, "__cuda_array_interface__"):
            held = self.pool._gpu.download(self.pool._gpu.adopt("held", held))
        cache.check(held)

    def snapshot(self) -> CacheSnapshot:
        """Return a copy of the complete state on the CPU, for caches of any device. Waits."""
        with self.pool._everyone():
            self._follow()
            pool = self.pool.snapshot()  # raises what failed before
            tables = self.pool._gpu.download(self.tables._slab)
            tables.flags.writeable = False
            prefix = None if self.prefix_cache is None else self.prefix_cache.snapshot()
            return CacheSnapshot(pool, tables, tuple(self._ids.by_row), prefix)

    def restore(self, snapshot: CacheSnapshot) -> None:
        """Take over the complete state of a snapshot; waits: see `PagedKVCache.restore`."""
        self.pool._settled()
        super().restore(snapshot)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Return a new cache on the GPU, on a new pool: see `PagedKVCache.load`."""
        saved = PagedKVCache.load(path)
        old: Any = saved.prefix_cache
        size, null_page = saved.pool.page_size, saved.pool.null_page
        pool = CudaPagePool(1 + null_page, size, device="cuda", null_page=null_page)
        pool.restore(saved.pool.snapshot())
        cache = cls(
            pool,
            saved.tables.max_sequences,
            saved.tables.max_pages_per_sequence,
            prefix_cache=None if old is None else PrefixCache(pool, **old._options()),
            **saved._options(),
        )
        cache.restore(saved.snapshot())
        return cache
