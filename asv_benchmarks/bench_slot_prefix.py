"""A prefix cache as a whole: what `check` costs."""

from __future__ import annotations

import jitalloc
from asv_benchmarks.bench_slot_tree import prompts

number = 1
repeat = 10


class Check:
    """`check` compares the tokens of all entries."""

    params = ((64, 4096), (64, 2048))
    param_names = ("capacity", "tokens")

    def setup(self, capacity: int, tokens: int) -> None:
        self.cache = jitalloc.SlotPrefixCache(capacity, tokens)
        for slot, row in enumerate(prompts(capacity, tokens, shared=tokens // 2)):
            self.cache.insert(row, slot, 1)
        self.cache.check()

    def time_check(self, capacity: int, tokens: int) -> None:
        self.cache.check()
