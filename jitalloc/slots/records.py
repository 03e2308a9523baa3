"""What a slot prefix cache tells: matches, entries, figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class SlotMatch(NamedTuple):
    """What `SlotPrefixCache.find` found.

    Attributes
    ----------
    length : int
        How many leading tokens of the query the slot holds, at least 1.
    slot : int
    version : int
        As handed to `insert`; `SlotAllocator.is_current` tells whether the slot is still the one
        that was meant.
    """

    length: int
    slot: int
    version: int


class SlotEntry(NamedTuple):
    """An entry of a `SlotPrefixCache`: a slot whose row holds these many tokens.

    Attributes
    ----------
    length : int
        Tokens of the entry.
    slot : int
    version : int
    """

    length: int
    slot: int
    version: int


@dataclass(frozen=True, slots=True)
class SlotPrefixStats:
    """What a `SlotPrefixCache` holds, and what it has done so far.

    Attributes
    ----------
    capacity, max_tokens : int
        The cache's sizes.
    entries, pinned : int
        Entries, and how many of them are pinned.
    lookups, hits : int
        Calls of `find`, and how many of them found something.
    tokens_looked_up, tokens_found : int
        Tokens that these calls asked for, and how many of them were found.
    insertions, evictions : int
        Calls of `insert` that succeeded, and entries that gave way.
    """

    capacity: int
    max_tokens: int
    entries: int
    pinned: int
    lookups: int
    hits: int
    tokens_looked_up: int
    tokens_found: int
    insertions: int
    evictions: int
