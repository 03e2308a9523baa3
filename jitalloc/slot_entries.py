"""Entries of a slot prefix cache: how they come, how long they stay, how they give way."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from jitalloc.arguments import as_count
from jitalloc.errors import (
    ALL_PINNED,
    ENTRY_PINNED,
    AllPinned,
    EntryPinned,
    InvalidArgument,
    SlotTaken,
    unpack_status,
)
from jitalloc.kernels.slot_entries import (
    slot_entries_evict_cpu,
    slot_entries_insert_cpu,
    slot_entries_remove_cpu,
)
from jitalloc.slot_calls import as_slot
from jitalloc.slot_pins import MOST_VERSIONS, SlotPins, as_entry, refuse
from jitalloc.slot_records import SlotEntry, SlotMatch
from jitalloc.state import INT32_MAX, INT64

_empty = np.empty


class SlotEntries(SlotPins):
    """The part of `SlotPrefixCache` that makes entries and lets them go."""

    __slots__ = ()

    def insert(self, tokens: ArrayLike, slot: int, version: int) -> SlotEntry | None:
        """Keep that `slot` holds `tokens`; where the cache is full, another entry gives way.

        Tokens that are an entry already get this slot instead of the one before. All of it is
        a use of the entry.

        Parameters
        ----------
        tokens : array_like of int32
            At least one, at most `max_tokens`; they are copied.
        slot : int
        version : int
            The slot's version: `find` hands it back.

        Returns
        -------
        SlotEntry or None
            The entry whose slot backs nothing any more, for the caller to free: the unpinned
            one used longest ago, or the one that had the same tokens.

        Raises
        ------
        AllPinned
            The cache is full, and all of its entries are pinned.
        SlotTaken
            The slot backs an entry of other tokens; `remove` that first.
        EntryPinned
            The entry of the same tokens is pinned, and has another slot or version.
        InvalidArgument
            `tokens` is no flat sequence of integers, is empty or too long, or `slot` or
            `version` is no such number.
        WrongDevice
            `tokens` lies on a GPU; the index lives on the host.

        Examples
        --------
        >>> cache = jitalloc.SlotPrefixCache(capacity=1)
        >>> cache.insert([1, 2, 3], slot=5, version=1)
        >>> cache.insert([1, 2, 4], slot=6, version=1)
        SlotEntry(length=3, slot=5, version=1)
        """
        ids = self._tokens(tokens)
        if not 1 <= ids.size <= self.max_tokens:
            expected = f"must be 1 .. {self.max_tokens} tokens"
            raise InvalidArgument("tokens", ids.size, expected)
        if type(slot) is not int or not 0 <= slot < INT32_MAX:
            slot = as_slot("slot", slot, INT32_MAX)
        if type(version) is not int or not 0 <= version <= MOST_VERSIONS:
            version = as_count("version", version, 0, MOST_VERSIONS)
        out = _empty(3, INT64)
        status = self._run(slot_entries_insert_cpu, ids, slot, version, out)
        if status == 0:
            return None
        if status < 0:
            code = unpack_status(status)[0]
            if code == ALL_PINNED:
                raise AllPinned(f"all {self.capacity} entries are pinned, none can give way")
            if code == ENTRY_PINNED:
                entry = SlotEntry._make(out.tolist())
                raise EntryPinned("tokens", entry, "the entry of these tokens is pinned")
            raise SlotTaken("slot", slot, "the slot backs another entry")
        return SlotEntry._make(out.tolist())

    def evict(self) -> SlotEntry | None:
        """Forget the unpinned entry used longest ago.

        Returns
        -------
        SlotEntry or None
            Its slot is for the caller to free. None where there is no unpinned entry.
        """
        out = _empty(3, INT64)
        return SlotEntry._make(out.tolist()) if self._run(slot_entries_evict_cpu, out) else None

    def remove(self, entry: SlotMatch | SlotEntry) -> SlotEntry:
        """Forget one entry.

        Parameters
        ----------
        entry : SlotMatch or SlotEntry
            Slot and version tell which.

        Returns
        -------
        SlotEntry
            What it was; its slot is for the caller to free.

        Raises
        ------
        UnknownEntry
            There is no such entry (any more).
        EntryPinned
            The entry is pinned.

        Notes
        -----
        Costs a step for each branch beside its own that was used since, where older entries are
        left on its own; `evict` meets none of those but pinned ones.
        """
        slot, version = as_entry(entry)
        out = _empty(3, INT64)
        status = self._run(slot_entries_remove_cpu, slot, version, out)
        if status < 0:
            refuse(status, entry)
        return SlotEntry._make(out.tolist())
