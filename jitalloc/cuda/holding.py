"""Sequences on the GPU as holders of pages, and their complete state on the CPU and back."""

from __future__ import annotations

import os
import weakref
from collections.abc import Hashable
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from jitalloc.cuda.arguments import as_device
from jitalloc.cuda.pool import CudaPagePool
from jitalloc.cuda.tables import CudaBlockTables
from jitalloc.errors import DuplicateSequence
from jitalloc.ids import SequenceIds
from jitalloc.moves import Moves
from jitalloc.pool import PagePool
from jitalloc.prefix import PrefixCache
from jitalloc.saving import CacheSnapshot
from jitalloc.sequences import PagedKVCache
from jitalloc.state import INT32, INT64, NAMESPACE, NO_TOKENS, NULL, TableArrays, table_arrays
from jitalloc.tables import BlockTables


def tables_on_cpu(tables: Any) -> TableArrays:
    """Return the named arrays of a copy of a block table. Waits for the GPU."""
    slab = tables.pool._gpu.download(tables._slab)
    return table_arrays(slab, tables.max_sequences, tables.max_pages_per_sequence)


class CudaSequenceIds(SequenceIds):
    """`SequenceIds` of a block table on the GPU.

    Rows end there that the host has not named: by a batch call, or by a graph. Once it is known
    that some may have (`stale`), the next look at the ids waits, and forgets those of free rows.
    """

    __slots__ = ("_by_row", "_rows", "stale")

    def __init__(self, tables: BlockTables) -> None:
        self.stale = False
        super().__init__(tables)

    @property
    def rows(self) -> dict[Hashable, int]:
        """The rows of the ids."""
        self._follow()
        return self._rows

    @rows.setter
    def rows(self, rows: dict[Hashable, int]) -> None:
        self._rows = rows

    @property
    def by_row(self) -> list[Hashable]:
        """The ids of the rows."""
        self._follow()
        return self._by_row

    @by_row.setter
    def by_row(self, by_row: list[Hashable]) -> None:
        self._by_row = by_row

    def leave(self, row: int) -> Hashable:
        """Forget the id of the sequence that has just ended in `row`, and return it."""
        seq_id, self._by_row[row] = self._by_row[row], None
        del self._rows[seq_id]
        return seq_id

    def _follow(self) -> None:
        if self.stale:
            with self.lock:
                if self.stale:
                    self.reconcile()

    def _arrays(self) -> TableArrays:
        return tables_on_cpu(self.tables)

    def reconcile(self) -> None:
        """Make the ids follow the block table; waits."""
        self.stale = False
        super().reconcile()

    def expect(self, seq_id: Hashable) -> None:
        """Announce that a sequence of this id is about to be made; waits where one has it."""
        try:
            super().expect(seq_id)
        except DuplicateSequence:
            self.reconcile()  # perhaps it has ended
            super().expect(seq_id)

    def free_row(self) -> int:
        """Return the lowest row that is known to be free, or -1."""
        for _ in range(2):
            try:
                return self.by_row.index(None)
            except ValueError:
                self.reconcile()  # perhaps one has become free
        return -1


class CudaSequenceState(PagedKVCache):
    """The part of `CudaPagedKVCache` that deals with its state as a whole."""

    pool: Any
    tables: Any
    _ids: CudaSequenceIds
    _no_tokens: Any
    _constants: dict[int, Any]
    _scratch: Any
    _kept: list[Any]
    _copies: tuple[Any, ...]  # the last buffer of copies, and its views
    _bound: tuple[Any, ...]
    _freed: int

    def _make_tables(self, max_sequences: int, max_pages_per_sequence: int) -> BlockTables:
        gpu = self.pool._gpu
        self._no_tokens = gpu.upload(NO_TOKENS)
        self._kept = []
        self._copies = None, 0
        self._bound = ()
        self._freed = 0
        pad = 0 if self.pool.null_page else NULL
        tables = CudaBlockTables(self.pool, max_sequences, max_pages_per_sequence, pad)
        # Enough for all rows; `reorder` alone takes more.
        self._scratch = gpu.empty(3 * tables.max_sequences + 3, INT64)
        self._constants = {1: gpu.keep(np.ones(1, INT32))}
        return tables

    def _make_ids(self) -> SequenceIds:
        return CudaSequenceIds(self.tables)

    def _as_rows(self, name: str, rows: Any) -> Any:
        return as_device(self.pool._gpu, name, rows, INT32)

    def _as_tokens(self, tokens: Any) -> Any:
        return as_device(self.pool._gpu, "tokens", tokens, INT32)

    # What the pool asks a holder of pages.

    def _rename_pages(self, moves: Moves) -> None:
        gpu = self.pool._gpu
        names = np.arange(self.pool.num_pages, dtype=np.int32)
        names[gpu.download(moves.src)] = gpu.download(moves.dst)
        self.tables._rename(gpu.upload(names))

    def _roots_in_use(self) -> NDArray[np.int64]:
        namespaces: NDArray[np.int64] = tables_on_cpu(self.tables).columns[NAMESPACE]
        return -2 - namespaces

    def _held_pages(self) -> NDArray[np.int32]:
        pages = tables_on_cpu(self.tables).pages
        held: NDArray[np.int32] = pages[pages >= 0]
        return held

    # The complete state.

    def _copy_on_cpu(self) -> PagedKVCache:
        """Wait, raise the first failure, or return a cache of the CPU in the same state.

        Its pool has the other holders of this one's.
        """
        old: Any = self.prefix_cache
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
            eviction=self.eviction,
            eviction_threshold=self.eviction_threshold,
            sink_tokens=self.sink_tokens,
            window_tokens=self.window_tokens,
            prefix_cache=prefix,
        )
        arrays = tables_on_cpu(self.tables)
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
            eviction=saved.eviction,
            eviction_threshold=saved.eviction_threshold,
            sink_tokens=saved.sink_tokens,
            window_tokens=saved.window_tokens,
            prefix_cache=None if old is None else PrefixCache(pool, **old._options()),
        )
        cache.restore(saved.snapshot())
        return cache
