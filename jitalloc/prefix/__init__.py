"""Which pages already hold this prompt; on the host, whatever the pool lives on.

`state` layout and invariants, `records` and `matches` what a prefix cache answers with,
`namespaces` who shares with whom, `upkeep` arrays, checks, sizes and files, `prefix` what it does;
`prefix_cuda` the same above a pool of the GPU.
"""

from jitalloc.prefix.matches import (
    InsertResult,
    InvalidateResult,
    PrefixBatch,
    PrefixLookup,
    PrefixMatch,
)
from jitalloc.prefix.prefix import PrefixCache
from jitalloc.prefix.records import PrefixStats
from jitalloc.prefix.upkeep import PrefixSnapshot

__all__ = [
    "InsertResult",
    "InvalidateResult",
    "PrefixBatch",
    "PrefixCache",
    "PrefixLookup",
    "PrefixMatch",
    "PrefixSnapshot",
    "PrefixStats",
]
