"""Rows of a block table: a sequence begins in one, is cut short, enters the prefix cache, ends."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from jitalloc._jit import Kernel
from jitalloc.arguments import as_bounds, as_pages, as_tokens, check_hashable
from jitalloc.errors import (
    NEGATIVE_TOKEN,
    OUT_OF_PAGES,
    POSITION_RANGE,
    JitallocError,
    argument_error,
    pack_status,
    unpack_status,
)
from jitalloc.pool.holders import Moves
from jitalloc.pool.pool import PagePool
from jitalloc.prefix.prefix import PrefixCache
from jitalloc.sequences.batches import Allocated, Plan, Prompts, as_roots, batch_error
from jitalloc.sequences.ids import SequenceIds
from jitalloc.sequences.loops.batches import batches_open_cpu, batches_plan_cpu
from jitalloc.sequences.loops.commits import commits_row_cpu
from jitalloc.sequences.loops.eviction import eviction_to_cpu, eviction_window_cpu
from jitalloc.sequences.loops.rows import (
    rows_adopt_cpu,
    rows_allocate_cpu,
    rows_allocate_tokens_cpu,
    rows_free_cpu,
)
from jitalloc.sequences.loops.sequences import sequences_fork_cpu, sequences_truncate_cpu
from jitalloc.sequences.loops.sharing import (
    sharing_pages_cpu,
    sharing_relock_cpu,
    sharing_room_cpu,
)
from jitalloc.sequences.state import ACTIVE, LENGTH, LOCKED
from jitalloc.sequences.tables import BlockTables
from jitalloc.state import INT32, INT64, NO_TOKENS


class Index(Protocol):
    """What kernels are given of a prefix cache."""

    _slab: NDArray[np.int64]


class NoIndex:
    """What stands for a prefix cache where there is none."""

    def __init__(self) -> None:
        self._slab = np.zeros(1, np.int64)


NO_INDEX: Final = NoIndex()


class SequenceRows:
    """Single rows of a block table on a pool, as `PagedKVCache` works on them by its ids.

    Each method runs a kernel while the caller holds the lock of the ids. What returns an int
    returns a status word where it fails.

    Attributes
    ----------
    pool : PagePool
    tables : BlockTables
    ids : SequenceIds
    prefix_cache : PrefixCache or None
    index : Index
        The prefix cache, or what stands for none, to kernels.
    """

    def __init__(
        self,
        pool: PagePool,
        tables: BlockTables,
        ids: SequenceIds,
        prefix_cache: PrefixCache | None,
    ) -> None:
        self.pool = pool
        self.tables = tables
        self.ids = ids
        self.prefix_cache = prefix_cache
        self.index: Index = NO_INDEX if prefix_cache is None else prefix_cache

    # Beginning and ending.

    def as_tokens(self, tokens: Any) -> NDArray[np.int32]:
        """Return ids of tokens as the other methods take them."""
        return as_tokens(tokens)

    def as_pages(self, pages: Any) -> NDArray[np.int32]:
        """Return page ids as the other methods take them."""
        return as_pages(pages)

    def namespace(self, name: Hashable) -> int:
        """Return the number of a namespace, which may be a new one."""
        if self.prefix_cache is not None:
            return -2 - self.prefix_cache._make_root(name)
        check_hashable("namespace", name)
        return 0

    def open(self, num_tokens: int, namespace: int, priority: int) -> int:
        """Let a sequence begin in the lowest free row; return the row."""
        slabs = self.tables._slab, self.index._slab
        return self.pool._run(rows_allocate_cpu, *slabs, num_tokens, namespace, priority)

    def open_with(
        self, tokens: NDArray[np.int32], namespace: int, priority: int, compute: int
    ) -> int:
        """Let a sequence begin on the cached pages of its prefix, if any; return the row."""
        if self.prefix_cache is None:
            negative = self._negative(tokens)
            return negative if negative < 0 else self.open(tokens.size, namespace, priority)
        slabs = self.tables._slab, self.index._slab
        numbers = namespace, priority, compute
        return self.pool._run(rows_allocate_tokens_cpu, *slabs, tokens, *numbers)

    # Prompts that come together.

    def prompts(
        self, tokens: Any, indptr: Any, namespaces: Iterable[Hashable] | None, makes: bool
    ) -> Prompts:
        """Return a batch of prompts as loops of the CPU take it; namespaces as in `as_roots`."""
        flat = as_tokens(self._on_cpu("tokens", tokens))
        bounds = as_bounds(self._on_cpu("indptr", indptr), flat.size)
        return Prompts(
            flat, bounds, as_roots(self.prefix_cache, namespaces, bounds.size - 1, makes)
        )

    def _on_cpu(self, name: str, values: Any) -> Any:
        """Return an argument as loops of the CPU can read it."""
        return values

    def plan(self, prompts: Prompts, reserve: int, compute: int) -> Plan:
        """Say how many prompts fit, and what each finds; nothing changes."""
        free = self.tables.max_sequences - int(self.tables.arrays.header[ACTIVE])
        return self._plan(prompts, free, -1, reserve, compute)

    def _plan(
        self, prompts: Prompts, rows: int, available: int, reserve: int, compute: int
    ) -> Plan:
        """Say how many fit, with so many free rows and pages (-1: the pool knows how many)."""
        size, width = self.pool.page_size, self.tables.max_pages_per_sequence
        rule = np.array([size, available, reserve, width, rows, compute])
        batch = prompts.roots.size
        facts, found = np.empty(3 * batch, INT64), np.empty(prompts.tokens.size // size, INT32)
        admitted = self._look(batches_plan_cpu, *prompts, rule, facts, found)
        if admitted < 0:
            raise argument_error(admitted, "tokens", prompts.tokens)
        return Plan(admitted, facts[:batch], facts[batch : 2 * batch])

    def _look(self, kernel: Kernel, *arguments: Any) -> int:
        """Run a loop on the pool and the prefix cache as the CPU has them."""
        return self.pool._run(kernel, self.index._slab, *arguments)

    def open_batch(
        self, prompts: Prompts, priority: int, compute: int
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Let sequences begin in the lowest free rows, or none of them.

        Returns the rows, and how many tokens of each are cached.
        """
        batch = prompts.roots.size
        facts, rule = np.empty(3 * batch, INT64), np.array([priority, compute])
        slabs = self.tables._slab, self.index._slab
        status = self.pool._run(batches_open_cpu, *slabs, *prompts, rule, facts)
        if status < 0:
            raise self._refusal(status, prompts, compute, facts)
        return facts[:batch].astype(INT32), facts[batch : 2 * batch] * self.pool.page_size

    def allocated(self, rows: NDArray[np.int32], num_cached: NDArray[np.int64]) -> Allocated:
        """Return what is told of sequences that have begun."""
        return Allocated(rows, num_cached, Moves(NO_TOKENS, NO_TOKENS))

    def _refusal(
        self, status: int, prompts: Prompts, compute: int, facts: NDArray[np.int64]
    ) -> JitallocError:
        """Return why prompts could not begin; `facts` as `batches_open_cpu` leaves them."""
        fits = 0
        if unpack_status(status)[0] == OUT_OF_PAGES:
            fits = self.plan(prompts, 0, compute).admitted
        return batch_error(status, prompts, fits, facts, self.tables)

    def _negative(self, tokens: NDArray[np.int32]) -> int:
        if tokens.size and tokens.min() < 0:
            return pack_status(NEGATIVE_TOKEN, int(tokens.argmin()))
        return 0

    def locked_pages(self, row: int) -> int:
        """Return how many cached pages the sequence in `row`, which just began, shares."""
        return int(self.tables.arrays.columns[LOCKED, row])

    def fork(self, src: int, num_tokens: int) -> int:
        """Let a sequence begin in the lowest free row that shares the first tokens of `src`.

        `num_tokens`: all where it is below 0. Returns the row.
        """
        slabs = self.tables._slab, self.index._slab
        return self.pool._run(sequences_fork_cpu, *slabs, src, num_tokens)

    def adopt(
        self, tokens: NDArray[np.int32], pages: NDArray[np.int32], facts: tuple[int, int, int]
    ) -> int:
        """Let a sequence begin in the lowest free row with pages of the caller's; return the row.

        `facts`: its namespace, its priority, and how far it is computed.
        """
        slabs = self.tables._slab, self.index._slab
        return self.pool._run(rows_adopt_cpu, *slabs, tokens, pages, *facts)

    def end(self, rows: NDArray[np.int32], commit: bool, evicted: bool) -> int:
        """End sequences; return how many pages went free."""
        slabs = self.tables._slab, self.index._slab
        return self.pool._run(rows_free_cpu, *slabs, rows, int(commit), int(evicted))

    # Sharing.

    def commit(self, row: int, num_tokens: int, tokens: NDArray[np.int32]) -> int:
        """Book what is computed of a sequence, which lets full pages enter the prefix cache.

        `num_tokens`: all where it is below 0. Returns how many of its tokens stand there.
        """
        length = int(self.tables.arrays.columns[LENGTH, row])
        if max(num_tokens, tokens.size) > length:
            return pack_status(POSITION_RANGE, length)
        slabs = self.tables._slab, self.index._slab
        return self.pool._run(commits_row_cpu, *slabs, row, num_tokens, tokens)

    def make_room(self, need: int) -> int:
        """Let cached pages give way until `need` are available; return how many did."""
        return self.pool._run(sharing_room_cpu, self.index._slab, need)

    def relock(self) -> None:
        """Let the sequences lock their cached pages again, whose locks have been taken away."""
        sharing_relock_cpu.run(self.tables._slab, self.index._slab)

    # Shrinking.

    def truncate(self, row: int, num_tokens: int) -> int:
        """Keep the first tokens of a sequence; return how many pages went free."""
        slabs = self.tables._slab, self.index._slab
        return self.pool._run(sequences_truncate_cpu, *slabs, row, num_tokens)

    def cut(self, row: int, sink_tokens: int, window_tokens: int, evicted: int) -> tuple[int, int]:
        """Cut a sequence; return how many tokens it drops and how many pages are given up."""
        out = np.zeros(2, np.int64)
        slabs = self.tables._slab, self.index._slab
        self.pool._run(eviction_window_cpu, *slabs, out, row, sink_tokens, window_tokens, evicted)
        return int(out[0]), int(out[1])

    def evict_down(self, target: int, policy: tuple[int, int, int]) -> list[list[int]]:
        """Let sequences give way down to `target` held pages.

        Returns, for each, its row, the tokens dropped and the pages given up.
        """
        pool = self.pool
        with pool._shape:
            owners = np.zeros(pool.num_pages, np.int32)
            victims = np.zeros((self.tables.max_sequences, 3), np.int64)
            rule = np.array(policy, np.int64)
            slabs = self.tables._slab, self.index._slab
            count = pool._run(eviction_to_cpu, *slabs, owners, victims, target, rule)
        gone: list[list[int]] = victims[:count].tolist()
        return gone

    # Facts.

    def mark(self, row: int, column: int, value: int) -> None:
        """Set one fact of the sequence in `row`."""
        self.tables.arrays.columns[column, row] = value

    def look(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the block table, its page ids perhaps left out, and its columns: to be read."""
        return self.tables._slab, self.tables.arrays.columns

    def facts(self, row: int) -> tuple[list[int], NDArray[np.int32], int]:
        """Return facts and pages of a sequence, and how many of these others hold too."""
        facts = self.tables.arrays.columns[:, row].tolist()
        count = -(-facts[LENGTH] // self.pool.page_size)
        pages = self.tables.arrays.pages[row, :count].copy()
        return facts, pages, int((self.pool.refcount(pages) > 1).sum())

    def totals(self) -> tuple[list[int], int]:
        """Return the header of the block table, and how many tokens the sequences have."""
        arrays = self.tables.arrays
        return arrays.header.tolist(), int(arrays.columns[LENGTH].sum())

    def page_counts(self) -> tuple[int, int, int]:
        """Return how many pages are free, reclaimable and held, at one moment."""
        counts = np.empty(3, np.int64)
        with self.ids.lock:
            self.pool._run(sharing_pages_cpu, self.index._slab, counts)
        free, reclaimable, held = counts.tolist()
        return free, reclaimable, held
