"""What calls on sequences come to on the GPU: a kernel of one block, and an answer where asked."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from jitalloc._cuda import CudaKernel
from jitalloc._jit import Kernel
from jitalloc.cuda.arguments import as_integers
from jitalloc.cuda.holding import CudaSequenceState, tables_on_cpu
from jitalloc.errors import (
    OUT_OF_ROWS,
    POSITION_RANGE,
    ROW_FREE,
    TABLE_WIDTH,
    UnknownSequence,
    pack_status,
    unpack_status,
)
from jitalloc.kernels.cuda.eviction import eviction_window_batch_cuda
from jitalloc.kernels.cuda.forking import FACTS
from jitalloc.kernels.cuda.row_batches import ASKS, OPTION, PREFIX
from jitalloc.kernels.cuda.rows import (
    PLAN,
    PLAN_LENGTH,
    PLAN_NAMESPACE,
    PLAN_PRIORITY,
    PLAN_ROW,
    rows_allocate_cuda,
    rows_free_cuda,
    rows_mark_cuda,
)
from jitalloc.kernels.cuda.sequences import (
    sequences_append_cuda,
    sequences_fork_batch_cuda,
    sequences_truncate_batch_cuda,
)
from jitalloc.kernels.eviction import eviction_to_cpu
from jitalloc.state import (
    ANSWER,
    BORN,
    FIRST_PAGE,
    FREE,
    HEADER_SLOTS,
    INT32,
    INT64,
    LENGTH,
    LOCKED,
    NUM_PAGES,
    RECORD_SLOTS,
    RELEASED,
    ROW_COLUMNS,
    ROWS_FREED,
    STREAMING,
    words,
)

TAKING = (rows_allocate_cuda, sequences_append_cuda)  # what takes pages from the pool


def reorder_words(batch: int, width: int) -> int:
    """Return how many words of scratch `sequences_reorder_cuda` needs for rows of `width` pages."""
    return (2 + FACTS) * batch + 1 + (batch * width + 1) // 2


class CudaSequenceCalls(CudaSequenceState):
    """The part of `CudaPagedKVCache` that runs kernels on rows.

    A batch call starts its kernel and waits for nothing. A call by id is a batch of one that asks:
    the kernel leaves its answer in the record of the pool, and keeps no failure of its own there.
    """

    # Launching.

    def _bind(self) -> tuple[Any, ...]:
        """Return record and pool, and block table, as launches take them, and the answer's word."""
        gpu, words, tables = self.pool._gpu, self.pool._words, self.tables._slab
        # Not yet, or made anew.
        if not self._bound or self._bound[0] is not words or self._bound[1] is not tables:
            answer = words[ANSWER : ANSWER + 2]
            self._bound = words, tables, (gpu.wrap(words), gpu.wrap(tables)), answer
        return self._bound

    def _launch(self, kernel: CudaKernel, *arguments: Any) -> None:
        """Start a kernel on record, pool and tables, in one block.

        Where a merge could be due in it, others are there to help.
        """
        pool = self.pool
        with pool._calls:
            gpu, wrapped = pool._gpu, pool._wrapped(arguments)
            blocks = pool._mergers() if kernel in TAKING else 1
            pool._tick(kernel)
            gpu.launch(kernel, blocks, gpu.threads, *self._bind()[2], *wrapped)

    def _wait(self) -> NDArray[np.int64]:
        """Wait, raise the first failure, or return record and header of the pool."""
        words: NDArray[np.int64] = self.pool._settled()
        self._count_ended(words, 0)
        return words

    def _count_ended(self, words: NDArray[np.int64], known: int) -> None:
        """Let the ids follow where more sequences have ended than the `known` ones."""
        ended = int(words[ROWS_FREED])
        if ended != self._freed + known:
            self._ids.stale = True
        self._freed = ended

    def _ask(
        self,
        kernel: CudaKernel,
        *arguments: Any,
        rule: tuple[int, ...] = (),
        flags: int = 0,
        freed: int = 0,
    ) -> tuple[int, int]:
        """Start a kernel that leaves an answer, wait, and return it: a status and a fact.

        `arguments`: all behind the tables up to the answer; `rule`: scalars behind it, before the
        flags. `freed`: sequences that it ends.
        """
        with self.pool._calls:
            self._launch(kernel, *arguments, self._bind()[3], *rule, flags | ASKS)
            words = self.pool._settled()
        status = int(words[ANSWER])
        self._count_ended(words, freed if status >= 0 else 0)
        if status < 0 and unpack_status(status)[0] == ROW_FREE:
            self._ids.reconcile()
            raise UnknownSequence("the sequence has ended on the GPU")
        return status, int(words[ANSWER + 1])

    def _one(self, *numbers: int) -> Any:
        """Return numbers on the GPU, each as an array of one int32, for a batch of one."""
        there = self.pool._gpu.upload(np.array(numbers, INT32))
        return [there[i : i + 1] for i in range(len(numbers))]

    def _scratch_words(self, size: int) -> Any:
        """Return `size` words of scratch. What a graph may have captured is kept for good."""
        if self._scratch.size < size:
            self._kept.append(self._scratch)
            self._scratch = self.pool._gpu.empty(max(size, 2 * self._scratch.size), INT64)
        return self._scratch[:size]

    def _unseen(self) -> Any:
        """Return where a kernel leaves a number that nobody asks for."""
        return self._scratch_words(1)

    def _integers(self, name: str, values: Any, size: int) -> Any:
        """Return an array of int32 or int64 on the GPU as kernels read it: `integer` in calls."""
        return as_integers(self.pool._gpu, name, values, size)[0].view(INT32)

    def _constant(self, n: int) -> Any:
        """Return a number on the GPU, for all rows of a batch; kept, as a graph may read it."""
        if n not in self._constants:
            self._constants[n] = self.pool._gpu.upload(np.array([n], INT32))
        return self._constants[n]

    @property
    def _known(self) -> Any:
        """The token ids that the prefix cache has on the GPU, `int32[num_pages * page_size]`."""
        return self._no_tokens

    @property
    def _behind(self) -> int:
        """The flag of kernels that a prefix cache stands behind the sequences, or 0."""
        return 0 if self.prefix_cache is None else PREFIX

    # Beginning and ending.

    def _refuse_negative(self, tokens: Any) -> None:
        super()._refuse_negative(self.pool._gpu.download(tokens))

    def _plan(self, row: int, num_tokens: int, namespace: int, priority: int) -> NDArray[np.int64]:
        """Return what `rows_allocate_cuda` is told of one sequence that shares nothing."""
        plan = np.zeros(PLAN, INT64)
        plan[PLAN_ROW], plan[PLAN_LENGTH] = row, num_tokens
        plan[PLAN_NAMESPACE], plan[PLAN_PRIORITY] = namespace, priority
        return plan

    def _free_row(self, num_tokens: int) -> int:
        """Return the lowest row known to be free for so many tokens, or a status word."""
        if -(-num_tokens // self.pool.page_size) > self.tables.max_pages_per_sequence:
            return pack_status(TABLE_WIDTH, 0)
        row = self._ids.free_row()
        return row if row >= 0 else pack_status(OUT_OF_ROWS, 0)

    def _open(self, num_tokens: int, namespace: int, priority: int) -> int:
        row = self._free_row(num_tokens)
        if row < 0:
            self._wait()  # what failed before goes first
            return row
        plan = self._plan(row, num_tokens, namespace, priority)
        return self._open_rows(plan, self._no_tokens, self._no_tokens, row)

    def _open_rows(self, plan: NDArray[np.int64], given: Any, tokens: Any, row: int) -> int:
        """Let the sequences of a plan begin; return `row` or a status word.

        `given`: the pages that they share; `tokens`: the ids of what stands behind these.
        """
        there = self.pool._gpu.upload(plan.reshape(-1))
        status, _need = self._ask(rows_allocate_cuda, self._known, there, given, tokens)
        return row if status >= 0 else status

    def _locked_pages(self, row: int) -> int:
        return 0

    def _fork_row(self, src: int) -> int:
        row = self._free_row(0)
        if row < 0:
            self._wait()
            return row
        status, _ = self._ask(sequences_fork_batch_cuda, *self._one(src, row), flags=OPTION)
        return row if status >= 0 else status

    def _end_rows(self, rows: NDArray[np.int32], commit: bool, evicted: bool) -> int:
        there, scratch = self.pool._gpu.upload(rows), self._scratch_words(2 * rows.size + 1)
        flags = OPTION if evicted else 0
        return self._ask(rows_free_cuda, there, scratch, flags=flags, freed=rows.size)[0]

    def _free_on_device(self, rows: Any, commit: bool, released: Any) -> None:
        """End the sequences of a batch; how many pages went free is written to `released`."""
        scratch = self._scratch_words(2 * rows.size + 1)
        self._launch(rows_free_cuda, rows, scratch, released, 0)

    # Shrinking.

    def _truncate(self, row: int, num_tokens: int) -> int:
        rows, tokens = self._one(row, num_tokens)
        scratch = self._scratch_words(3)
        status, length = self._ask(sequences_truncate_batch_cuda, rows, tokens, scratch)
        if status < 0 and unpack_status(status)[0] == POSITION_RANGE:
            return pack_status(POSITION_RANGE, length)
        return status

    def _cut(self, row: int, sink_tokens: int, window_tokens: int, evicted: int) -> tuple[int, int]:
        (rows,) = self._one(row)
        flags = self._behind | (OPTION if evicted else 0)
        arrays = rows, self._scratch_words(5), self._bind()[3][1:]
        rule = (sink_tokens << 32 | window_tokens,)
        released, dropped = self._ask(eviction_window_batch_cuda, *arrays, rule=rule, flags=flags)
        return dropped, released

    def _evict_down(self, target: int, policy: tuple[int, int, int]) -> list[list[int]]:
        """Choose on a copy of the state, and end or cut the victims by one launch; waits twice."""
        gpu, pool = self.pool._gpu, self.pool
        with pool._calls:
            self._wait()
            slab, tables = gpu.download(pool._slab), gpu.download(self.tables._slab)
            owners = np.zeros(pool.num_pages, INT32)
            victims = np.zeros((self.tables.max_sequences, 3), INT64)
            rule = np.array(policy, INT64)
            count = self._run_on_copy(eviction_to_cpu, slab, tables, owners, victims, target, rule)
            gone: list[list[int]] = victims[:count].tolist()
            rows = victims[:count, 0].astype(INT32)
            if policy[0] != STREAMING:
                CudaSequenceCalls._end_rows(self, rows, False, True)
                return gone
            scratch, dropped = self._scratch_words(3 * count + 2), gpu.empty(count, INT64)
            arrays, flags = (gpu.upload(rows), scratch, dropped), self._behind | OPTION
            cut = (policy[1] << 32 | policy[2],)
            self._ask(eviction_window_batch_cuda, *arrays, rule=cut, flags=flags)
        return gone

    def _run_on_copy(
        self, kernel: Kernel, slab: NDArray[np.int64], tables: NDArray[np.int64], *arguments: Any
    ) -> int:
        """Run a loop of the CPU on copies of pool and block table."""
        status: int = kernel.run(slab, tables, self._prefix, *arguments)
        return status

    # Facts.

    def _mark(self, row: int, column: int, value: int) -> None:
        with self.pool._calls:
            gpu = self.pool._gpu
            rows = self._constant(row)
            tables = self._bind()[2][1]
            gpu.launch(rows_mark_cuda, 1, gpu.threads, tables, gpu.wrap(rows), column, value)

    def _look(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        rows = self.tables.max_sequences
        start = HEADER_SLOTS + 2 * words(rows)
        with self.pool._calls:
            self._wait()
            slab = self.pool._gpu.download(self.tables._slab[: start + ROW_COLUMNS * rows])
        return slab, slab[start:].reshape(ROW_COLUMNS, rows)

    def _row_state(self, row: int) -> tuple[list[int], Any, int]:
        gpu, pool = self.pool._gpu, self.pool
        facts = self._look()[1][:, row].tolist()
        if not facts[BORN]:
            self._ids.reconcile()
            raise UnknownSequence("the sequence has ended on the GPU")
        count = -(-facts[LENGTH] // pool.page_size)
        pages = gpu.upload(gpu.download(self.tables.arrays.pages[row, :count]))
        return facts, pages, int((gpu.download(pool.refcount(pages)) > 1).sum())

    def _totals(self) -> tuple[list[int], int]:
        slab, columns = self._look()
        return slab[:HEADER_SLOTS].tolist(), int(columns[LENGTH].sum())

    def _pages(self) -> tuple[int, int, int]:
        header = self._wait()[RECORD_SLOTS:]
        free = int(header[FREE] + header[RELEASED])
        return free, 0, int(header[NUM_PAGES] - header[FIRST_PAGE]) - free

    def _holds_locks(self) -> bool:
        return bool(tables_on_cpu(self.tables).columns[LOCKED].any())
