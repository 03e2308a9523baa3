"""Sequences that begin and end."""

from __future__ import annotations

import numpy as np

import jitalloc

number = 1
repeat = 25


class AllocateFree:
    """`allocate` and `free` of one sequence, among none or 1,000 others."""

    params = ((16, 2048, 32_768), (0, 1000))
    param_names = ("tokens", "others")

    def setup(self, tokens: int, others: int) -> None:
        pool = jitalloc.PagePool(100_000)
        self.cache = jitalloc.PagedKVCache(pool, 1024, 2048)
        for other in range(others):
            self.cache.allocate(other, 64)
        self.cache.allocate("it", tokens)
        self.cache.free("it")

    def time_allocate_free_x1000(self, tokens: int, others: int) -> None:
        cache = self.cache
        for _ in range(1000):
            cache.allocate("it", tokens)
            cache.free("it")


class FreeBatch:
    """256 sequences of 16 pages end: by one `free_batch`, or one after the other."""

    params = (("batch", "single"),)
    param_names = ("how",)

    def setup(self, how: str) -> None:
        pool = jitalloc.PagePool(100_000)
        self.cache = jitalloc.PagedKVCache(pool, 256, 16)
        for i in range(256):
            self.cache.allocate(i, 256)

    def time_free(self, how: str) -> None:
        cache = self.cache
        if how == "batch":
            cache.free_batch(cache.rows(range(256)))
        else:
            for i in range(256):
                cache.free(i)


class Look:
    """What is known of a sequence and of all of them, among 1,024."""

    def setup(self) -> None:
        pool = jitalloc.PagePool(100_000)
        self.cache = jitalloc.PagedKVCache(pool, 1024, 64)
        for i in range(1024):
            self.cache.allocate(i, 512)
        self.cache.sequence(0)
        self.ids = list(range(1024))

    def time_rows_of_256_x100(self) -> None:
        for _ in range(100):
            self.cache.rows(range(256))

    def time_rows_of_1024_x100(self) -> None:
        for _ in range(100):
            self.cache.rows(self.ids)

    def time_rows_of_1024_one_by_one_x100(self) -> None:
        row = self.cache.row
        for _ in range(100):
            [row(seq_id) for seq_id in self.ids]

    def time_sequence_x100(self) -> None:
        for _ in range(100):
            self.cache.sequence(512)

    def time_stats_x100(self) -> None:
        for _ in range(100):
            self.cache.stats()

    def time_check(self) -> None:
        self.cache.check()


class ForkAt:
    """A fork of the first half of 2,048 tokens: in one call, or whole and then cut short."""

    params = (("at once", "and truncate"),)
    param_names = ("how",)

    def setup(self, how: str) -> None:
        pool = jitalloc.PagePool(10_000)
        self.cache = jitalloc.PagedKVCache(pool, 16, 256)
        self.cache.allocate("a", 2048)
        self.time_fork_free_x1000(how)

    def time_fork_free_x1000(self, how: str) -> None:
        cache = self.cache
        for _ in range(1000):
            if how == "at once":
                cache.fork("a", "b", 1030)
            else:
                cache.fork("a", "b")
                cache.truncate("b", 1030)
            cache.free("b")


class Adopt:
    """A sequence of 2,048 tokens whose pages came from elsewhere: taken, adopted and freed."""

    def setup(self) -> None:
        pool = jitalloc.PagePool(10_000)
        self.cache = jitalloc.PagedKVCache(pool, 16, 256)
        self.tokens = np.arange(2048, dtype=np.int32)
        self.time_alloc_adopt_free_x1000()

    def time_alloc_adopt_free_x1000(self) -> None:
        cache, pool = self.cache, self.cache.pool
        for _ in range(1000):
            cache.adopt("a", self.tokens, pool.alloc(128))
            cache.free("a")
