"""Rows of a block table on the GPU: a kernel of one block for each call, which waits for it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from jitalloc._jit import Kernel
from jitalloc.errors import (
    OUT_OF_PAGES,
    OUT_OF_ROWS,
    POSITION_RANGE,
    TABLE_WIDTH,
    WrongDevice,
    pack_status,
    unpack_status,
)
from jitalloc.gpu.arguments import as_device
from jitalloc.gpu.record import RECORD_SLOTS
from jitalloc.pool.holders import Moves
from jitalloc.pool.state import FIRST_PAGE, FREE, NUM_PAGES, RELEASED
from jitalloc.sequences.batches import Allocated, Plan, Prompts
from jitalloc.sequences.launcher_cuda import SequenceLauncher
from jitalloc.sequences.loops.commits_cuda import commits_batch_cuda
from jitalloc.sequences.loops.eviction import eviction_to_cpu
from jitalloc.sequences.loops.eviction_cuda import eviction_window_batch_cuda
from jitalloc.sequences.loops.row_batches_cuda import OPTION
from jitalloc.sequences.loops.rows_cuda import (
    ADOPT,
    ADOPT_COMPUTED,
    ADOPT_FAULT,
    ADOPT_NAMESPACE,
    ADOPT_PRIORITY,
    ADOPT_ROW,
    PLAN,
    PLAN_LENGTH,
    PLAN_NAMESPACE,
    PLAN_NEW_START,
    PLAN_PRIORITY,
    PLAN_ROW,
    PLAN_SHARED,
    PLAN_SHARED_START,
    PLAN_TOKEN_START,
    rows_adopt_cuda,
    rows_allocate_cuda,
    rows_free_cuda,
    rows_mark_cuda,
)
from jitalloc.sequences.loops.sequences_cuda import (
    sequences_fork_batch_cuda,
    sequences_truncate_batch_cuda,
)
from jitalloc.sequences.rows import SequenceRows
from jitalloc.sequences.state import BORN, LENGTH, ROW_COLUMNS, STREAMING
from jitalloc.state import HEADER_SLOTS, INT32, INT64, NULL, words


def new_plan(row: int, num_tokens: int, namespace: int, priority: int) -> NDArray[np.int64]:
    """Return what `rows_allocate_cuda` is told of one sequence that shares nothing."""
    plan = np.zeros(PLAN, INT64)
    plan[PLAN_ROW], plan[PLAN_LENGTH] = row, num_tokens
    plan[PLAN_NAMESPACE], plan[PLAN_PRIORITY] = namespace, priority
    return plan


def starts_of(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where parts of these sizes begin, one behind the other."""
    return np.cumsum(sizes) - sizes


def plan_of(
    rows: NDArray[np.int32], prompts: Prompts, counts: NDArray[np.int64], priority: int, size: int
) -> NDArray[np.int64]:
    """Return what `rows_allocate_cuda` is told of sequences that share their first `counts` pages.

    What a prefix cache knows of them is left out.
    """
    lengths = np.diff(prompts.bounds)
    plan = np.zeros((PLAN, rows.size), INT64)
    plan[PLAN_ROW], plan[PLAN_LENGTH], plan[PLAN_PRIORITY] = rows, lengths, priority
    plan[PLAN_SHARED], plan[PLAN_SHARED_START] = counts, starts_of(counts)
    plan[PLAN_NEW_START] = starts_of(prompts.pages(size) - counts)
    plan[PLAN_TOKEN_START] = starts_of(lengths - counts * size)
    return plan


class CudaSequenceRows(SequenceRows):
    """`SequenceRows` on the GPU, without a prefix cache.

    Attributes
    ----------
    launcher : SequenceLauncher
    """

    pool: Any
    tables: Any
    ids: Any

    def __init__(self, launcher: SequenceLauncher) -> None:
        super().__init__(launcher.pool, launcher.tables, launcher.ids, launcher.prefix_cache)
        self.launcher = launcher

    # Beginning and ending.

    def as_tokens(self, tokens: Any) -> Any:
        """Return ids of tokens as an array of the GPU."""
        return as_device(self.pool._gpu, "tokens", tokens, INT32)

    def free_row(self, num_tokens: int) -> int:
        """Return the lowest row known to be free for so many tokens, or a status word.

        Where there is none, what failed before goes first.
        """
        status = pack_status(TABLE_WIDTH, 0)
        if -(-num_tokens // self.pool.page_size) <= self.tables.max_pages_per_sequence:
            row: int = self.ids.free_row()
            if row >= 0:
                return row
            status = pack_status(OUT_OF_ROWS, 0)
        self.launcher.wait()
        return status

    def open(self, num_tokens: int, namespace: int, priority: int) -> int:
        """Let a sequence begin in the lowest free row; return the row."""
        row = self.free_row(num_tokens)
        if row < 0:
            return row
        launcher = self.launcher
        plan = self.pool._gpu.upload(new_plan(row, num_tokens, namespace, priority))
        nothing = launcher.no_tokens
        status, _need = launcher.ask(rows_allocate_cuda, launcher.known, plan, nothing, nothing)
        return row if status >= 0 else status

    def _negative(self, tokens: Any) -> int:
        return super()._negative(self.pool._gpu.download(tokens))

    # Prompts that come together.

    def _on_cpu(self, name: str, values: Any) -> Any:
        if type(values) is np.ndarray:
            return values
        try:
            return self.pool._gpu.download(self.pool._gpu.adopt(name, values))
        except WrongDevice:
            if hasattr(values, "__cuda_array_interface__"):
                raise  # that of another one
            return values

    def _look(self, kernel: Kernel, *arguments: Any) -> int:
        # Without a prefix cache no page is looked at: a pool without any will do.
        status: int = kernel.run(np.zeros(HEADER_SLOTS, INT64), self.index._slab, *arguments)
        return status

    def plan(self, prompts: Prompts, reserve: int, compute: int) -> Plan:
        """Say how many prompts fit, and what each finds; nothing changes. Waits."""
        rows = len(self.ids.free_rows(prompts.roots.size))
        return self._plan(prompts, rows, self.page_counts()[0], reserve, compute)

    def rows_for(self, prompts: Prompts) -> tuple[int, NDArray[np.int32]]:
        """Return 0 and the lowest free rows for prompts, or a status word why they cannot begin.

        Then what failed before goes first.
        """
        lengths, status = np.diff(prompts.bounds), 0
        rows = np.array(self.ids.free_rows(lengths.size), INT32)
        long = prompts.pages(self.pool.page_size) > self.tables.max_pages_per_sequence
        if long.any():
            status = pack_status(TABLE_WIDTH, int(long.argmax()))
        elif rows.size < lengths.size:
            status = pack_status(OUT_OF_ROWS, rows.size)
        if status < 0:
            self.launcher.wait()
        else:
            status = SequenceRows._negative(self, prompts.tokens)
        return status, rows

    def open_batch(
        self, prompts: Prompts, priority: int, compute: int
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Let sequences begin in the lowest free rows, or none of them, by one launch; waits."""
        counts = np.zeros(prompts.roots.size, INT64)
        status, rows = self.rows_for(prompts)
        if status == 0:
            launcher = self.launcher
            plan = plan_of(rows, prompts, counts, priority, self.pool.page_size)
            arrays = self.pool._gpu.upload(plan.reshape(-1)), *(launcher.no_tokens,) * 2
            status, _need = launcher.ask(rows_allocate_cuda, launcher.known, *arrays)
        if status < 0:
            raise self._refusal(status, prompts, compute, np.tile(counts, 3))
        return rows, counts

    def allocated(self, rows: NDArray[np.int32], num_cached: NDArray[np.int64]) -> Allocated:
        """Return what is told of sequences that have begun; the rows go to the GPU."""
        nothing = self.launcher.no_tokens
        return Allocated(self.pool._gpu.upload(rows), num_cached, Moves(nothing, nothing))

    def locked_pages(self, row: int) -> int:
        """Return how many cached pages the sequence in `row`, which just began, shares."""
        return 0

    def fork(self, src: int, num_tokens: int) -> int:
        """Let a sequence begin in the lowest free row that shares the first tokens of `src`.

        `num_tokens`: all where it is below 0. Returns the row.
        """
        row, launcher = self.free_row(0), self.launcher
        if row < 0:
            return row
        *pair, counts = launcher.one(src, row, num_tokens)
        arrays = *pair, launcher.no_tokens if num_tokens < 0 else counts
        status, length = launcher.ask(sequences_fork_batch_cuda, *arrays, flags=OPTION)
        if status < 0 and unpack_status(status)[0] == POSITION_RANGE:
            return pack_status(POSITION_RANGE, length)
        return row if status >= 0 else status

    def as_pages(self, pages: Any) -> Any:
        """Return page ids as an array of the GPU."""
        return as_device(self.pool._gpu, "pages", pages, INT32)

    def adopt(self, tokens: Any, pages: Any, facts: tuple[int, int, int]) -> int:
        """Let a sequence begin in the lowest free row with pages of the caller's; return the row.

        `facts`: its namespace, its priority, and how far it is computed. Waits twice: the host
        looks at the pages first.
        """
        row, launcher, gpu = self.free_row(tokens.size), self.launcher, self.pool._gpu
        if row < 0:
            return row
        with self.pool._shape, self.pool._calls:
            plan = np.empty(ADOPT, INT64)
            plan[ADOPT_ROW] = row
            plan[ADOPT_NAMESPACE], plan[ADOPT_PRIORITY], plan[ADOPT_COMPUTED] = facts
            refused = np.flatnonzero(self.refused_pages(gpu.download(pages)))
            plan[ADOPT_FAULT] = refused[0] if refused.size else NULL
            ids = gpu.upload(tokens) if type(tokens) is np.ndarray else tokens
            arrays = launcher.known, gpu.upload(plan), pages, ids
            status, _ = launcher.ask(rows_adopt_cuda, *arrays, flags=launcher.behind)
        return row if status >= 0 else status

    def refused_pages(self, pages: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Return which of some pages are named before, or stand in the prefix cache."""
        repeated = np.ones(pages.size, np.bool_)
        repeated[np.unique(pages, return_index=True)[1]] = False
        return repeated

    def end(self, rows: NDArray[np.int32], commit: bool, evicted: bool) -> int:
        """End sequences; return how many pages went free."""
        there, scratch = self.pool._gpu.upload(rows), self.launcher.scratch(2 * rows.size + 1)
        flags = OPTION if evicted else 0
        return self.launcher.ask(rows_free_cuda, there, scratch, flags=flags, ends=rows.size)[0]

    def end_there(self, rows: Any, commit: bool, released: Any) -> None:
        """End the sequences of a batch; how many pages went free is written to `released`."""
        scratch = self.launcher.scratch(2 * rows.size + 1)
        self.launcher.launch(rows_free_cuda, rows, scratch, released, 0)

    # What is computed, and sharing.

    def commit(self, row: int, num_tokens: int, tokens: Any) -> int:
        """Book what is computed of a sequence; return 0: nothing of it is cached.

        `num_tokens`: all where it is below 0. Waits once more where there are `tokens`.
        """
        launcher = self.launcher
        if tokens.size:
            columns = self.look()[1]
            if not columns[BORN, row]:
                raise launcher.unknown()
            if tokens.size > columns[LENGTH, row]:
                return pack_status(POSITION_RANGE, int(columns[LENGTH, row]))
            negative = self._negative(tokens)
            if negative < 0:
                return negative
        rows, counts = launcher.one(row, num_tokens)
        arrays = rows, launcher.no_tokens if num_tokens < 0 else counts, launcher.scratch(1)
        status, length = launcher.ask(commits_batch_cuda, *arrays)
        if status < 0 and unpack_status(status)[0] == POSITION_RANGE:
            return pack_status(POSITION_RANGE, length)
        return status

    def commit_there(self, rows: Any, counts: Any, cached: Any) -> None:
        """Book what is computed of a batch; how many tokens are cached is written to `cached`."""
        arrays = rows, counts, cached, self.launcher.scratch(1)
        self.launcher.launch(commits_batch_cuda, *arrays, 0)

    def make_room(self, need: int) -> int:
        """Return 0 if `need` pages are available, or else a status word: nothing gives way."""
        free = self.page_counts()[0]
        return 0 if need <= free else pack_status(OUT_OF_PAGES, free)

    def make_room_for(self, need: int) -> bool:
        """Make room for a call that has failed for want of pages; return whether it comes again."""
        return False

    def follow(self) -> None:
        """Let the index of the prefix cache lock what the rows lock by now. Waits."""

    def rename_pages(self, moves: Moves) -> None:
        """Follow pages that have moved, on the host, with what is known there of rows."""

    # Shrinking.

    def truncate(self, row: int, num_tokens: int) -> int:
        """Keep the first tokens of a sequence; return how many pages went free."""
        rows, tokens = self.launcher.one(row, num_tokens)
        arrays = rows, tokens, self.launcher.scratch(3)
        status, length = self.launcher.ask(sequences_truncate_batch_cuda, *arrays)
        if status < 0 and unpack_status(status)[0] == POSITION_RANGE:
            return pack_status(POSITION_RANGE, length)
        return status

    def cut(self, row: int, sink_tokens: int, window_tokens: int, evicted: int) -> tuple[int, int]:
        """Cut a sequence; return how many tokens it drops and how many pages are given up."""
        launcher = self.launcher
        (rows,) = launcher.one(row)
        flags = launcher.behind | (OPTION if evicted else 0)
        arrays = rows, launcher.scratch(5), launcher.answer()[1:]
        rule = (sink_tokens << 32 | window_tokens,)
        released, dropped = launcher.ask(
            eviction_window_batch_cuda, *arrays, rule=rule, flags=flags
        )
        return dropped, released

    def evict_down(self, target: int, policy: tuple[int, int, int]) -> list[list[int]]:
        """Choose on a copy of the state, and end or cut the victims by one launch; waits twice."""
        gpu, pool, launcher = self.pool._gpu, self.pool, self.launcher
        with pool._calls:
            launcher.wait()
            slab, tables = gpu.download(pool._slab), gpu.download(self.tables._slab)
            owners = np.zeros(pool.num_pages, INT32)
            victims = np.zeros((self.tables.max_sequences, 3), INT64)
            rule = np.array(policy, INT64)
            count = self.run_on_copy(eviction_to_cpu, slab, tables, owners, victims, target, rule)
            gone: list[list[int]] = victims[:count].tolist()
            rows = victims[:count, 0].astype(INT32)
            if policy[0] != STREAMING:
                CudaSequenceRows.end(self, rows, False, True)
                return gone
            scratch, dropped = launcher.scratch(3 * count + 2), gpu.empty(count, INT64)
            arrays, flags = (gpu.upload(rows), scratch, dropped), launcher.behind | OPTION
            cut = (policy[1] << 32 | policy[2],)
            launcher.ask(eviction_window_batch_cuda, *arrays, rule=cut, flags=flags)
        return gone

    def run_on_copy(
        self, kernel: Kernel, slab: NDArray[np.int64], tables: NDArray[np.int64], *arguments: Any
    ) -> int:
        """Run a loop of the CPU on copies of pool and block table."""
        status: int = kernel.run(slab, tables, self.index._slab, *arguments)
        return status

    # Facts.

    def mark(self, row: int, column: int, value: int) -> None:
        """Set one fact of the sequence in `row`."""
        with self.pool._calls:
            gpu, launcher = self.pool._gpu, self.launcher
            rows = launcher.constant(row)
            tables = launcher.bind()[1]
            gpu.launch(rows_mark_cuda, 1, gpu.threads, tables, gpu.wrap(rows), column, value)

    def look(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the block table, its page ids left out, and its columns: to be read."""
        rows = self.tables.max_sequences
        start = HEADER_SLOTS + 2 * words(rows)
        with self.pool._calls:
            self.launcher.wait()
            slab = self.pool._gpu.download(self.tables._slab[: start + ROW_COLUMNS * rows])
        return slab, slab[start:].reshape(ROW_COLUMNS, rows)

    def facts(self, row: int) -> tuple[list[int], Any, int]:
        """Return facts and pages of a sequence, and how many of these others hold too."""
        gpu, pool = self.pool._gpu, self.pool
        facts = self.look()[1][:, row].tolist()
        if not facts[BORN]:
            raise self.launcher.unknown()
        count = -(-facts[LENGTH] // pool.page_size)
        pages = gpu.upload(gpu.download(self.tables.arrays.pages[row, :count]))
        return facts, pages, int((gpu.download(pool.refcount(pages)) > 1).sum())

    def totals(self) -> tuple[list[int], int]:
        """Return the header of the block table, and how many tokens the sequences have."""
        slab, columns = self.look()
        return slab[:HEADER_SLOTS].tolist(), int(columns[LENGTH].sum())

    def page_counts(self) -> tuple[int, int, int]:
        """Return how many pages are free, reclaimable and held, at one moment."""
        header = self.launcher.wait()[RECORD_SLOTS:]
        free = int(header[FREE] + header[RELEASED])
        return free, 0, int(header[NUM_PAGES] - header[FIRST_PAGE]) - free
