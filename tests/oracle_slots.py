"""What cache slots and their prefix cache must do, in plain Python: sets, lists, tuples.

As in `oracle.py`: nothing is fast on purpose, and a call that raises changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from jitalloc.errors import (
    AllPinned,
    EntryPinned,
    InvalidArgument,
    InvalidSlot,
    OutOfSlots,
    SlotFree,
    SlotTaken,
    UnknownEntry,
)


class Slots:
    """The model of `SlotAllocator`."""

    def __init__(self, max_slots: int) -> None:
        self.num_slots = max_slots
        self.free_slots = set(range(max_slots))
        self.versions = [0] * max_slots
        self.peak_used = 0

    @property
    def free_count(self) -> int:
        return len(self.free_slots)

    def alloc(self) -> int:
        return self._take(min(self.free_slots)) if self.free_slots else -1

    def alloc_batch(self, n: int) -> list[int]:
        if n < 0:
            raise InvalidArgument("n", n, "negative")
        if n > len(self.free_slots):
            raise OutOfSlots(n, len(self.free_slots))
        return [self.alloc() for _ in range(n)]

    def free(self, slot: int) -> None:
        self._check("slot", slot)
        if slot in self.free_slots:
            raise SlotFree("slot", slot, "free")
        self.free_slots.add(slot)

    def free_batch(self, slots: Sequence[int]) -> None:
        for i, slot in enumerate(slots):
            self._check("slots", slot, i)
            if slot in self.free_slots or slot in slots[:i]:
                raise SlotFree("slots", slot, "free, or named twice", i)
        self.free_slots.update(slots)

    def occupy(self, slot: int) -> None:
        self._check("slot", slot)
        if slot not in self.free_slots:
            raise SlotTaken("slot", slot, "taken")
        self._take(slot)

    def is_free(self, slot: int) -> bool:
        self._check("slot", slot)
        return slot in self.free_slots

    def version(self, slot: int) -> int:
        self._check("slot", slot)
        return self.versions[slot]

    def is_current(self, slot: int, version: int) -> bool:
        self._check("slot", slot)
        return slot not in self.free_slots and self.versions[slot] == version

    def clear(self) -> None:
        self.free_slots = set(range(self.num_slots))

    def _check(self, name: str, slot: int, position: int | None = None) -> None:
        if not 0 <= slot < self.num_slots:
            raise InvalidSlot(name, slot, "no such slot", position)

    def _take(self, slot: int) -> int:
        self.free_slots.remove(slot)
        self.versions[slot] += 1
        self.peak_used = max(self.peak_used, self.num_slots - len(self.free_slots))
        return slot


class Shown(NamedTuple):
    """A match, or an entry that has left."""

    length: int
    slot: int
    version: int


@dataclass
class Entry:
    """One entry: tokens, the slot that holds them, and who needs it."""

    tokens: tuple[int, ...]
    slot: int
    version: int
    pins: int = 0

    def show(self) -> Shown:
        return Shown(len(self.tokens), self.slot, self.version)


def common(one: Sequence[int], two: Sequence[int]) -> int:
    """How many leading tokens the two share."""
    shared = 0
    for mine, other in zip(one, two, strict=False):
        if mine != other:
            break
        shared += 1
    return shared


class Prefixes:
    """The model of `SlotPrefixCache`: `entries` from the one used longest ago on."""

    def __init__(self, capacity: int, max_tokens: int) -> None:
        self.capacity, self.max_tokens = capacity, max_tokens
        self.entries: list[Entry] = []
        self.lookups = self.hits = self.asked = self.found = 0
        self.insertions = self.evictions = 0

    def find(self, tokens: Sequence[int], pin: bool = False) -> Shown | None:
        self.lookups += 1
        self.asked += len(tokens)
        best, length = None, 0
        for entry in self.entries:
            shared = common(entry.tokens, tokens)
            if shared and shared >= length:  # of several the one used last
                best, length = entry, shared
        if best is None:
            return None
        self.hits += 1
        self.found += length
        best.pins += pin
        self._use(best)
        return best.show()._replace(length=length)

    def insert(self, tokens: Sequence[int], slot: int, version: int) -> Shown | None:
        tokens = tuple(tokens)
        if not 1 <= len(tokens) <= self.max_tokens:
            raise InvalidArgument("tokens", len(tokens), "too few or too many")
        same = [entry for entry in self.entries if entry.tokens == tokens]
        holders = [entry for entry in self.entries if entry.slot == slot]
        if same and same[0].pins and (same[0].slot, same[0].version) != (slot, version):
            raise EntryPinned("tokens", same[0].show(), "pinned")
        if holders and holders != same:
            raise SlotTaken("slot", slot, "backs another entry")
        gone = None
        if same:
            gone = same[0].show() if same[0].slot != slot else None
            same[0].slot, same[0].version = slot, version
            self._use(same[0])
        else:
            if len(self.entries) == self.capacity:
                gone = self.evict()
                if gone is None:
                    raise AllPinned("all pinned")
            self.entries.append(Entry(tokens, slot, version))
        self.insertions += 1
        return gone

    def evict(self) -> Shown | None:
        for entry in self.entries:
            if not entry.pins:
                self.entries.remove(entry)
                self.evictions += 1
                return entry.show()
        return None

    def remove(self, entry: Shown) -> Shown:
        known = self._entry(entry)
        if known.pins:
            raise EntryPinned("entry", entry, "pinned")
        self.entries.remove(known)
        return known.show()

    def pin(self, entry: Shown) -> None:
        self._entry(entry).pins += 1

    def release(self, entry: Shown) -> None:
        known = self._entry(entry)
        if not known.pins:
            raise InvalidArgument("entry", entry, "not pinned")
        known.pins -= 1
        self._use(known)

    def entry(self, slot: int) -> Shown | None:
        if slot < 0:
            raise InvalidSlot("slot", slot, "negative")
        return next((entry.show() for entry in self.entries if entry.slot == slot), None)

    def clear(self) -> list[int]:
        pinned = sum(entry.pins > 0 for entry in self.entries)
        if pinned:
            raise EntryPinned("clear", pinned, "pinned")
        slots = [entry.slot for entry in self.entries]
        self.entries.clear()
        return slots

    def _entry(self, named: Shown) -> Entry:
        for entry in self.entries:
            if (entry.slot, entry.version) == (named.slot, named.version):
                return entry
        raise UnknownEntry("no such entry")

    def _use(self, entry: Entry) -> None:
        self.entries.remove(entry)
        self.entries.append(entry)
