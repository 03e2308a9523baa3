"""Rows of the GPU enter a prefix cache whose index lives on the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from jitalloc._jit import BUSY_STATUS, Kernel, wait_for_lock
from jitalloc.arguments import as_tokens
from jitalloc.cuda.fetching import Fetched, RowsHere
from jitalloc.cuda.prefix import CudaPrefixCache
from jitalloc.cuda.row_calls import CudaSequenceCalls
from jitalloc.cuda.slab import blocks_for
from jitalloc.errors import (
    POSITION_RANGE,
    ROW_FREE,
    UnknownSequence,
    pack_status,
    unpack_status,
)
from jitalloc.kernels.cuda.sharing import (
    ALL_PAGES,
    ALL_TOKENS,
    FACT_LENGTH,
    FACT_ROW,
    sharing_commit_cuda,
)
from jitalloc.kernels.sharing import (
    sharing_commit_cpu,
    sharing_follow_cpu,
)
from jitalloc.prefix_state import UNCACHED
from jitalloc.state import (
    INT32,
    INT64,
    KNOWN,
    LOCK_END,
    LOCKED,
)
from jitalloc.tables import BlockTables

T = TypeVar("T")

FACTS_CHANGED = (KNOWN, LOCKED, LOCK_END)  # by a commit


class CudaSequenceCommits(CudaSequenceCalls):
    """The part of `CudaPagedKVCache` that fetches rows, and lets them enter the prefix cache.

    The rows on the GPU have the last word on what they know and lock; kernels inherit and shorten
    it without asking. The index locks the same paths, as the host last saw them: what is locked
    there now was locked then by some row, so nothing that a row needs can give way meanwhile. Each
    call that depends on more (what it fetches, it fetches with the locks of all rows) lets the
    index follow first: new paths are locked, then old ones given back, in the order of rows.
    """

    prefix_cache: CudaPrefixCache | None
    _held: NDArray[np.int64]  # what the index has locked: pages of each row, then ends of paths
    _rows_here: RowsHere | None
    _opening: int  # a row whose path the index has locked before the row does, or -1

    def _make_tables(self, max_sequences: int, max_pages_per_sequence: int) -> BlockTables:
        self._held = np.zeros(2 * max_sequences, INT64)
        self._rows_here, self._opening = None, -1
        return super()._make_tables(max_sequences, max_pages_per_sequence)

    @property
    def _here(self) -> RowsHere:
        if self._rows_here is None:
            self._rows_here = RowsHere(self.tables)
        return self._rows_here

    @property
    def _index(self) -> CudaPrefixCache:
        if self.prefix_cache is None:
            raise TypeError("there is no prefix cache")
        return self.prefix_cache

    @property
    def _known(self) -> Any:
        return self._no_tokens if self.prefix_cache is None else self.prefix_cache._tokens

    def _as_tokens(self, tokens: Any) -> Any:
        """Return token ids as an array of the GPU or, behind a prefix cache, of the host."""
        if self.prefix_cache is None:
            return super()._as_tokens(tokens)
        there = self.prefix_cache._there("tokens", tokens)
        return as_tokens(tokens) if there is None else there

    def _whole(self, work: Callable[[], T]) -> T:
        """Run `work`, which changes the index and the GPU, to its end whatever arrives."""

        def alone() -> T:
            with self.pool._shape, self.pool._calls:
                return work()

        done: T = self.pool._uninterrupted(alone)
        return done

    # Fetching.

    def _fetch(self, rows: Any, tokens: Any, rule: int) -> Fetched:
        """Bring rows down, and let the index lock what all rows lock by now. Waits."""
        got = self._here.fetch(self._known, rows, tokens, rule)
        self._count_ended(got.words, 0)
        locks = got.locks.copy()
        if self._opening >= 0:
            both = [self._opening, self.tables.max_sequences + self._opening]
            locks[both] = self._held[both]
        self._index._run(sharing_follow_cpu, self._held, locks)
        return got

    def _follow(self) -> Fetched:
        """Let the index lock what the rows lock by now; tell of the pool. Waits."""
        with self.pool._shape, self.pool._calls:
            return self._fetch(self._no_tokens, self._no_tokens, 0)

    def _follow_all(self) -> Fetched:
        """Let the index lock what the rows of all caches lock by now. Waits, for each cache."""
        with self.pool._shape, self.pool._calls:
            for other in self._index._sequences():
                if other is not self:
                    other._follow()
            return self._follow()

    # What is computed enters the cache.

    def _run_here(self, kernel: Kernel, *arguments: Any) -> int:
        """Run a loop of sequences on the rows that have come down."""

        def run() -> int:
            slabs = self.pool._host, self._here.slab, self._index._slab
            status: int = kernel.run(*slabs, *arguments)
            return status

        status = run()
        return status if status != BUSY_STATUS else wait_for_lock(run)

    def _committed(self, got: Fetched, run: Callable[[], int], told: Any) -> int:
        """Run a loop that lets rows enter the cache, and bring what it changes to the GPU.

        `told`: ids of the first tokens of the only row, where the loop is told them. Waits once
        more where a page about to enter has other owners: forks, whose rows come down as well.
        """
        gpu, pool, here = self.pool._gpu, self.pool, self._here
        arrays, owners = self._index.arrays, pool._shadow.owners
        arrays.tokens[got.told] = got.tokens
        here.bring(got)
        whole = bool((got.owners[arrays.following_pages[got.pages] == UNCACHED] > 1).any())
        if whole:
            here.bring_all()
            owners[:] = gpu.download(pool.arrays.refcount)
        owners[got.pages] = got.owners
        before = here.arrays.columns[FACTS_CHANGED, :].copy()
        had = owners.copy() if whole else None
        changed = got.pages
        try:
            status = run()
            if status >= 0:
                changed = self._bring_changes(got, had, before, told)
                rows = slice(None) if whole else got.live
                locks = here.arrays.columns[[LOCKED, LOCK_END]][:, rows]
                self._held.reshape(2, -1)[:, rows] = locks
        finally:
            here.leave()
            owners[slice(None) if whole else changed] = 0
        return status

    def _bring_changes(
        self, got: Fetched, had: NDArray[np.int32] | None, before: NDArray[np.int64], told: Any
    ) -> NDArray[np.int32]:
        """Launch what a commit has changed; return the pages whose owners it has looked at.

        `had`: the owners of all pages before, if known; `before`: facts of the rows.
        """
        gpu, pool, here = self.pool._gpu, self.pool, self._here
        now, columns = here.pages_now(got), here.arrays.columns
        replaced = now != got.pages
        touched, freed = np.unique(np.concatenate([got.pages, now])), got.pages[replaced]
        base = np.zeros(touched.size, INT64) if had is None else had[touched].astype(INT64)
        base[np.searchsorted(touched, got.pages)] = got.owners
        gain = pool._shadow.owners[touched] - base
        np.add.at(gain, np.searchsorted(touched, freed), 1)
        more = gain > 0
        height, width = self.tables.max_sequences, self.tables.max_pages_per_sequence
        fact, row = np.nonzero(columns[FACTS_CHANGED, :] != before)
        column = np.array(FACTS_CHANGED)[fact]
        slots, ids = self._told_slots(got, before, told)
        sorts = [
            (touched[more], gain[more]),
            (got.places(width)[replaced], now[replaced]),
            (column * height + row, columns[column, row]),
            (slots, ids),
        ]
        pairs = np.concatenate([np.stack([a, b], axis=1).astype(INT64) for a, b in sorts])
        if pairs.size:
            sizes = np.array([a.size for a, _ in sorts], INT64)
            changes = gpu.upload(np.concatenate([sizes, pairs.reshape(-1)]))
            arrays = [gpu.wrap(each) for each in (self._known, changes)]
            bound = self._bind()[2]
            blocks = blocks_for(gpu, len(pairs))
            gpu.launch(sharing_commit_cuda, blocks, gpu.threads, *bound, *arrays)
        if freed.size:
            pool._free(gpu.upload(freed), gpu.empty(1, INT64), 0)
            pool._shadow.advance(-1)  # part of the commit
        return touched

    def _told_slots(
        self, got: Fetched, before: NDArray[np.int64], told: Any
    ) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Return the slots of tokens that nobody knew the ids of, and these."""
        if told is None:
            return np.empty(0, INT64), np.empty(0, INT32)
        row = int(got.facts[0, FACT_ROW])
        known = int(before[FACTS_CHANGED.index(KNOWN), row])
        places = np.arange(known, max(known, int(self._here.arrays.columns[KNOWN, row])))
        size = self.pool.page_size
        slots = got.pages[places // size].astype(INT64) * size + places % size
        return slots, told[places]

    def _commit_row(self, row: int, ids: Any) -> int:
        there = type(ids) is not np.ndarray
        rule = ALL_PAGES | ALL_TOKENS if ids.size else 0

        def work() -> int:
            (rows,) = self._one(row)
            got = self._fetch(rows, ids if there else self._no_tokens, rule)
            told, length = got.given if there else ids, int(got.facts[0, FACT_LENGTH])
            if not got.live.size:
                return pack_status(ROW_FREE, 0)
            if told.size > length:
                return pack_status(POSITION_RANGE, length)
            run = lambda: self._run_here(sharing_commit_cpu, row, told)  # noqa: E731
            return self._committed(got, run, told if told.size else None)

        return self._seen(self._whole(work))

    def _seen(self, status: int) -> int:
        """Return a status, but where a sequence has ended on the GPU: then that is raised."""
        if status < 0 and unpack_status(status)[0] == ROW_FREE:
            self._ids.reconcile()
            raise UnknownSequence("the sequence has ended on the GPU")
        return status
