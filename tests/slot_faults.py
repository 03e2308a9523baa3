"""Bad input to slots and their prefix cache, call by call, for `test_bad_input.py`.

`at.slots` has 70 slots, 0, 1 and 3 are taken. `at.prefixes` has room for 3 entries of 8 tokens:
1 2 3 in slot 0, pinned, and 1 2 9 9 in slot 4, version 2. `at.pinned` is full, its only entry
(5 in slot 0) is pinned. `at.keys` and `at.values` are a cache of 2 layers, 4 slots, 6 tokens.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from jitalloc import SlotAllocator, SlotEntry, SlotMatch, SlotPrefixCache, copy_slot
from jitalloc.errors import (
    AllPinned,
    EntryPinned,
    InvalidArgument,
    InvalidSlot,
    OutOfSlots,
    SlotFree,
    SlotTaken,
    UnknownEntry,
    WrongDevice,
)
from tests.pool_faults import BIG, CudaArray, Fault, read_only

PINNED = SlotEntry(3, 0, 1)
LOOSE = SlotEntry(4, 4, 2)


def add_slots(at: SimpleNamespace) -> None:
    """Make what the faults below are about."""
    at.slots = SlotAllocator(70)
    at.slots.alloc_batch(4)
    at.slots.free(2)
    at.prefixes, at.pinned = SlotPrefixCache(3, 8), SlotPrefixCache(1, 8)
    at.prefixes.insert([1, 2, 3], 0, 1)
    at.prefixes.insert([1, 2, 9, 9], 4, 2)
    at.prefixes.pin(PINNED)
    at.pinned.insert([5], 0, 1)
    at.pinned.find([5], pin=True)
    at.keys, at.values = np.ones((2, 4, 6, 3)), np.ones((2, 4, 6, 1))


def copy(at: SimpleNamespace, keys=None, values=None, src=0, dst=1, length=2):  # type: ignore[no-untyped-def]
    copy_slot(
        at.keys if keys is None else keys, at.values if values is None else values, src, dst, length
    )


ALLOCATOR_FAULTS = {
    "no slots": Fault(lambda _at: SlotAllocator(0), InvalidArgument, "max_slots", 0),
    "float slots": Fault(lambda _at: SlotAllocator(4.0), InvalidArgument, "max_slots", 4.0),
    "slots past int32": Fault(lambda _at: SlotAllocator(BIG), InvalidArgument, "max_slots", BIG),
    "negative batch": Fault(lambda at: at.slots.alloc_batch(-1), InvalidArgument, "n", -1),
    "float batch of slots": Fault(lambda at: at.slots.alloc_batch(1.5), InvalidArgument, "n", 1.5),
    "short of slots": Fault(lambda at: at.slots.alloc_batch(68), OutOfSlots),
    "more than all slots": Fault(lambda at: at.slots.alloc_batch(71), OutOfSlots),
    "free slot freed": Fault(lambda at: at.slots.free(2), SlotFree, "slot", 2),
    "slot freed outside": Fault(lambda at: at.slots.free(70), InvalidSlot, "slot", 70),
    "negative slot freed": Fault(lambda at: at.slots.free(-1), InvalidSlot, "slot", -1),
    "huge slot freed": Fault(lambda at: at.slots.free(2**70), InvalidSlot, "slot", 2**70),
    "bool slot freed": Fault(lambda at: at.slots.free(True), InvalidArgument, "slot", True),
    "numpy bool slot": Fault(lambda at: at.slots.free(np.True_), InvalidArgument, "slot"),
    "float slot freed": Fault(lambda at: at.slots.free(1.0), InvalidArgument, "slot", 1.0),
    "no slot freed": Fault(lambda at: at.slots.free(None), InvalidArgument, "slot", None),
    "many slots as one": Fault(lambda at: at.slots.free([1]), InvalidArgument, "slot", [1]),
    "free slot in a batch": Fault(
        lambda at: at.slots.free_batch([1, 0, 2]), SlotFree, "slots", 2, 2
    ),
    "slot named twice": Fault(
        lambda at: at.slots.free_batch([1, 3, 0, 3]), SlotFree, "slots", 3, 3
    ),
    "slot outside in a batch": Fault(
        lambda at: at.slots.free_batch([1, 70]), InvalidSlot, "slots", 70, 1
    ),
    "negative slot in a batch": Fault(
        lambda at: at.slots.free_batch([1, -1]), InvalidSlot, "slots", -1, 1
    ),
    "bool in a batch of slots": Fault(
        lambda at: at.slots.free_batch([1, True]), InvalidArgument, "slots", True, 1
    ),
    "slots in two dimensions": Fault(
        lambda at: at.slots.free_batch(np.zeros((1, 1), int)), InvalidArgument, "slots", (1, 1)
    ),
    "unsigned slots": Fault(
        lambda at: at.slots.free_batch(np.array([2**32], np.uint64)),
        InvalidArgument,
        "slots",
        2**32,
        0,
    ),
    "slots on a GPU": Fault(lambda at: at.slots.free_batch(CudaArray()), WrongDevice, "slots"),
    "taken slot occupied": Fault(lambda at: at.slots.occupy(3), SlotTaken, "slot", 3),
    "slot occupied outside": Fault(lambda at: at.slots.occupy(70), InvalidSlot, "slot", 70),
    "bool slot occupied": Fault(lambda at: at.slots.occupy(True), InvalidArgument, "slot", True),
    "outside looked at": Fault(lambda at: at.slots.is_free(-1), InvalidSlot, "slot", -1),
    "version of no slot": Fault(lambda at: at.slots.version(70), InvalidSlot, "slot", 70),
    "negative version": Fault(
        lambda at: at.slots.is_current(1, -1), InvalidArgument, "version", -1
    ),
    "float version": Fault(lambda at: at.slots.is_current(1, 1.0), InvalidArgument, "version", 1.0),
}
SLOT_FAULTS = {
    **ALLOCATOR_FAULTS,
    # SlotPrefixCache.
    "no entries": Fault(lambda _at: SlotPrefixCache(0), InvalidArgument, "capacity", 0),
    "too many entries": Fault(
        lambda _at: SlotPrefixCache(2**29 + 1), InvalidArgument, "capacity", 2**29 + 1
    ),
    "entries of nothing": Fault(
        lambda _at: SlotPrefixCache(4, 0), InvalidArgument, "max_tokens", 0
    ),
    "bool capacity": Fault(lambda _at: SlotPrefixCache(True), InvalidArgument, "capacity", True),
    "float tokens": Fault(lambda at: at.prefixes.find([1.0]), InvalidArgument, "tokens", "float64"),
    "bool tokens": Fault(lambda at: at.prefixes.find([True]), InvalidArgument, "tokens", True, 0),
    "one token": Fault(lambda at: at.prefixes.find(1), InvalidArgument, "tokens"),
    "text tokens": Fault(lambda at: at.prefixes.insert("ab", 1, 1), InvalidArgument, "tokens"),
    "token past int32": Fault(
        lambda at: at.prefixes.find([1, BIG]), InvalidArgument, "tokens", BIG, 1
    ),
    "tokens on a GPU": Fault(lambda at: at.prefixes.find(CudaArray()), WrongDevice, "tokens"),
    "pin by number": Fault(lambda at: at.prefixes.find([1], pin=1), InvalidArgument, "pin", 1),
    "nothing inserted": Fault(
        lambda at: at.prefixes.insert([], 1, 1), InvalidArgument, "tokens", 0
    ),
    "too many tokens": Fault(
        lambda at: at.prefixes.insert(range(9), 1, 1), InvalidArgument, "tokens", 9
    ),
    "slot of another entry": Fault(lambda at: at.prefixes.insert([7], 4, 3), SlotTaken, "slot", 4),
    "slot of another entry, same tokens": Fault(
        lambda at: at.prefixes.insert([1, 2, 9, 9], 0, 3), SlotTaken, "slot", 0
    ),
    "negative slot inserted": Fault(
        lambda at: at.prefixes.insert([7], -1, 1), InvalidSlot, "slot", -1
    ),
    "slot inserted past int32": Fault(
        lambda at: at.prefixes.insert([7], BIG, 1), InvalidSlot, "slot", BIG
    ),
    "float slot inserted": Fault(
        lambda at: at.prefixes.insert([7], 1.0, 1), InvalidArgument, "slot", 1.0
    ),
    "bool version inserted": Fault(
        lambda at: at.prefixes.insert([7], 1, True), InvalidArgument, "version", True
    ),
    "negative version inserted": Fault(
        lambda at: at.prefixes.insert([7], 1, -1), InvalidArgument, "version", -1
    ),
    "all pinned": Fault(lambda at: at.pinned.insert([6], 1, 1), AllPinned),
    "pinned entry replaced": Fault(
        lambda at: at.prefixes.insert([1, 2, 3], 1, 1), EntryPinned, "tokens", PINNED
    ),
    "pinned entry in a new version": Fault(
        lambda at: at.prefixes.insert([1, 2, 3], 0, 2), EntryPinned, "tokens", PINNED
    ),
    "pinned entry removed": Fault(
        lambda at: at.prefixes.remove(PINNED), EntryPinned, "entry", PINNED
    ),
    "pinned entry cleared": Fault(lambda at: at.prefixes.clear(), EntryPinned, "clear", 1),
    "unknown entry removed": Fault(lambda at: at.prefixes.remove(SlotEntry(4, 5, 2)), UnknownEntry),
    "stale entry pinned": Fault(lambda at: at.prefixes.pin(SlotMatch(4, 4, 1)), UnknownEntry),
    "stale entry released": Fault(lambda at: at.prefixes.release(SlotMatch(4, 0, 2)), UnknownEntry),
    "released without a pin": Fault(
        lambda at: at.prefixes.release(LOOSE), InvalidArgument, "entry", LOOSE
    ),
    "pinned by number": Fault(lambda at: at.prefixes.pin(4), InvalidArgument, "entry", 4),
    "pinned by nothing": Fault(lambda at: at.prefixes.pin(None), InvalidArgument, "entry", None),
    "entry with a slot outside": Fault(
        lambda at: at.prefixes.pin(SlotEntry(1, -1, 1)), InvalidSlot, "entry.slot", -1
    ),
    "entry with a float version": Fault(
        lambda at: at.prefixes.pin(SlotEntry(1, 4, 2.0)), InvalidArgument, "entry.version", 2.0
    ),
    "entry of no slot": Fault(lambda at: at.prefixes.entry(-1), InvalidSlot, "slot", -1),
    # copy_slot.
    "keys on a GPU": Fault(lambda at: copy(at, keys=CudaArray()), WrongDevice, "values", "ndarray"),
    "values on a GPU": Fault(
        lambda at: copy(at, values=CudaArray()), WrongDevice, "values", "CudaArray"
    ),
    "keys of one axis on a GPU": Fault(
        lambda at: copy(at, keys=CudaArray(), values=CudaArray()), InvalidArgument, "keys", (1,)
    ),
    "keys in a list": Fault(lambda at: copy(at, keys=[1]), InvalidArgument, "keys", "list"),
    "keys of two axes": Fault(
        lambda at: copy(at, keys=np.ones((4, 6))), InvalidArgument, "keys", (4, 6)
    ),
    "values read-only": Fault(
        lambda at: copy(at, values=np.broadcast_to(read_only(float), (2, 4, 6, 2))),
        InvalidArgument,
        "values",
        (2, 4, 6, 2),
    ),
    "values of other slots": Fault(
        lambda at: copy(at, values=np.ones((2, 5, 6, 3))), InvalidArgument, "values", (2, 5, 6, 3)
    ),
    "copied from outside": Fault(lambda at: copy(at, src=4), InvalidSlot, "src_slot", 4),
    "copied to outside": Fault(lambda at: copy(at, dst=-1), InvalidSlot, "dst_slot", -1),
    "float slot copied": Fault(lambda at: copy(at, src=0.0), InvalidArgument, "src_slot", 0.0),
    "too much copied": Fault(lambda at: copy(at, length=7), InvalidArgument, "length", 7),
    "less than nothing copied": Fault(
        lambda at: copy(at, length=-1), InvalidArgument, "length", -1
    ),
}
