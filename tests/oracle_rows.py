"""What the model of sequences is made of, and what it answers with."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field


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


@dataclass
class Eviction:
    """What one eviction gave back."""

    seq_id: Hashable
    pages_released: int
    tokens_dropped: int
