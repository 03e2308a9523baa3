"""Paged KV-cache memory management on flat NumPy arrays.

`PagePool` hands out pages by id; `PagedKVCache` keeps the block tables of sequences on it, and
`PrefixCache` knows which pages hold the tokens of a prompt already. `SlotAllocator` hands out
whole rows of a cache that keeps one row a request, `SlotPrefixCache` finds which of them already
holds the beginning of a prompt.
"""

from importlib.metadata import PackageNotFoundError, version

from jitalloc import cuda as cuda  # with it, `PagePool` and the like know their GPU classes
from jitalloc.errors import (
    AllPinned,
    CorruptState,
    DoubleFree,
    DuplicateSequence,
    EntryPinned,
    InvalidArgument,
    InvalidPage,
    InvalidSlot,
    JitallocError,
    NestedFreeGroup,
    NotLocked,
    OutOfPages,
    OutOfRows,
    OutOfSlots,
    PageCached,
    PageInUse,
    PagesLocked,
    PinBudget,
    SequenceTooLong,
    SlotFree,
    SlotTaken,
    SnapshotError,
    TraceError,
    UnknownEntry,
    UnknownSequence,
    WrongDevice,
)
from jitalloc.eviction import Eviction
from jitalloc.matches import InsertResult, PrefixBatch, PrefixMatch
from jitalloc.mirror import BlockTableMirror
from jitalloc.moves import Moves
from jitalloc.pool import FreeGroup, PageBatch, PagePool
from jitalloc.prefix import PrefixCache
from jitalloc.prefix_upkeep import PrefixSnapshot
from jitalloc.sequence_files import CacheSnapshot
from jitalloc.sequences import Appended, PagedKVCache
from jitalloc.slot_copy import copy_slot
from jitalloc.slot_prefix import SlotPrefixCache
from jitalloc.slot_records import SlotEntry, SlotMatch, SlotPrefixStats
from jitalloc.slots import SlotAllocator
from jitalloc.snapshot import PoolSnapshot
from jitalloc.state import NULL
from jitalloc.stats import PoolStats, PrefixStats, SequenceInfo, SequenceStats
from jitalloc.tables import BlockTables, PageTableCSR
from jitalloc.warming import warmup

try:
    __version__ = version("jitalloc")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0+unknown"

__all__ = [
    "NULL",
    "AllPinned",
    "Appended",
    "BlockTableMirror",
    "BlockTables",
    "CacheSnapshot",
    "CorruptState",
    "DoubleFree",
    "DuplicateSequence",
    "EntryPinned",
    "Eviction",
    "FreeGroup",
    "InsertResult",
    "InvalidArgument",
    "InvalidPage",
    "InvalidSlot",
    "JitallocError",
    "Moves",
    "NestedFreeGroup",
    "NotLocked",
    "OutOfPages",
    "OutOfRows",
    "OutOfSlots",
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
    "SlotAllocator",
    "SlotEntry",
    "SlotFree",
    "SlotMatch",
    "SlotPrefixCache",
    "SlotPrefixStats",
    "SlotTaken",
    "SnapshotError",
    "TraceError",
    "UnknownEntry",
    "UnknownSequence",
    "WrongDevice",
    "copy_slot",
    "warmup",
]
