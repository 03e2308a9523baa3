"""What calls on sequences come to: a kernel run on the rows. The part that differs by device."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from jitalloc.errors import NEGATIVE_TOKEN, POSITION_RANGE, argument_error, pack_status
from jitalloc.exports import SequenceExports
from jitalloc.kernels.eviction import eviction_to_cpu, eviction_window_cpu
from jitalloc.kernels.rows import rows_allocate_cpu, rows_allocate_tokens_cpu, rows_free_cpu
from jitalloc.kernels.sequences import sequences_fork_cpu, sequences_truncate_cpu
from jitalloc.kernels.sharing import sharing_commit_cpu, sharing_pages_cpu, sharing_room_cpu
from jitalloc.prefix import PrefixCache
from jitalloc.state import LENGTH, LOCKED

NO_PREFIX: Final = np.zeros(1, np.int64)
"""What kernels get for a prefix cache where there is none."""


class SequenceCalls(SequenceExports):
    """The part of `PagedKVCache` that runs kernels on rows; on the GPU, all of it is another.

    What returns an int returns a status word where it fails.
    """

    prefix_cache: PrefixCache | None

    @property
    def _prefix(self) -> NDArray[np.int64]:
        """The slab of the prefix cache, for kernels; read it while `lock` is held."""
        return NO_PREFIX if self.prefix_cache is None else self.prefix_cache._slab

    # Beginning and ending.

    def _refuse_negative(self, tokens: NDArray[np.int32]) -> None:
        if tokens.size and tokens.min() < 0:
            status = pack_status(NEGATIVE_TOKEN, int(tokens.argmin()))
            raise argument_error(status, "tokens", tokens)

    def _open(self, num_tokens: int, namespace: int, priority: int) -> int:
        """Let a sequence begin in the lowest free row; return the row."""
        slabs = self.tables._slab, self._prefix
        return self.pool._run(rows_allocate_cpu, *slabs, num_tokens, namespace, priority)

    def _open_on_prefix(self, tokens: NDArray[np.int32], namespace: int, priority: int) -> int:
        """Let a sequence begin on the cached pages of its prefix; return the row."""
        slabs = self.tables._slab, self._prefix
        return self.pool._run(rows_allocate_tokens_cpu, *slabs, tokens, namespace, priority)

    def _locked_pages(self, row: int) -> int:
        """Return how many cached pages the sequence in `row`, which just began, shares."""
        return int(self.tables.arrays.columns[LOCKED, row])

    def _fork_row(self, src: int) -> int:
        """Let a sequence begin in the lowest free row that shares all of `src`; return the row."""
        return self.pool._run(sequences_fork_cpu, self.tables._slab, self._prefix, src)

    def _end_rows(self, rows: NDArray[np.int32], commit: bool, evicted: bool) -> int:
        """End sequences; return how many pages went free."""
        slabs = self.tables._slab, self._prefix
        return self.pool._run(rows_free_cpu, *slabs, rows, int(commit), int(evicted))

    # Sharing.

    def _commit_row(self, row: int, ids: NDArray[np.int32]) -> int:
        """Let a sequence enter the cache; return how many of its pages stand there."""
        length = int(self.tables.arrays.columns[LENGTH, row])
        if ids.size > length:
            return pack_status(POSITION_RANGE, length)
        return self.pool._run(sharing_commit_cpu, self.tables._slab, self._prefix, row, ids)

    def _make_room(self, need: int) -> int:
        """Let cached pages give way until `need` are available; return how many did."""
        return self.pool._run(sharing_room_cpu, self._prefix, need)

    # Shrinking.

    def _truncate(self, row: int, num_tokens: int) -> int:
        """Keep the first tokens of a sequence; return how many pages went free."""
        slabs = self.tables._slab, self._prefix
        return self.pool._run(sequences_truncate_cpu, *slabs, row, num_tokens)

    def _cut(self, row: int, sink_tokens: int, window_tokens: int, evicted: int) -> tuple[int, int]:
        """Cut a sequence; return how many tokens it drops and how many pages are given up."""
        out = np.zeros(2, np.int64)
        slabs = self.tables._slab, self._prefix
        self.pool._run(eviction_window_cpu, *slabs, out, row, sink_tokens, window_tokens, evicted)
        return int(out[0]), int(out[1])

    def _evict_down(self, target: int, policy: tuple[int, int, int]) -> list[list[int]]:
        """Let sequences give way down to `target` held pages.

        Returns, for each, its row, the tokens dropped and the pages given up.
        """
        pool = self.pool
        with pool._shape:
            owners = np.zeros(pool.num_pages, np.int32)
            victims = np.zeros((self.tables.max_sequences, 3), np.int64)
            rule = np.array(policy, np.int64)
            slabs = self.tables._slab, self._prefix
            count = pool._run(eviction_to_cpu, *slabs, owners, victims, target, rule)
        gone: list[list[int]] = victims[:count].tolist()
        return gone

    # Facts.

    def _mark(self, row: int, column: int, value: int) -> None:
        """Set one fact of the sequence in `row`."""
        self.tables.arrays.columns[column, row] = value

    def _look(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the block table, its page ids perhaps left out, and its columns: to be read."""
        return self.tables._slab, self.tables.arrays.columns

    def _row_state(self, row: int) -> tuple[list[int], NDArray[np.int32], int]:
        """Return facts and pages of a sequence, and how many of these others hold too."""
        facts = self.tables.arrays.columns[:, row].tolist()
        count = -(-facts[LENGTH] // self.pool.page_size)
        pages = self.tables.arrays.pages[row, :count].copy()
        return facts, pages, int((self.pool.refcount(pages) > 1).sum())

    def _totals(self) -> tuple[list[int], int]:
        """Return the header of the block table, and how many tokens the sequences have."""
        arrays = self.tables.arrays
        return arrays.header.tolist(), int(arrays.columns[LENGTH].sum())

    def _pages(self) -> tuple[int, int, int]:
        """Return how many pages are free, reclaimable and held, at one moment."""
        counts = np.empty(3, np.int64)
        with self.lock:
            self.pool._run(sharing_pages_cpu, self._prefix, counts)
        free, reclaimable, held = counts.tolist()
        return free, reclaimable, held
