"""Finding the longest prefix that a slot holds."""

from __future__ import annotations

import numpy as np

import jitalloc
from asv_benchmarks.slot_baselines import DictPrefixes

number = 1
repeat = 25


def prompts(count: int, length: int, shared: int = 0) -> np.ndarray:
    """Return prompts of random tokens, the first `shared` of which are the same in all."""
    made = np.random.default_rng(0).integers(0, 50_000, (count, length), np.int32)
    made[:, :shared] = made[0, :shared]
    return made


class Find:
    """`find` of a prompt that is there, with 64 entries of 8,192 tokens. Limit: numpy compares."""

    params = ((16, 512, 8192),)
    param_names = ("tokens",)

    def setup(self, tokens: int) -> None:
        self.rows = prompts(64, 8192, shared=4)
        self.cache = jitalloc.SlotPrefixCache(64, 8192)
        for slot, row in enumerate(self.rows):
            self.cache.insert(row, slot, 1)
        self.query = self.rows[7, :tokens].copy()

    def time_find_x1000(self, tokens: int) -> None:
        for _ in range(1000):
            self.cache.find(self.query)

    def time_numpy_compare_x1000(self, tokens: int) -> None:
        for _ in range(1000):
            (self.query == self.rows[7, :tokens]).all()


class FindInMany:
    """`find` of one prompt after the other, half of which is known: more entries cost little."""

    params = ((64, 4096, 262_144),)
    param_names = ("capacity",)

    def setup(self, capacity: int) -> None:
        rows = prompts(capacity, 64, shared=16)
        self.cache = jitalloc.SlotPrefixCache(capacity, 64)
        for slot, row in enumerate(rows):
            self.cache.insert(row, slot, 1)
        self.queries = list(np.random.default_rng(1).permutation(rows)[:1000])
        for query in self.queries:
            query[32:] = -1

    def time_find_x1000(self, capacity: int) -> None:
        find = self.cache.find
        for query in (self.queries * 16)[:1000]:
            find(query)


class FindDesigns:
    """A prompt of 512 tokens whose first half is known: a dict of tuples looks at each entry."""

    params = ((64, 4096), ("jitalloc", "dict"))
    param_names = ("capacity", "design")
    repeat = 5

    def setup(self, capacity: int, design: str) -> None:
        rows = prompts(capacity, 512, shared=16)
        query = rows[capacity // 2].copy()
        query[256:] = -1
        if design == "dict":
            cache = DictPrefixes(capacity)
            for slot, row in enumerate(rows):
                cache.insert(tuple(row.tolist()), slot, 1)
            self.find, self.query = cache.find, tuple(query.tolist())
        else:
            other = jitalloc.SlotPrefixCache(capacity, 512)
            for slot, row in enumerate(rows):
                other.insert(row, slot, 1)
            self.find, self.query = other.find, query
        self.find(self.query)

    def time_find_x10(self, capacity: int, design: str) -> None:
        for _ in range(10):
            self.find(self.query)


class PinRelease:
    """`find` of 512 tokens that pins, and `release`."""

    def setup(self) -> None:
        self.cache = jitalloc.SlotPrefixCache(64, 512)
        self.row = prompts(1, 512)[0]
        self.cache.insert(self.row, 0, 1)

    def time_find_pin_release_x1000(self) -> None:
        cache, row = self.cache, self.row
        for _ in range(1000):
            cache.release(cache.find(row, pin=True))
