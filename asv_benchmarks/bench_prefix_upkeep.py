"""A prefix cache as a whole: checking, saving, and following its pool."""

from __future__ import annotations

import jitalloc
from asv_benchmarks.bench_reclaim import grown

number = 1
repeat = 10
SIZES = (1024, 32_768)


class Whole:
    """`check`, `stats`, `snapshot` and `restore` of a cache of so many leaves."""

    params = (SIZES,)
    param_names = ("leaves",)

    def setup(self, leaves: int) -> None:
        self.cache = grown("lru", leaves)
        self.saved = self.cache.snapshot()
        self.cache.restore(self.saved)

    def time_check(self, leaves: int) -> None:
        self.cache.check()

    def time_snapshot(self, leaves: int) -> None:
        self.cache.snapshot()

    def time_restore(self, leaves: int) -> None:
        self.cache.restore(self.saved)

    def time_stats_x1000(self, leaves: int) -> None:
        for _ in range(1000):
            self.cache.stats()


class FollowPool:
    """`defragment` and `resize` of a pool of which every second page is cached.

    Beside it the same pool whose pages are a caller's: what the cache adds.
    """

    params = (("cached", "held"), SIZES)
    param_names = ("pages", "leaves")

    def setup(self, pages: str, leaves: int) -> None:
        pool = self.pool = jitalloc.PagePool(2 * leaves)
        every_second = pool.alloc(2 * leaves)[1::2]
        self.cache = jitalloc.PrefixCache(pool)
        if pages == "cached":
            for start in range(0, leaves, 64):
                prompt = every_second[start : start + 64]
                self.cache.insert(prompt.repeat(16), prompt)
            pool.free(every_second)
        pool.free(range(0, 2 * leaves, 2))

    def time_defragment(self, pages: str, leaves: int) -> None:
        self.pool.defragment()

    def time_resize(self, pages: str, leaves: int) -> None:
        self.pool.resize(2 * leaves + 1)
