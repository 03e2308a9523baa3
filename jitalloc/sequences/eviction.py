"""The order in which sequences give way when pages run short."""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

import numpy as np

from jitalloc.errors import InvalidArgument
from jitalloc.sequences.loops.eviction import eviction_select_cpu
from jitalloc.sequences.rows import SequenceRows
from jitalloc.sequences.state import EVICTION_POLICIES, LENGTH, PINNED, STREAMING
from jitalloc.state import INT32


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


class EvictionRule(NamedTuple):
    """Who gives way first, and what the policy `streaming` keeps of a sequence."""

    policy: int
    sink_tokens: int
    window_tokens: int

    @classmethod
    def of(cls, policy: str, sink_tokens: int, window_tokens: int) -> EvictionRule:
        """Return the rule of the policy of this name."""
        return cls(EVICTION_POLICIES.index(policy), sink_tokens, window_tokens)

    def victim(self, rows: SequenceRows) -> int:
        """Return the row of who goes next, or -1."""
        row: int = eviction_select_cpu.run(rows.look()[0], *self)
        return row

    def evict(self, rows: SequenceRows, seq_id: Hashable) -> Eviction | None:
        """Let one sequence give way: who goes next, where `seq_id` is None."""
        ids = rows.ids
        slab, columns = rows.look()
        if seq_id is None:
            row = eviction_select_cpu.run(slab, *self)
            if row < 0:
                return None
            seq_id = ids.by_row[row]
        row = ids.row(seq_id)
        if columns[PINNED, row]:
            raise InvalidArgument("seq_id", seq_id, "the sequence is pinned")
        if self.policy == STREAMING:
            dropped, released = rows.cut(row, self.sink_tokens, self.window_tokens, 1)
            return Eviction(seq_id, released, dropped)
        tokens = int(columns[LENGTH, row])
        released = rows.end(np.array([row], INT32), False, True)
        ids.leave(row)
        return Eviction(seq_id, released, tokens)

    def evict_down(self, rows: SequenceRows, target: int) -> list[Eviction]:
        """Let sequences give way down to `target` held pages."""
        ids, evictions = rows.ids, []
        for row, dropped, released in rows.evict_down(target, self):
            seq_id = ids.by_row[row] if self.policy == STREAMING else ids.leave(row)
            evictions.append(Eviction(seq_id, released, dropped))
        return evictions


def most_held(utilization: float, usable: int) -> int:
    """Return the most held of `usable` pages at which the utilization is at most this."""
    target = int(utilization * usable)
    while (target + 1) / usable <= utilization:  # 0.29 * 100 is 28.999999999999996
        target += 1
    return target
