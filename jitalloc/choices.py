"""What some arguments are chosen from, as types: for annotations, and for the checks alike.

`order: jitalloc.Order = "fifo"` in a program lets its type checker find a misspelt choice.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

Device: TypeAlias = Literal["cpu", "cuda"]
"""Where arrays live."""

Order: TypeAlias = Literal["sorted", "fifo", "lifo"]
"""Which free page a pool hands out first."""

PrefixPolicy: TypeAlias = Literal["lru", "fifo", "mru", "lfu", "slru", "priority"]
"""Which cached page gives way first."""

EvictionPolicy: TypeAlias = Literal["lru", "lfu", "longest", "priority", "streaming"]
"""Which sequence gives way first."""
