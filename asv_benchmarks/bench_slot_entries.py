"""Entries that come and give way."""

from __future__ import annotations

from typing import Any

import jitalloc
from asv_benchmarks.bench_slot_tree import prompts
from asv_benchmarks.slot_baselines import DictPrefixes

number = 1
repeat = 25


class InsertEvict:
    """`insert` of 64 tokens into a full cache: another entry gives way, its slot is used again.

    Held to be flat in the number of entries.
    """

    params = ((64, 4096, 262_144),)
    param_names = ("capacity",)
    repeat = 5

    def setup(self, capacity: int) -> None:
        rows = list(prompts(capacity + 2000, 64, shared=16))
        self.cache = jitalloc.SlotPrefixCache(capacity, 64)
        for slot, row in enumerate(rows[: capacity + 1000]):
            self.cache.insert(row, slot, 1)
        self.rows, self.slot = rows[-1000:], capacity + 1000

    def time_insert_evict_x1000(self, capacity: int) -> None:
        insert, slot = self.cache.insert, self.slot
        for row in self.rows:
            gone: Any = insert(row, slot, 1)
            slot = gone.slot


class InsertEvictDesigns:
    """The same beside a dict of tuples, which keeps the tokens it is given, without a copy."""

    params = ((64, 4096), (64, 512), ("jitalloc", "dict"))
    param_names = ("capacity", "tokens", "design")
    repeat = 5

    def setup(self, capacity: int, tokens: int, design: str) -> None:
        rows: Any = prompts(capacity + 2000, tokens, shared=16)
        if design == "dict":
            rows = [tuple(row) for row in rows.tolist()]
            self.insert: Any = DictPrefixes(capacity).insert
        else:
            self.insert = jitalloc.SlotPrefixCache(capacity, tokens).insert
        for slot, row in enumerate(rows[:-1000]):
            self.insert(row, slot, 1)
        self.rows = list(rows[-1000:])

    def time_insert_evict_x1000(self, capacity: int, tokens: int, design: str) -> None:
        insert, slot = self.insert, capacity + 2000
        for row in self.rows:
            insert(row, slot, 1)
            slot += 1


class Conversation:
    """A prompt that grows by 64 tokens a turn, each turn an entry: a tree as deep as it goes."""

    params = ((16, 128),)
    param_names = ("turns",)

    def setup(self, turns: int) -> None:
        self.prompt = prompts(1, 64 * turns)[0]
        self.cache = jitalloc.SlotPrefixCache(turns, 64 * turns)
        self.time_turns(turns)

    def time_turns(self, turns: int) -> None:
        for turn in range(turns):
            self.cache.insert(self.prompt[: 64 * turn + 64], turn, 1)
        self.cache.clear()


class Evict:
    """`evict` of 1,000 entries, one after the other."""

    params = ((4096, 262_144),)
    param_names = ("capacity",)

    def setup(self, capacity: int) -> None:
        self.cache = jitalloc.SlotPrefixCache(capacity, 64)
        for slot, row in enumerate(prompts(capacity, 64, shared=16)):
            self.cache.insert(row, slot, 1)

    def time_evict_x1000(self, capacity: int) -> None:
        for _ in range(1000):
            self.cache.evict()
