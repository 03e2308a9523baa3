"""What the model of sequences is made of, and what it answers with."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from jitalloc.errors import InvalidArgument
from tests.oracle_nodes import Node


@dataclass
class Row:
    """One sequence: its pages in order, its tokens, and what eviction looks at."""

    born: int
    priority: int = 0
    length: int = 0
    pages: list[int] = field(default_factory=list)
    last_used: int = 0
    uses: int = 0
    pinned: bool = False
    computed: int = 0  # of its tokens, from the first on

    def compute(self, num_tokens: int | None, tokens: Sequence[int] | None = None) -> None:
        """The first `num_tokens` tokens are computed; else as many as `tokens`, or all."""
        for name, n in (("tokens", len(tokens or [])), ("num_tokens", num_tokens or 0)):
            if not 0 <= n <= self.length:
                raise InvalidArgument(name, n, "not within the sequence")
        for i, token in enumerate(tokens or []):
            if token < 0:
                raise InvalidArgument("tokens", token, "negative", i)
        if num_tokens is None:
            num_tokens = self.length if tokens is None else len(tokens)
        self.computed = max(self.computed, num_tokens)


@dataclass
class SharingRow(Row):
    """A sequence whose first tokens are known."""

    tokens: list[int] = field(default_factory=list)  # those that are known
    namespace: Hashable = None
    path: list[Node] = field(default_factory=list)  # cached pages that it locks
    gap: int = 0  # 1 + the tokens before what a window dropped


@dataclass
class Eviction:
    """What one eviction gave back."""

    seq_id: Hashable
    pages_released: int
    tokens_dropped: int
