"""Paged KV-cache memory management on flat NumPy arrays.

`PagePool` hands out pages by id; `PagedKVCache` keeps the block tables of sequences on it, and
`PrefixCache` knows which pages hold the tokens of a prompt already.
"""

from importlib.metadata import PackageNotFoundError, version

from jitalloc._jit import warmup
from jitalloc.errors import (
    CorruptState,
    DoubleFree,
    DuplicateSequence,
    InvalidArgument,
    InvalidPage,
    JitallocError,
    NestedFreeGroup,
    NotLocked,
    OutOfPages,
    OutOfRows,
    PageCached,
    PageInUse,
    PagesLocked,
    PinBudget,
    SequenceTooLong,
    SnapshotError,
    TraceError,
    UnknownSequence,
    WrongDevice,
)
from jitalloc.eviction import Eviction
from jitalloc.matches import InsertResult, PrefixBatch, PrefixMatch
from jitalloc.moves import Moves
from jitalloc.owners import FreeGroup
from jitalloc.pool import PageBatch, PagePool
from jitalloc.prefix import PrefixCache
from jitalloc.prefix_upkeep import PrefixSnapshot
from jitalloc.saving import CacheSnapshot
from jitalloc.sequences import Appended, PagedKVCache
from jitalloc.snapshot import PoolSnapshot
from jitalloc.state import NULL
from jitalloc.stats import PoolStats, PrefixStats, SequenceInfo, SequenceStats
from jitalloc.tables import BlockTables, PageTableCSR

try:
    __version__ = version("jitalloc")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0+unknown"

__all__ = [
    "NULL",
    "Appended",
    "BlockTables",
    "CacheSnapshot",
    "CorruptState",
    "DoubleFree",
    "DuplicateSequence",
    "Eviction",
    "FreeGroup",
    "InsertResult",
    "InvalidArgument",
    "InvalidPage",
    "JitallocError",
    "Moves",
    "NestedFreeGroup",
    "NotLocked",
    "OutOfPages",
    "OutOfRows",
    "PageBatch",
    "PageCached",
    "PageInUse",
    "PagePool",
    "PageTableCSR",
    "PagedKVCache",
    "PagesLocked",
    "PinBudget",
    "PoolSnapshot",
    "PoolStats",
    "PrefixBatch",
    "PrefixCache",
    "PrefixMatch",
    "PrefixSnapshot",
    "PrefixStats",
    "SequenceInfo",
    "SequenceStats",
    "SequenceTooLong",
    "SnapshotError",
    "TraceError",
    "UnknownSequence",
    "WrongDevice",
    "warmup",
]
