"""Sequences on the GPU behind a prefix cache, whose index lives on the host."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from jitalloc._jit import Kernel
from jitalloc.cuda.committing import CudaSequenceCommits
from jitalloc.cuda.holding import tables_on_cpu
from jitalloc.errors import (
    OUT_OF_PAGES,
    ROW_FREE,
    OutOfPages,
    pack_status,
    unpack_status,
)
from jitalloc.kernels.cuda.rows import (
    PLAN,
    PLAN_KNOWN,
    PLAN_LENGTH,
    PLAN_LOCK_END,
    PLAN_LOCKED,
    PLAN_SHARED,
    rows_allocate_cuda,
    rows_free_cuda,
)
from jitalloc.kernels.cuda.sharing import (
    ALL_PAGES,
    sharing_count_cuda,
)
from jitalloc.kernels.sharing import (
    sharing_find_cpu,
    sharing_follow_cpu,
    sharing_leave_cpu,
    sharing_relock_cpu,
    sharing_unlock_cpu,
    sharing_use_cpu,
)
from jitalloc.moves import Moves
from jitalloc.prefix_state import NUM_CACHED, NUM_LOCKED, PRESSURE, UNCACHED
from jitalloc.saving import CacheSnapshot
from jitalloc.sequences import PagedKVCache
from jitalloc.state import (
    FIRST_PAGE,
    FREE,
    INT32,
    INT64,
    KNOWN,
    LOCK_END,
    LOCKED,
    NUM_PAGES,
    RECORD_SLOTS,
    RELEASED,
    table_arrays,
)

T = TypeVar("T")

FACTS_CHANGED = (KNOWN, LOCKED, LOCK_END)  # by a commit


class CudaSequenceSharing(CudaSequenceCommits):
    """The part of `CudaPagedKVCache` that shares pages with others through a prefix cache."""

    # Room.

    def _evictable(self) -> int:
        header = self._index.arrays.header
        return int(header[NUM_CACHED] - header[NUM_LOCKED])

    def _pages(self) -> tuple[int, int, int]:
        if self.prefix_cache is None:
            return super()._pages()
        with self.lock:
            got = self._follow_all()
            reclaimable = self._evictable()
        header = got.words[RECORD_SLOTS:]
        held = int(header[NUM_PAGES] - header[FIRST_PAGE]) - got.available - reclaimable
        return got.available, reclaimable, held

    def _available(self) -> int:
        header = self._wait()[RECORD_SLOTS:]
        return int(header[FREE] + header[RELEASED])

    def _make_room(self, need: int) -> int:
        if self.prefix_cache is None:
            free = self._pages()[0]
            return 0 if need <= free else pack_status(OUT_OF_PAGES, free)
        gone = self._whole(lambda: self._evict_for(need))
        if gone >= 0:
            self.pool._shadow.advance(1)
        return gone

    def _make_room_for(self, need: int) -> None:
        """Make room for a call that has failed for want of pages, and comes again."""
        gone = self._whole(lambda: self._evict_for(need))
        if gone < 0:
            raise OutOfPages(need, unpack_status(gone)[1])

    def _evict_for(self, need: int) -> int:
        """Let cached pages give way until `need` are available; how many, or a status word.

        Waits, and once more where some do. Nothing gives way where that could not suffice.
        """
        available = self._follow_all().available
        gone, evictable = 0, self._evictable()
        if need > available + evictable:
            return pack_status(OUT_OF_PAGES, available + evictable)
        # A page that its user holds without a lock gives way and does not go free: look again.
        while need > available and evictable > 0:
            gone += self._index._choose(need - available, PRESSURE)
            self.pool._shadow.advance(-1)  # part of the call that needs the room
            available, evictable = self._available(), self._evictable()
        return gone if need <= available else pack_status(OUT_OF_PAGES, available)

    # Beginning.

    def _open(self, num_tokens: int, namespace: int, priority: int) -> int:
        if self.prefix_cache is None:
            return super()._open(num_tokens, namespace, priority)
        row = self._free_row(num_tokens)
        if row < 0:
            self._wait()  # what failed before goes first
            return row
        plan = self._plan(row, num_tokens, namespace, priority)
        return self._begin(plan, row, np.empty(0, INT32), None)

    def _open_on_prefix(self, tokens: Any, namespace: int, priority: int) -> int:
        row = self._free_row(tokens.size)
        if row < 0:
            self._wait()
            return row
        plan = self._plan(row, tokens.size, namespace, priority)
        return self._begin(plan, row, tokens, -2 - namespace)

    def _begin(self, plan: NDArray[np.int64], row: int, tokens: Any, root: int | None) -> int:
        """Let a sequence begin in `row`; return the row, or a status word.

        `root`: where its prefix is looked up, or None where its tokens are not known. Waits once
        for what is available, and three times more where cached pages have to give way.
        """
        size, index, held = self.pool.page_size, self._index, self._held
        there = type(tokens) is not np.ndarray
        count, found = 0, np.empty(tokens.size // size, INT32)
        with self.pool._shape, self.pool._calls:
            got = self._fetch(self._no_tokens, tokens if there else self._no_tokens, 0)
            ids = got.given if there else tokens
            if root is not None:
                count = index._run(sharing_find_cpu, held, row, root, ids, found)
                if count < 0:
                    return count
            need = -(-int(plan[PLAN_LENGTH]) // size) - count
            arrays = self._plan_there(plan, found[:count], ids, row)
            status = 0
            if need <= got.available:
                self._launch(rows_allocate_cuda, self._known, *arrays, self._unseen(), 0)
            else:
                self._opening = row
        if need > got.available:
            try:
                status = self._whole(lambda: self._evict_for(need))
                if status >= 0:
                    status, _need = self._ask(rows_allocate_cuda, self._known, *arrays)
            finally:
                self._opening = -1
        if root is not None:
            index._run(sharing_use_cpu, held, row, root, ids, int(status >= 0))
        if status < 0 and unpack_status(status)[0] == OUT_OF_PAGES:
            return pack_status(OUT_OF_PAGES, unpack_status(status)[1] + count)
        return status if status < 0 else row

    def _plan_there(
        self, plan: NDArray[np.int64], pages: NDArray[np.int32], ids: Any, row: int
    ) -> tuple[Any, Any, Any]:
        """Bring a plan to the GPU, the pages to share, and the ids of the tokens behind these."""
        count, rest = pages.size, ids[pages.size * self.pool.page_size :]
        plan[PLAN_SHARED] = plan[PLAN_LOCKED] = count
        plan[PLAN_KNOWN] = ids.size
        plan[PLAN_LOCK_END] = self._held[self.tables.max_sequences + row]
        words = np.empty(PLAN + (count + rest.size + 1) // 2, INT64)
        words[:PLAN] = plan
        numbers = words[PLAN:].view(INT32)
        numbers[:count], numbers[count : count + rest.size] = pages, rest
        there = self.pool._gpu.upload(words)
        numbers = there[PLAN:].view(INT32)
        return there[:PLAN], numbers[:count], numbers[count : count + rest.size]

    def _locked_pages(self, row: int) -> int:
        return int(self._held[row])

    # Ending and giving way.

    def _leave(self, rows: Any, released: Any) -> int:
        """Let sequences end, and enter the cache before; return how many pages went free.

        `released`: where that is written on the GPU, for a batch whose rows are known there; else
        None.
        """
        gpu = self.pool._gpu
        got = self._fetch(rows, self._no_tokens, ALL_PAGES if released is None else 0)
        live, count = got.live, 0

        def run() -> int:
            status = self._run_here(sharing_leave_cpu, live)
            if released is None:  # of one row: its pages are distinct, and what is cached stays
                pages = self._here.pages_now(got)
                own = self.pool._shadow.owners[pages] == 1
                own &= self._index.arrays.following_pages[pages] == UNCACHED
                status += int(own.sum())
            return status

        if released is None and not live.size:
            return pack_status(ROW_FREE, 0)
        if got.sound:
            count = self._committed(got, run, None)
        scratch = self._scratch_words(2 * rows.size + 2)
        answer = scratch[:1] if released is None else released
        self._launch(rows_free_cuda, rows, scratch[1:], answer, 0)
        if got.sound:
            if released is not None and count:
                gpu.launch(sharing_count_cuda, 1, 1, gpu.wrap(released), count)
            self._index._run(sharing_unlock_cpu, self._held, live)
            self._freed += live.size
        return count

    def _free_on_device(self, rows: Any, commit: bool, released: Any) -> None:
        if self.prefix_cache is None or not commit:
            super()._free_on_device(rows, commit, released)
        else:
            self._whole(lambda: self._leave(rows, released))

    def _end_rows(self, rows: NDArray[np.int32], commit: bool, evicted: bool) -> int:
        if self.prefix_cache is None or not (commit or evicted):
            return super()._end_rows(rows, commit, evicted)
        if evicted:
            held = self._pages()[2]
            super()._end_rows(rows, False, True)
            return held - self._pages()[2]
        return self._seen(self._whole(lambda: self._leave(self.pool._gpu.upload(rows), None)))

    def _cut(self, row: int, sink_tokens: int, window_tokens: int, evicted: int) -> tuple[int, int]:
        if self.prefix_cache is None or not evicted:
            return super()._cut(row, sink_tokens, window_tokens, evicted)
        held = self._pages()[2]
        dropped, _pages = super()._cut(row, sink_tokens, window_tokens, evicted)
        return dropped, held - self._pages()[2]

    def _run_on_copy(
        self, kernel: Kernel, slab: NDArray[np.int64], tables: NDArray[np.int64], *arguments: Any
    ) -> int:
        if self.prefix_cache is None:
            return super()._run_on_copy(kernel, slab, tables, *arguments)
        index = self.prefix_cache
        height, width = self.tables.max_sequences, self.tables.max_pages_per_sequence
        columns = table_arrays(tables, height, width).columns
        index._run(sharing_follow_cpu, self._held, columns[[LOCKED, LOCK_END]].reshape(-1))
        with self.pool._shadow.closed():
            status: int = kernel.run(slab, tables, index._slab, *arguments)
        self._held[:] = columns[[LOCKED, LOCK_END]].reshape(-1)
        return status

    # The complete state.

    def _rename_pages(self, moves: Moves) -> None:
        super()._rename_pages(moves)
        if self.prefix_cache is not None:
            names = np.arange(self.pool.num_pages)
            src, dst = (self.pool._gpu.download(each) for each in moves)
            names[src] = dst
            locked, ends = self._held.reshape(2, -1)
            ends[locked > 0] = names[ends[locked > 0]]

    def _relock(self) -> None:
        arrays = tables_on_cpu(self.tables)
        sharing_relock_cpu.run(arrays.slab, self._prefix)
        self._held[:] = arrays.columns[[LOCKED, LOCK_END]].reshape(-1)

    def _copy_on_cpu(self) -> PagedKVCache:
        if self.prefix_cache is not None:
            self._follow()
            self.prefix_cache._check_tokens()
        return super()._copy_on_cpu()

    def snapshot(self) -> CacheSnapshot:
        """Return a copy of the complete state on the host, for caches of any device. Waits."""
        with self.pool._everyone():
            if self.prefix_cache is not None:
                self._follow()
            return super().snapshot()
