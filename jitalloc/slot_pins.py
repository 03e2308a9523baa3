"""Pins of a slot prefix cache: who reads a slot keeps its entry."""

from __future__ import annotations

from typing import Any, NoReturn

from jitalloc.arguments import as_count
from jitalloc.errors import (
    ENTRY_PINNED,
    NO_ENTRY,
    EntryPinned,
    InvalidArgument,
    UnknownEntry,
    unpack_status,
)
from jitalloc.kernels.slot_entries import slot_entries_pin_cpu, slot_entries_release_cpu
from jitalloc.slot_calls import as_slot
from jitalloc.slot_records import SlotEntry, SlotMatch
from jitalloc.slot_tree import SlotTree
from jitalloc.state import INT32_MAX

MOST_VERSIONS = 2**62


def as_entry(entry: Any) -> tuple[int, int]:
    """Return `(slot, version)` of what `find`, `insert` or `evict` returned."""
    if not isinstance(entry, SlotMatch | SlotEntry):
        raise InvalidArgument("entry", entry, "must be a SlotMatch or a SlotEntry")
    slot = as_slot("entry.slot", entry.slot, INT32_MAX)
    return slot, as_count("entry.version", entry.version, 0, MOST_VERSIONS)


def refuse(status: int, entry: SlotMatch | SlotEntry) -> NoReturn:
    """Raise what a status word says about `entry`."""
    code = unpack_status(status)[0]
    if code == NO_ENTRY:
        raise UnknownEntry(f"no entry of slot {entry.slot} in version {entry.version}")
    if code == ENTRY_PINNED:
        raise EntryPinned("entry", entry, "release it first")
    raise InvalidArgument("entry", entry, "is not pinned")


class SlotPins(SlotTree):
    """The part of `SlotPrefixCache` that keeps entries from giving way."""

    __slots__ = ()

    def pin(self, entry: SlotMatch | SlotEntry) -> None:
        """Keep an entry from being evicted, removed or replaced until `release`.

        Pins are counted. To be sure of what `find` found, let it pin: `find(tokens, pin=True)`.

        Parameters
        ----------
        entry : SlotMatch or SlotEntry

        Raises
        ------
        UnknownEntry
            There is no such entry (any more).
        """
        slot, version = as_entry(entry)
        status = self._run(slot_entries_pin_cpu, slot, version)
        if status < 0:
            refuse(status, entry)

    def release(self, entry: SlotMatch | SlotEntry) -> None:
        """Take one pin off an entry. It was in use until now: this is a use of it.

        Parameters
        ----------
        entry : SlotMatch or SlotEntry

        Raises
        ------
        UnknownEntry
            There is no such entry.
        InvalidArgument
            The entry is not pinned.
        """
        slot, version = as_entry(entry)
        status = self._run(slot_entries_release_cpu, slot, version)
        if status < 0:
            refuse(status, entry)
