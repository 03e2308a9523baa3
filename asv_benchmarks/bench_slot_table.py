"""Under a prefix cache: making one, the entry of a slot, clearing."""

from __future__ import annotations

import jitalloc
from asv_benchmarks.bench_slot_tree import prompts

number = 1
repeat = 25


class Make:
    """A new cache with rows of 8,192 tokens, 2 GiB of virtual memory in the largest."""

    params = ((64, 4096, 65_536),)
    param_names = ("capacity",)

    def time_make(self, capacity: int) -> None:
        jitalloc.SlotPrefixCache(capacity, 8192)


class Entry:
    """`entry(slot)`."""

    def setup(self) -> None:
        self.cache = jitalloc.SlotPrefixCache(64, 64)
        for slot, row in enumerate(prompts(64, 64)):
            self.cache.insert(row, slot, 1)

    def time_entry_x1000(self) -> None:
        for _ in range(1000):
            self.cache.entry(7)


class Clear:
    """`clear` of a full cache."""

    params = ((64, 4096),)
    param_names = ("capacity",)

    def setup(self, capacity: int) -> None:
        self.cache = jitalloc.SlotPrefixCache(capacity, 64)
        for slot, row in enumerate(prompts(capacity, 64)):
            self.cache.insert(row, slot, 1)

    def time_clear(self, capacity: int) -> None:
        self.cache.clear()
