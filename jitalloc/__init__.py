"""Paged KV-cache memory management on flat NumPy arrays.

`PagePool` hands out pages by id; `PagedKVCache` keeps the block tables of sequences on it, and
`PrefixCache` knows which pages hold the tokens of a prompt already. `SlotAllocator` hands out
whole rows of a cache that keeps one row a request, `SlotPrefixCache` finds which of them already
holds the beginning of a prompt.
"""

from importlib.metadata import PackageNotFoundError, version

from jitalloc import cuda as cuda  # with it, `PagePool` and the like know their GPU classes
from jitalloc.choices import Device, EvictionPolicy, Order, PrefixPolicy
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
from jitalloc.pool.holders import Moves
from jitalloc.pool.pool import FreeGroup, PageBatch, PagePool
from jitalloc.pool.records import PoolSnapshot, PoolStats
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
from jitalloc.sequences.attention import AttentionBatch
from jitalloc.sequences.batches import Allocated, Plan
from jitalloc.sequences.eviction import Eviction
from jitalloc.sequences.files import CacheSnapshot
from jitalloc.sequences.mirror import BlockTableMirror
from jitalloc.sequences.records import SequenceInfo, SequenceStats
from jitalloc.sequences.sequences import Appended, PagedKVCache
from jitalloc.sequences.tables import BlockTables, PageTableCSR
from jitalloc.slots.copy import copy_slot
from jitalloc.slots.prefix import SlotPrefixCache
from jitalloc.slots.records import SlotEntry, SlotMatch, SlotPrefixStats
from jitalloc.slots.slots import SlotAllocator
from jitalloc.state import NULL
from jitalloc.warming import warmup

# Pickles of records name the place that users know, wherever in the package their classes stand.
for _record in (
    *(
        Allocated,
        Appended,
        AttentionBatch,
        CacheSnapshot,
        Eviction,
        InsertResult,
        Moves,
        PageBatch,
        PageTableCSR,
        Plan,
        PoolSnapshot,
    ),
    *(InvalidateResult, PrefixLookup),
    *(PoolStats, PrefixSnapshot, PrefixStats, SequenceInfo, SequenceStats, SlotEntry, SlotMatch),
    SlotPrefixStats,
):
    _record.__module__ = __name__
del _record

try:
    __version__ = version("jitalloc")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0+unknown"

__all__ = [
    "NULL",
    "AllPinned",
    "Allocated",
    "Appended",
    "AttentionBatch",
    "BlockTableMirror",
    "BlockTables",
    "CacheSnapshot",
    "CorruptState",
    "Device",
    "DoubleFree",
    "DuplicateSequence",
    "EntryPinned",
    "Eviction",
    "EvictionPolicy",
    "FreeGroup",
    "InsertResult",
    "InvalidArgument",
    "InvalidPage",
    "InvalidSlot",
    "InvalidateResult",
    "JitallocError",
    "Moves",
    "NestedFreeGroup",
    "NotLocked",
    "Order",
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
    "Plan",
    "PoolSnapshot",
    "PoolStats",
    "PrefixBatch",
    "PrefixCache",
    "PrefixLookup",
    "PrefixMatch",
    "PrefixPolicy",
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
