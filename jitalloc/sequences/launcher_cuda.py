"""Kernels of a cache of sequences on the GPU: started on its rows, and what they answer."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from jitalloc.errors import ROW_FREE, UnknownSequence, unpack_status
from jitalloc.gpu.kernel import CudaKernel
from jitalloc.gpu.record import ANSWER, ROWS_FREED
from jitalloc.prefix.prefix_cuda import CudaPrefixCache
from jitalloc.sequences.ids_cuda import CudaSequenceIds
from jitalloc.sequences.loops.row_batches_cuda import ASKS, PREFIX
from jitalloc.sequences.loops.rows_cuda import rows_allocate_cuda
from jitalloc.sequences.loops.sequences_cuda import (
    sequences_append_ahead_cuda,
    sequences_append_cuda,
)
from jitalloc.sequences.tables_cuda import CudaBlockTables
from jitalloc.state import INT32, INT64, NO_TOKENS

# What takes pages from the pool.
TAKING = (rows_allocate_cuda, sequences_append_cuda, sequences_append_ahead_cuda)


class SequenceLauncher:
    """Starts kernels on a pool and the rows of a block table, and keeps what they need there.

    A batch call starts its kernel and waits for nothing. A call by id is a batch of one that asks:
    the kernel leaves its answer in the record of the pool, and keeps no failure of its own there.

    Attributes
    ----------
    pool : CudaPagePool
    tables : CudaBlockTables
    ids : CudaSequenceIds
    prefix_cache : CudaPrefixCache or None
    no_tokens : int32[0]
        On the GPU.
    behind : int
        The flag of kernels that a prefix cache stands behind the sequences, or 0.
    ended : int
        Sequences that have ended so far, as the ids know.
    """

    def __init__(
        self,
        pool: Any,
        tables: CudaBlockTables,
        ids: CudaSequenceIds,
        prefix_cache: CudaPrefixCache | None,
    ) -> None:
        self.pool, self.tables, self.ids = pool, tables, ids
        self.prefix_cache = prefix_cache
        self.behind = 0 if prefix_cache is None else PREFIX
        self.ended = 0
        gpu = pool._gpu
        self.no_tokens = gpu.upload(NO_TOKENS)
        # Enough for all rows; `reorder` alone takes more.
        self._scratch = gpu.empty(3 * tables.max_sequences + 3, INT64)
        # Waits, for what is above as well.
        self._constants = {n: gpu.keep(np.array([n], INT32)) for n in (0, 1)}
        self._outgrown: list[Any] = []
        self._bound: tuple[Any, ...] = ()

    def bind(self) -> tuple[Any, ...]:
        """Return record and pool, and block table, as launches take them."""
        bound: tuple[Any, ...] = self._bind()[2]
        return bound

    def answer(self) -> Any:
        """Return where a kernel leaves its answer: a result or status word, and a word more."""
        return self._bind()[3]

    def _bind(self) -> tuple[Any, ...]:
        gpu, words, tables = self.pool._gpu, self.pool._words, self.tables._slab
        # Not yet, or made anew.
        if not self._bound or self._bound[0] is not words or self._bound[1] is not tables:
            answer = words[ANSWER : ANSWER + 2]
            self._bound = words, tables, (gpu.wrap(words), gpu.wrap(tables)), answer
        return self._bound

    def launch(self, kernel: CudaKernel, *arguments: Any) -> None:
        """Start a kernel on record, pool and tables, in one block.

        Where a merge could be due in it, others are there to help.
        """
        pool = self.pool
        with pool._calls:
            gpu, wrapped = pool._gpu, pool._wrapped(arguments)
            blocks = pool._mergers() if kernel in TAKING else 1
            pool._tick(kernel)
            gpu.launch(kernel, blocks, gpu.threads, *self._bind()[2], *wrapped)

    def wait(self) -> NDArray[np.int64]:
        """Wait, raise the first failure, or return record and header of the pool."""
        words: NDArray[np.int64] = self.pool._settled()
        self.count_ended(words)
        return words

    def count_ended(self, words: NDArray[np.int64], known: int = 0) -> None:
        """Let the ids follow where more sequences have ended than the `known` ones."""
        ended = int(words[ROWS_FREED])
        if ended != self.ended + known:
            self.ids.stale = True
        self.ended = ended

    def ask(
        self,
        kernel: CudaKernel,
        *arguments: Any,
        rule: tuple[int, ...] = (),
        flags: int = 0,
        ends: int = 0,
    ) -> tuple[int, int]:
        """Start a kernel that leaves an answer, wait, and return it: a status and a fact.

        `arguments`: all behind the tables up to the answer; `rule`: scalars behind it, before the
        flags. `ends`: sequences that it ends.
        """
        with self.pool._calls:
            self.launch(kernel, *arguments, self.answer(), *rule, flags | ASKS)
            words = self.pool._settled()
        status = int(words[ANSWER])
        self.count_ended(words, ends if status >= 0 else 0)
        return self.seen(status), int(words[ANSWER + 1])

    def seen(self, status: int) -> int:
        """Return a status, but where a sequence has ended on the GPU: then that is raised."""
        if status < 0 and unpack_status(status)[0] == ROW_FREE:
            raise self.unknown()
        return status

    def unknown(self) -> UnknownSequence:
        """Return what is raised where a sequence has ended unseen, which the ids now know."""
        self.ids.reconcile()
        return UnknownSequence("the sequence has ended on the GPU")

    # Arrays on the GPU.

    def one(self, *numbers: int) -> Any:
        """Return numbers, each as an array of one int32, for a batch of one."""
        there = self.pool._gpu.upload(np.array(numbers, INT32))
        return [there[i : i + 1] for i in range(len(numbers))]

    def scratch(self, size: int) -> Any:
        """Return `size` words of scratch. What a graph may have captured is kept for good."""
        if self._scratch.size < size:
            self._outgrown.append(self._scratch)
            self._scratch = self.pool._gpu.empty(max(size, 2 * self._scratch.size), INT64)
        return self._scratch[:size]

    def constant(self, n: int) -> Any:
        """Return a number, for all rows of a batch; kept, as a graph may read it."""
        if n not in self._constants:
            self._constants[n] = self.pool._gpu.upload(np.array([n], INT32))
        return self._constants[n]

    @property
    def known(self) -> Any:
        """The token ids that the prefix cache has on the GPU, `int32[num_pages * page_size]`."""
        return self.no_tokens if self.prefix_cache is None else self.prefix_cache._tokens
