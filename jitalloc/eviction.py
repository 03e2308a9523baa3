"""The order in which sequences give way when pages run short."""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

import numpy as np

from jitalloc.arguments import as_count, as_fraction
from jitalloc.errors import InvalidArgument
from jitalloc.ids import changes_ids
from jitalloc.kernels.eviction import eviction_select_cpu
from jitalloc.sharing import SequenceSharing
from jitalloc.state import EVICTION_POLICIES, INT32, INT32_MAX, LENGTH, PINNED, PRIORITY


class Eviction(NamedTuple):
    """What one eviction did.

    Attributes
    ----------
    seq_id : Hashable
        The sequence that gave way. With the policy `streaming` it lives on, shorter; with
        every other it has ended.
    pages_released : int
        Pages that went free, or that only the prefix cache holds now, so that they can be
        reclaimed; pages that somebody else holds are not among them.
    tokens_dropped : int
        Tokens that the sequence lost.
    """

    seq_id: Hashable
    pages_released: int
    tokens_dropped: int


class SequenceEviction(SequenceSharing):
    """The part of `PagedKVCache` that lets sequences give way."""

    @property
    def over_threshold(self) -> bool:
        """Whether the share of held pages is above `eviction_threshold`.

        Pages that can be reclaimed from the prefix cache do not count: they give way by
        themselves when an allocation needs them.
        """
        return self.num_held > self._target(self.eviction_threshold)

    def _target(self, utilization: float) -> int:
        """Return the most held pages at which the utilization is at most `utilization`."""
        usable = self.pool.num_pages - self.pool.null_page
        target = int(utilization * usable)
        while (target + 1) / usable <= utilization:  # 0.29 * 100 is 28.999999999999996
            target += 1
        return target

    def _policy(self) -> tuple[int, int, int]:
        return EVICTION_POLICIES.index(self.eviction), self.sink_tokens, self.window_tokens

    def pin(self, seq_id: Hashable) -> None:
        """Protect a sequence from eviction until `unpin`; a second pin changes nothing.

        Parameters
        ----------
        seq_id : Hashable

        Raises
        ------
        UnknownSequence
            No live sequence has this id.
        """
        with self.lock:
            self._mark(self.row(seq_id), PINNED, 1)

    def unpin(self, seq_id: Hashable) -> None:
        """Let a sequence be evicted again.

        Parameters
        ----------
        seq_id : Hashable

        Raises
        ------
        UnknownSequence
            No live sequence has this id.
        """
        with self.lock:
            self._mark(self.row(seq_id), PINNED, 0)

    def set_priority(self, seq_id: Hashable, priority: int) -> None:
        """Set the priority of a sequence: with the policy `priority` the lowest goes first.

        Parameters
        ----------
        seq_id : Hashable
        priority : int
            Within int32.

        Raises
        ------
        UnknownSequence
            No live sequence has this id.
        InvalidArgument
            `priority` is no integer, or out of range.
        """
        value = as_count("priority", priority, -INT32_MAX, INT32_MAX)
        with self.lock:
            self._mark(self.row(seq_id), PRIORITY, value)

    def select_eviction_target(self) -> Hashable | None:
        """Return the id of the sequence that `evict` would take, or None; nothing changes.

        By the policy `eviction`: `lru` (written to longest ago), `lfu` (written to least
        often), `longest`, `priority` (the lowest), `streaming` (the longest of those that have
        something to cut). Ties go to the one written to longest ago, then to the older one,
        then to the lower row. Pinned sequences are never taken.
        """
        with self.lock:
            row = eviction_select_cpu.run(self._look()[0], *self._policy())
            return None if row < 0 else self._ids.by_row[row]

    @changes_ids
    def evict(self, seq_id: Hashable = None) -> Eviction | None:
        """Let one sequence give way; what it has not committed does not enter the prefix cache.

        Parameters
        ----------
        seq_id : Hashable, optional
            Which; by default the one that `select_eviction_target` names.

        Returns
        -------
        Eviction or None
            None where no sequence can be evicted.

        Raises
        ------
        UnknownSequence
            No live sequence has this id.
        InvalidArgument
            The sequence is pinned.
        """
        slab, columns = self._look()
        if seq_id is None:
            row = eviction_select_cpu.run(slab, *self._policy())
            if row < 0:
                return None
            seq_id = self._ids.by_row[row]
        row = self.row(seq_id)
        if columns[PINNED, row]:
            raise InvalidArgument("seq_id", seq_id, "the sequence is pinned")
        if self.eviction == "streaming":
            dropped, released = self._cut(row, self.sink_tokens, self.window_tokens, 1)
            return Eviction(seq_id, released, dropped)
        tokens = int(columns[LENGTH, row])
        released = self._end_rows(np.array([row], INT32), False, True)
        self._ids.leave(row)
        return Eviction(seq_id, released, tokens)

    @changes_ids
    def evict_to(self, utilization: float | None = None) -> list[Eviction]:
        """Let sequences give way until the share of held pages is at most `utilization`.

        Pages that can be reclaimed from the prefix cache are not held. Sequences go by the
        policy. One whose eviction could free no page, because somebody who
        does not give way (a pinned sequence, the caller) holds all of them too, stays. Ends
        when the target is reached or nothing more can be freed.

        Parameters
        ----------
        utilization : float, optional
            0.0 to 1.0; by default `eviction_threshold`.

        Returns
        -------
        list of Eviction
            In the order in which they went.

        Raises
        ------
        InvalidArgument
            `utilization` is out of range.
        """
        if utilization is None:
            utilization = self.eviction_threshold
        utilization = as_fraction("utilization", utilization)
        gone = self._evict_down(self._target(utilization), self._policy())
        evictions = []
        for row, dropped, released in gone:
            cut = self.eviction == "streaming"
            seq_id = self._ids.by_row[row] if cut else self._ids.leave(row)
            evictions.append(Eviction(seq_id, released, dropped))
        return evictions

    def apply_streaming_llm(self, seq_id: Hashable, sink_tokens: int, window_tokens: int) -> int:
        """Keep the first and the last tokens of a sequence, and drop whole pages between.

        Kept are the first `ceil(sink_tokens / page_size)` pages and every page that holds one
        of the last `window_tokens` tokens; the tokens behind the gap move up in the sequence.

        Parameters
        ----------
        seq_id : Hashable
        sink_tokens : int
            Tokens at the start (attention sinks).
        window_tokens : int
            Tokens at the end; with 0 all pages behind the sinks go.

        Returns
        -------
        int
            Tokens dropped.

        Raises
        ------
        UnknownSequence
            No live sequence has this id.
        InvalidArgument
            A number is negative.

        Notes
        -----
        Xiao et al., "Efficient Streaming Language Models with Attention Sinks", ICLR 2024.
        """
        sink = as_count("sink_tokens", sink_tokens)
        window = as_count("window_tokens", window_tokens)
        with self.lock:
            return self._cut(self.row(seq_id), sink, window, 0)[0]

    def apply_window(self, seq_id: Hashable, window_tokens: int) -> int:
        """Keep the pages of the last `window_tokens` tokens: `apply_streaming_llm` without sinks.

        Parameters
        ----------
        seq_id : Hashable
        window_tokens : int
            Tokens at the end.

        Returns
        -------
        int
            Tokens dropped.
        """
        return self.apply_streaming_llm(seq_id, 0, window_tokens)
