"""Rows on the GPU behind a prefix cache: what they share is looked up and kept on the host."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from jitalloc._jit import Kernel
from jitalloc.arguments import as_tokens
from jitalloc.errors import (
    OUT_OF_PAGES,
    POSITION_RANGE,
    ROW_FREE,
    OutOfPages,
    pack_status,
    unpack_status,
)
from jitalloc.gpu.record import RECORD_SLOTS
from jitalloc.pool.holders import Moves
from jitalloc.pool.state import FIRST_PAGE, NUM_PAGES
from jitalloc.prefix.prefix_cuda import CudaPrefixCache
from jitalloc.prefix.state import UNCACHED
from jitalloc.sequences.batches import Plan, Prompts
from jitalloc.sequences.host_index_cuda import HostIndex
from jitalloc.sequences.launcher_cuda import SequenceLauncher
from jitalloc.sequences.loops.commits import commits_batch_cpu, commits_row_cpu
from jitalloc.sequences.loops.commits_cuda import commits_batch_cuda
from jitalloc.sequences.loops.rows_cuda import (
    PLAN_KNOWN,
    PLAN_LENGTH,
    PLAN_LOCK_END,
    PLAN_LOCKED,
    PLAN_NAMESPACE,
    PLAN_SHARED,
    rows_allocate_cuda,
    rows_free_cuda,
)
from jitalloc.sequences.loops.sharing import (
    sharing_find_cpu,
    sharing_follow_cpu,
    sharing_leave_cpu,
    sharing_relock_cpu,
    sharing_unlock_cpu,
    sharing_use_cpu,
)
from jitalloc.sequences.loops.sharing_cuda import (
    ALL_PAGES,
    ALL_TOKENS,
    FACT_COUNT,
    FACT_LENGTH,
    FACT_ROW,
    sharing_count_cuda,
)
from jitalloc.sequences.rows_cuda import CudaSequenceRows, new_plan, plan_of
from jitalloc.sequences.state import table_arrays
from jitalloc.state import INT32, INT64, NO_TOKENS


class CudaPrefixRows(CudaSequenceRows):
    """`CudaSequenceRows` that share pages with others through a prefix cache.

    Attributes
    ----------
    host : HostIndex
    """

    def __init__(self, launcher: SequenceLauncher, prefix: CudaPrefixCache) -> None:
        super().__init__(launcher)
        self.host = HostIndex(launcher, prefix)

    def as_tokens(self, tokens: Any) -> Any:
        """Return ids of tokens as an array of the GPU or of the host, wherever they lie."""
        there = self.host.prefix._there("tokens", tokens)
        return as_tokens(tokens) if there is None else there

    # Room.

    def page_counts(self) -> tuple[int, int, int]:
        """Return how many pages are free, reclaimable and held, at one moment."""
        with self.ids.lock, self.pool._shape, self.pool._calls:
            got = self.host.follow_all()
            reclaimable = self.host.reclaimable()
        header = got.words[RECORD_SLOTS:]
        held = int(header[NUM_PAGES] - header[FIRST_PAGE]) - got.available - reclaimable
        return got.available, reclaimable, held

    def make_room(self, need: int) -> int:
        """Let cached pages give way until `need` are available; return how many did."""
        gone = self.host.whole(lambda: self.host.evict_for(need))
        if gone >= 0:
            self.pool._shadow.advance(1)
        return gone

    def make_room_for(self, need: int) -> bool:
        """Make room for a call that has failed for want of pages, and comes again."""
        gone = self.host.whole(lambda: self.host.evict_for(need))
        if gone < 0:
            raise OutOfPages(need, unpack_status(gone)[1])
        return True

    # Beginning.

    def open(self, num_tokens: int, namespace: int, priority: int) -> int:
        """Let a sequence begin in the lowest free row; return the row."""
        row = self.free_row(num_tokens)
        if row < 0:
            return row
        plan = new_plan(row, num_tokens, namespace, priority)
        return self._begin(plan, row, NO_TOKENS, None, 0)

    def open_with(self, tokens: Any, namespace: int, priority: int, compute: int) -> int:
        """Let a sequence begin on the cached pages of its prefix; return the row."""
        row = self.free_row(tokens.size)
        if row < 0:
            return row
        plan = new_plan(row, tokens.size, namespace, priority)
        return self._begin(plan, row, tokens, -2 - namespace, compute)

    def _begin(
        self, plan: NDArray[np.int64], row: int, tokens: Any, root: int | None, compute: int
    ) -> int:
        """Let a sequence begin in `row`; return the row, or a status word.

        `root`: where its prefix is looked up, or None where its tokens are not known. Waits once
        for what is available, and three times more where cached pages have to give way.
        """
        size, launcher, host = self.pool.page_size, self.launcher, self.host
        prefix, nothing = host.prefix, launcher.no_tokens
        there = type(tokens) is not np.ndarray
        count, found = 0, np.empty(tokens.size // size, INT32)
        with self.pool._shape, self.pool._calls:
            got = host.fetch(nothing, nothing, tokens if there else nothing, 0)
            ids = got.given if there else tokens
            if root is not None:
                count = prefix._run(sharing_find_cpu, host.held, row, root, ids, compute, found)
                if count < 0:
                    return count
            need = -(-int(plan[PLAN_LENGTH]) // size) - count
            arrays = self._plan_there(plan, found[:count], ids, row)
            status = 0
            if need <= got.available:
                unseen = launcher.scratch(1)
                launcher.launch(rows_allocate_cuda, launcher.known, *arrays, unseen, 0)
            else:
                host.opening = np.array([row], INT32)
        if need > got.available:
            try:
                status = host.whole(lambda: host.evict_for(need))
                if status >= 0:
                    status, _need = launcher.ask(rows_allocate_cuda, launcher.known, *arrays)
            finally:
                host.opening = host.opening[:0]
        if root is not None:
            prefix._run(sharing_use_cpu, host.held, row, root, ids, int(status >= 0))
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
        plan[PLAN_LOCK_END] = self.host.held[self.tables.max_sequences + row]
        return self._sent(plan, pages, rest)

    def _sent(
        self, plan: NDArray[np.int64], pages: NDArray[np.int32], rest: NDArray[np.int32]
    ) -> tuple[Any, Any, Any]:
        """Bring a plan, pages to share and token ids to the GPU, all at once."""
        count, head = pages.size, plan.size
        words = np.empty(head + (count + rest.size + 1) // 2, INT64)
        words[:head] = plan.reshape(-1)
        numbers = words[head:].view(INT32)
        numbers[:count], numbers[count : count + rest.size] = pages, rest
        there = self.pool._gpu.upload(words)
        numbers = there[head:].view(INT32)
        return there[:head], numbers[:count], numbers[count : count + rest.size]

    # Prompts that come together.

    def _look(self, kernel: Kernel, *arguments: Any) -> int:
        return self.host.prefix._run(kernel, *arguments)

    def plan(self, prompts: Prompts, reserve: int, compute: int) -> Plan:
        """Say how many prompts fit, and what each finds; nothing changes. Waits twice."""
        rows = len(self.ids.free_rows(prompts.roots.size))
        with self.pool._shape, self.pool._calls:
            available = self.host.follow_all().available
            with self.host.prefix._all_owners():
                return self._plan(prompts, rows, available, reserve, compute)

    def open_batch(
        self, prompts: Prompts, priority: int, compute: int
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Let sequences begin in the lowest free rows, or none of them, by one launch.

        Waits once, and three times more where cached pages have to give way.
        """
        counts = np.zeros(prompts.roots.size, INT64)
        status, rows = self.rows_for(prompts)
        if status == 0:
            begin = lambda: self._begin_all(prompts, rows, counts, priority, compute)  # noqa: E731
            status = self.host.whole(begin)
        if status < 0:
            raise self._refusal(status, prompts, compute, np.tile(counts, 3))
        return rows, counts * self.pool.page_size

    def _begin_all(
        self,
        prompts: Prompts,
        rows: NDArray[np.int32],
        counts: NDArray[np.int64],
        priority: int,
        compute: int,
    ) -> int:
        """Let prompts begin in `rows`; return a status word. `counts`: where it tells of pages."""
        size, launcher, host = self.pool.page_size, self.launcher, self.host
        prefix, nothing = host.prefix, launcher.no_tokens
        each = [
            (row, root, prompts.tokens[start:stop])
            for row, root, start, stop in zip(
                rows.tolist(),
                prompts.roots.tolist(),
                prompts.bounds[:-1].tolist(),
                prompts.bounds[1:].tolist(),
                strict=True,
            )
        ]
        available = host.fetch(nothing, nothing, nothing, 0).available
        found, rest = [np.empty(0, INT32)], [NO_TOKENS]
        # What they share is locked first, so that no room is made of it.
        for i, (row, root, ids) in enumerate(each):
            out = np.empty(ids.size // size, INT32)
            counts[i] = prefix._run(sharing_find_cpu, host.held, row, root, ids, compute, out)
            found.append(out[: counts[i]])
            rest.append(ids[counts[i] * size :])
        need, status = int((prompts.pages(size) - counts).sum()), 0
        host.opening = rows
        try:
            if need > available:
                status = host.evict_for(need)
            if status >= 0:
                plan = plan_of(rows, prompts, counts, priority, size)
                plan[PLAN_LOCKED], plan[PLAN_KNOWN] = counts, plan[PLAN_LENGTH]
                plan[PLAN_NAMESPACE] = -2 - prompts.roots
                plan[PLAN_LOCK_END] = host.held.reshape(2, -1)[1, rows]
                arrays = self._sent(plan, np.concatenate(found), np.concatenate(rest))
                status, _need = launcher.ask(rows_allocate_cuda, launcher.known, *arrays)
        finally:
            host.opening = rows[:0]
        for row, root, ids in each:
            prefix._run(sharing_use_cpu, host.held, row, root, ids, int(status >= 0))
        return status

    def locked_pages(self, row: int) -> int:
        """Return how many cached pages the sequence in `row`, which just began, shares."""
        return int(self.host.held[row])

    def refused_pages(self, pages: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Return which of some pages are named before, or stand in the prefix cache."""
        following = self.host.prefix.arrays.following_pages
        inside = (pages >= 0) & (pages < following.size)
        cached = following[np.where(inside, pages, 0)] != UNCACHED
        refused: NDArray[np.bool_] = super().refused_pages(pages) | (inside & cached)
        return refused

    # Entering the cache, ending and giving way.

    def commit(self, row: int, num_tokens: int, tokens: Any) -> int:
        """Book what is computed of a sequence, which lets full pages enter the prefix cache.

        `num_tokens`: all where it is below 0. Returns how many of its tokens stand there.
        """
        host, nothing = self.host, self.launcher.no_tokens
        there = type(tokens) is not np.ndarray
        rule = ALL_PAGES | ALL_TOKENS if tokens.size else 0

        def work() -> int:
            rows, counts = self.launcher.one(row, num_tokens)
            counts = nothing if num_tokens < 0 else counts
            got = host.fetch(rows, counts, tokens if there else nothing, rule)
            told, length = got.given if there else tokens, int(got.facts[0, FACT_LENGTH])
            if not got.live.size:
                return pack_status(ROW_FREE, 0)
            if max(num_tokens, told.size) > length:
                return pack_status(POSITION_RANGE, length)
            run = lambda: host.run(commits_row_cpu, row, num_tokens, told)  # noqa: E731
            return host.enter(got, run, told if told.size else None)

        return self.launcher.seen(host.whole(work))

    def commit_there(self, rows: Any, counts: Any, cached: Any) -> None:
        """Book what is computed of a batch; how many tokens are cached is written to `cached`.

        Waits once. A batch that is not sound is refused on the GPU.
        """
        host, launcher = self.host, self.launcher

        def work() -> None:
            got = host.fetch(rows, counts, launcher.no_tokens, 0)
            facts = got.facts[got.facts[:, FACT_ROW] >= 0]
            numbers = facts[:, FACT_COUNT].copy()
            fits = (numbers >= 0) & (numbers <= facts[:, FACT_LENGTH])

            def run() -> int:
                out = np.empty(numbers.size, INT64)
                status = host.run(commits_batch_cpu, got.live, numbers, out)
                self.pool._shadow.advance(-1)  # the launch below is the step
                return status

            if got.sound and fits.all():
                host.enter(got, run, None)
            launcher.launch(commits_batch_cuda, rows, counts, cached, launcher.scratch(1), 0)

        host.whole(work)

    def _leave(self, rows: Any, released: Any) -> int:
        """Let sequences end, and enter the cache before; return how many pages went free.

        `released`: where that is written on the GPU, for a batch whose rows are known there; else
        None.
        """
        gpu, launcher, host = self.pool._gpu, self.launcher, self.host
        rule = ALL_PAGES if released is None else 0
        got = host.fetch(rows, launcher.constant(0), launcher.no_tokens, rule)
        live, count = got.live, 0

        def run() -> int:
            status = host.run(sharing_leave_cpu, live)
            if released is None:  # of one row: its pages are distinct, and what is cached stays
                pages = host.table.pages_now(got)
                own = self.pool._shadow.owners[pages] == 1
                own &= host.prefix.arrays.following_pages[pages] == UNCACHED
                status += int(own.sum())
            return status

        if released is None and not live.size:
            return pack_status(ROW_FREE, 0)
        if got.sound:
            count = host.enter(got, run, None)
        scratch = launcher.scratch(2 * rows.size + 2)
        answer = scratch[:1] if released is None else released
        launcher.launch(rows_free_cuda, rows, scratch[1:], answer, 0)
        if got.sound:
            if released is not None and count:
                gpu.launch(sharing_count_cuda, 1, 1, gpu.wrap(released), count)
            host.prefix._run(sharing_unlock_cpu, host.held, live)
            launcher.ended += live.size
        return count

    def end_there(self, rows: Any, commit: bool, released: Any) -> None:
        """End the sequences of a batch; how many pages went free is written to `released`."""
        if commit:
            self.host.whole(lambda: self._leave(rows, released))
        else:
            super().end_there(rows, commit, released)

    def end(self, rows: NDArray[np.int32], commit: bool, evicted: bool) -> int:
        """End sequences; return how many pages went free."""
        if evicted:
            held = self.page_counts()[2]
            super().end(rows, False, True)
            return held - self.page_counts()[2]
        if not commit:
            return super().end(rows, commit, evicted)
        gpu, whole = self.pool._gpu, self.host.whole
        return self.launcher.seen(whole(lambda: self._leave(gpu.upload(rows), None)))

    def cut(self, row: int, sink_tokens: int, window_tokens: int, evicted: int) -> tuple[int, int]:
        """Cut a sequence; return how many tokens it drops and how many pages are given up."""
        if not evicted:
            return super().cut(row, sink_tokens, window_tokens, evicted)
        held = self.page_counts()[2]
        dropped, _pages = super().cut(row, sink_tokens, window_tokens, evicted)
        return dropped, held - self.page_counts()[2]

    def run_on_copy(
        self, kernel: Kernel, slab: NDArray[np.int64], tables: NDArray[np.int64], *arguments: Any
    ) -> int:
        """Run a loop of the CPU on copies of pool and block table, and on the index itself."""
        host = self.host
        arrays = table_arrays(tables, self.tables.max_sequences, self.tables.max_pages_per_sequence)
        host.prefix._run(sharing_follow_cpu, host.held, host.locks(arrays))
        with self.pool._shadow.closed():
            status: int = kernel.run(slab, tables, host.prefix._slab, *arguments)
        host.held[:] = host.locks(arrays)
        return status

    # What the index has locked.

    def follow(self) -> None:
        """Let the index of the prefix cache lock what the rows lock by now. Waits."""
        self.host.follow()

    def relock(self) -> None:
        """Let the index lock anew what the rows lock. Waits."""
        arrays = self.tables._copy_on_cpu()
        sharing_relock_cpu.run(arrays.slab, self.host.prefix._slab)
        self.host.held[:] = self.host.locks(arrays)

    def rename_pages(self, moves: Moves) -> None:
        """Let the index's locks follow pages that have moved."""
        self.host.rename_pages(moves)
