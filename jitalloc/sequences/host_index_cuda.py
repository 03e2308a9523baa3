"""The index of a prefix cache, on the host, and the rows on the GPU that lock and enter it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from jitalloc._jit import BUSY_STATUS, Kernel, wait_for_lock
from jitalloc.gpu.slab import blocks_for
from jitalloc.pool.holders import Moves
from jitalloc.prefix.loops.reclaim import reclaim_count_cpu, reclaim_room_cpu
from jitalloc.prefix.prefix_cuda import CudaPrefixCache
from jitalloc.prefix.state import UNCACHED
from jitalloc.sequences.host_table_cuda import FetchedRows, HostTable
from jitalloc.sequences.launcher_cuda import SequenceLauncher
from jitalloc.sequences.loops.sharing import sharing_follow_cpu
from jitalloc.sequences.loops.sharing_cuda import FACT_ROW, sharing_commit_cuda
from jitalloc.sequences.state import COMPUTED, KNOWN, LOCK_END, LOCKED, TableArrays
from jitalloc.state import INT32, INT64

T = TypeVar("T")

FACTS_CHANGED = (KNOWN, COMPUTED, LOCKED, LOCK_END)  # by a commit


class HostIndex:
    """A prefix cache whose index lives on the host, as the rows of the GPU use it.

    The rows on the GPU have the last word on what they know and lock; kernels inherit and shorten
    it without asking. The index locks the same paths, as the host last saw them: what is locked
    there now was locked then by some row, so nothing that a row needs can give way meanwhile. Each
    call that depends on more (what it fetches, it fetches with the locks of all rows) lets the
    index follow first: new paths are locked, then old ones given back, in the order of rows.

    Attributes
    ----------
    prefix : CudaPrefixCache
    held : int64[2 * max_sequences]
        What the index has locked: pages of each row, then ends of paths.
    opening : int32[any]
        Rows whose paths the index has locked before the rows do.
    """

    def __init__(self, launcher: SequenceLauncher, prefix: CudaPrefixCache) -> None:
        self.launcher, self.pool, self.prefix = launcher, launcher.pool, prefix
        self.held = np.zeros(2 * launcher.tables.max_sequences, INT64)
        self.opening = np.empty(0, INT32)
        self._table: HostTable | None = None

    @property
    def table(self) -> HostTable:
        """Where rows are brought to; made when it is first needed."""
        if self._table is None:
            self._table = HostTable(self.launcher.tables)
        return self._table

    def whole(self, work: Callable[[], T]) -> T:
        """Run `work`, which changes the index and the GPU, to its end whatever arrives."""

        def alone() -> T:
            with self.pool._shape, self.pool._calls:
                return work()

        done: T = self.pool._uninterrupted(alone)
        return done

    # Following.

    def fetch(self, rows: Any, counts: Any, tokens: Any, rule: int) -> FetchedRows:
        """Bring rows down, and let the index lock what all rows lock by now. Waits."""
        got = self.table.fetch(self.launcher.known, rows, counts, tokens, rule)
        self.launcher.count_ended(got.words)
        locks = got.locks.copy()
        if self.opening.size:
            there = locks.reshape(2, -1)
            there[:, self.opening] = self.held.reshape(2, -1)[:, self.opening]
        self.prefix._run(sharing_follow_cpu, self.held, locks)
        return got

    def follow(self) -> FetchedRows:
        """Let the index lock what the rows lock by now; tell of the pool. Waits."""
        nothing = self.launcher.no_tokens
        with self.pool._shape, self.pool._calls:
            return self.fetch(nothing, nothing, nothing, 0)

    def follow_all(self) -> FetchedRows:
        """Let the index lock what the rows of all caches lock by now. Waits, for each cache."""
        with self.pool._shape, self.pool._calls:
            for other in self.prefix._sequences():
                if other._ids is not self.launcher.ids:
                    other._follow()
            return self.follow()

    def locks(self, arrays: TableArrays) -> NDArray[np.int64]:
        """Return what the rows of a copy of the block table lock, as `held` has it."""
        locks: NDArray[np.int64] = arrays.columns[[LOCKED, LOCK_END]].reshape(-1)
        return locks

    def rename_pages(self, moves: Moves) -> None:
        """Follow pages that have moved, `moves` lying on the GPU."""
        names = np.arange(self.pool.num_pages)
        src, dst = (self.pool._gpu.download(each) for each in moves)
        names[src] = dst
        locked, ends = self.held.reshape(2, -1)
        ends[locked > 0] = names[ends[locked > 0]]

    # Giving way.

    def reclaimable(self) -> int:
        """Return how many cached pages would go free: unlocked, as the host last saw. Waits."""
        with self.prefix._all_owners():
            return self.prefix._run(reclaim_count_cpu)

    def evict_for(self, need: int) -> int:
        """Let cached pages give way until `need` are available; how many, or a status word.

        Waits, and once more where some have to, for the owners of all pages. Nothing gives way
        where that could not suffice.
        """
        available = self.follow_all().available
        if need <= available:
            return 0
        victims = np.empty(self.pool.num_pages, INT32)
        with self.prefix._all_owners():
            short = need - available
            gone = self.prefix._run(reclaim_room_cpu, short, available, victims)
        if gone > 0:
            self.prefix._free(victims[:gone])
            self.pool._shadow.advance(-1)  # part of the call that needs the room
        return gone

    # What is computed enters the cache.

    def run(self, kernel: Kernel, *arguments: Any) -> int:
        """Run a loop of sequences on the rows that have come down."""

        def once() -> int:
            slabs = self.pool._host, self.table.slab, self.prefix._slab
            status: int = kernel.run(*slabs, *arguments)
            return status

        status = once()
        return status if status != BUSY_STATUS else wait_for_lock(once)

    def enter(self, got: FetchedRows, run: Callable[[], int], told: Any) -> int:
        """Run a loop that lets rows enter the cache, and bring what it changes to the GPU.

        `told`: ids of the first tokens of the only row, where the loop is told them. Waits once
        more where a page about to enter has other owners: forks, whose rows come down as well.
        """
        gpu, pool, table = self.pool._gpu, self.pool, self.table
        arrays, owners = self.prefix.arrays, pool._shadow.owners
        arrays.tokens[got.told] = got.tokens
        table.bring(got)
        whole = bool((got.owners[arrays.following_pages[got.pages] == UNCACHED] > 1).any())
        if whole:
            table.bring_all()
            owners[:] = gpu.download(pool.arrays.refcount)
        owners[got.pages] = got.owners
        before = table.arrays.columns[FACTS_CHANGED, :].copy()
        had = owners.copy() if whole else None
        changed = got.pages
        try:
            status = run()
            if status >= 0:
                changed = self._bring_changes(got, had, before, told)
                rows = slice(None) if whole else got.live
                locks = table.arrays.columns[[LOCKED, LOCK_END]][:, rows]
                self.held.reshape(2, -1)[:, rows] = locks
        finally:
            table.leave()
            owners[slice(None) if whole else changed] = 0
        return status

    def _bring_changes(
        self, got: FetchedRows, had: NDArray[np.int32] | None, before: NDArray[np.int64], told: Any
    ) -> NDArray[np.int32]:
        """Launch what a commit has changed; return the pages whose owners it has looked at.

        `had`: the owners of all pages before, if known; `before`: facts of the rows.
        """
        gpu, pool, table = self.pool._gpu, self.pool, self.table
        now, columns = table.pages_now(got), table.arrays.columns
        replaced = now != got.pages
        touched, freed = np.unique(np.concatenate([got.pages, now])), got.pages[replaced]
        base = np.zeros(touched.size, INT64) if had is None else had[touched].astype(INT64)
        base[np.searchsorted(touched, got.pages)] = got.owners
        gain = pool._shadow.owners[touched] - base
        np.add.at(gain, np.searchsorted(touched, freed), 1)
        more = gain > 0
        tables = self.launcher.tables
        height, width = tables.max_sequences, tables.max_pages_per_sequence
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
            arrays = [gpu.wrap(each) for each in (self.launcher.known, changes)]
            bound = self.launcher.bind()
            blocks = blocks_for(gpu, len(pairs))
            gpu.launch(sharing_commit_cuda, blocks, gpu.threads, *bound, *arrays)
        if freed.size:
            pool._free(gpu.upload(freed), gpu.empty(1, INT64), 0)
            pool._shadow.advance(-1)  # part of the commit
        return touched

    def _told_slots(
        self, got: FetchedRows, before: NDArray[np.int64], told: Any
    ) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Return the slots of tokens that nobody knew the ids of, and these."""
        if told is None:
            return np.empty(0, INT64), np.empty(0, INT32)
        row = int(got.facts[0, FACT_ROW])
        known = int(before[FACTS_CHANGED.index(KNOWN), row])
        places = np.arange(known, max(known, int(self.table.arrays.columns[KNOWN, row])))
        size = self.pool.page_size
        slots = got.pages[places // size].astype(INT64) * size + places % size
        return slots, told[places]
