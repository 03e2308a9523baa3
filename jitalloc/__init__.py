"""Paged KV-cache memory management on flat NumPy arrays.

`PagePool` hands out pages by id; `PagedKVCache` keeps the block tables of sequences on it.
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
    OutOfPages,
    OutOfRows,
    PageInUse,
    SequenceTooLong,
    SnapshotError,
    TraceError,
    UnknownSequence,
    WrongDevice,
)
from jitalloc.eviction import Eviction
from jitalloc.moves import Moves
from jitalloc.owners import FreeGroup
from jitalloc.pool import PageBatch, PagePool
from jitalloc.saving import CacheSnapshot
from jitalloc.sequences import Appended, PagedKVCache
from jitalloc.snapshot import PoolSnapshot
from jitalloc.state import NULL
from jitalloc.stats import PoolStats, SequenceInfo, SequenceStats
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
    "InvalidArgument",
    "InvalidPage",
    "JitallocError",
    "Moves",
    "NestedFreeGroup",
    "OutOfPages",
    "OutOfRows",
    "PageBatch",
    "PageInUse",
    "PagePool",
    "PageTableCSR",
    "PagedKVCache",
    "PoolSnapshot",
    "PoolStats",
    "SequenceInfo",
    "SequenceStats",
    "SequenceTooLong",
    "SnapshotError",
    "TraceError",
    "UnknownSequence",
    "WrongDevice",
    "warmup",
]
