"""Cache slots and their prefix cache beside their models: each call runs on both and must agree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from jitalloc import SlotAllocator, SlotEntry, SlotPrefixCache
from jitalloc.slots.prefix_state import (
    ENTRIES_USED,
    ENTRY_CLOCK,
    ENTRY_LENGTH,
    ENTRY_NODE,
    ENTRY_PINS,
    ENTRY_SLOT,
    ENTRY_VERSION,
    GONE,
)
from jitalloc.slots.state import FREE_SLOTS
from jitalloc.state import LOCK
from tests import oracle_slots
from tests.pairs import outcome


def bits_of(bitmap: np.ndarray[Any, Any]) -> list[int]:
    bits: list[int] = np.flatnonzero(
        np.unpackbits(bitmap.view(np.uint8), bitorder="little")
    ).tolist()
    return bits


def slot_state(slots: SlotAllocator) -> dict[str, Any]:
    """The state of an allocator, in the words of the model."""
    arrays = slots.arrays
    assert arrays.header[FREE_SLOTS] == slots.free_count
    assert arrays.header[LOCK] == 0
    return {
        "free": bits_of(arrays.free),
        "versions": arrays.versions.tolist(),
        "peak": slots.peak_used,
    }


def slot_prefix_facts(cache: SlotPrefixCache) -> dict[str, Any]:
    """The state of a prefix cache, in the words of the model."""
    arrays, stats = cache.arrays, cache.stats()
    assert arrays.header[LOCK] == 0
    rows = arrays.entries
    live = [e for e in range(arrays.header[ENTRIES_USED]) if rows[e, ENTRY_NODE] != GONE]
    live.sort(key=lambda e: int(rows[e, ENTRY_CLOCK]))
    assert len(live) == stats.entries == len(cache)
    assert sum(rows[e, ENTRY_PINS] > 0 for e in live) == stats.pinned == cache.num_pinned
    return {
        "entries": [
            (
                tuple(arrays.tokens[e, : rows[e, ENTRY_LENGTH]].tolist()),
                *rows[e, [ENTRY_SLOT, ENTRY_VERSION, ENTRY_PINS]].tolist(),
            )
            for e in live
        ],
        "lookups": (stats.lookups, stats.hits, stats.tokens_looked_up, stats.tokens_found),
        "changes": (stats.insertions, stats.evictions),
    }


class _Pair:
    library: Any
    model: Any

    def call(self, name: str, *args: Any, **options: Any) -> tuple[Any, ...]:
        """Call both sides, compare what comes back and what is left; return the outcome."""
        return self.compare(
            lambda: getattr(self.library, name)(*args, **options),
            lambda: getattr(self.model, name)(*args, **options),
        )

    def compare(self, library: Callable[[], Any], model: Callable[[], Any]) -> tuple[Any, ...]:
        expected, got = outcome(model), outcome(library)
        assert got == expected
        self.agree()
        return got

    def result(self, name: str, *args: Any, **options: Any) -> Any:
        """Call both sides; the call must succeed."""
        got = self.call(name, *args, **options)
        assert got[0] == "returned", got
        return got[1]

    def agree(self) -> None:
        raise AssertionError


class SlotPair(_Pair):
    """A `SlotAllocator` and its model."""

    def __init__(self, max_slots: int) -> None:
        self.library = SlotAllocator(max_slots)
        self.model = oracle_slots.Slots(max_slots)

    def agree(self) -> None:
        model = self.model
        assert slot_state(self.library) == {
            "free": sorted(model.free_slots),
            "versions": model.versions,
            "peak": model.peak_used,
        }
        assert self.library.free_count == model.free_count
        self.library.check()


class SlotPrefixPair(_Pair):
    """A `SlotPrefixCache` and its model."""

    def __init__(self, capacity: int, max_tokens: int) -> None:
        self.library = SlotPrefixCache(capacity, max_tokens)
        self.model = oracle_slots.Prefixes(capacity, max_tokens)

    def agree(self) -> None:
        model = self.model
        assert slot_prefix_facts(self.library) == {
            "entries": [
                (each.tokens, each.slot, each.version, each.pins) for each in model.entries
            ],
            "lookups": (model.lookups, model.hits, model.asked, model.found),
            "changes": (model.insertions, model.evictions),
        }
        self.library.check()

    def entries(self) -> list[SlotEntry]:
        """What there is, the one used longest ago first."""
        return [SlotEntry(*each.show()) for each in self.model.entries]
