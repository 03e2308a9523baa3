"""Who holds a page: giving back, sharing, counting."""

from __future__ import annotations

from functools import cache

import numpy as np

import jitalloc
from asv_benchmarks.baselines import DictPool, NumpyPool

number = 1
repeat = 25


@cache
def held_pool(num_pages: int, order: str) -> jitalloc.PagePool:
    """Return the one pool of this size and order that the samples of a process share."""
    return jitalloc.PagePool(num_pages, order=order)


class Free:
    """`free` alone. Held to: 10 million pages cost at most 1.5 times what 100,000 do.

    `consecutive` ids are what a pool hands out; `scattered` ones miss the processor's caches.
    """

    params = ((1, 16, 256), (100_000, 10_000_000), ("consecutive", "scattered"))
    param_names = ("pages", "num_pages", "ids")

    def setup(self, pages: int, num_pages: int, ids: str) -> None:
        self.pool = held_pool(num_pages, "sorted")
        self.pool.alloc(self.pool.available)
        order = np.arange(num_pages, dtype=np.int32)
        if ids == "scattered":
            order = np.random.default_rng(0).choice(order, 100 * pages, replace=False)
        self.batches = [order[i * pages : (i + 1) * pages].copy() for i in range(100)]

    def time_free_x100(self, pages: int, num_pages: int, ids: str) -> None:
        pool = self.pool
        for batch in self.batches:
            pool.free(batch)


class FreeOrder:
    """`free` of 256 pages by order of the freelist: `sorted` sets bits, the others write ids."""

    params = (("sorted", "fifo", "lifo"),)
    param_names = ("order",)

    def setup(self, order: str) -> None:
        self.pool = held_pool(100_000, order)
        self.pool.alloc(self.pool.available)
        ids = np.arange(25_600, dtype=np.int32)
        self.batches = list(ids.reshape(100, 256))

    def time_free_x100(self, order: str) -> None:
        pool = self.pool
        for batch in self.batches:
            pool.free(batch)


class FreeGroup:
    """64 sequences of 16 pages end at once, on a pool with 50,000 pages released already.

    In a `group`, each by itself (`single`), and in a group of the NumPy design.
    """

    params = (("group", "single", "numpy group", "numpy single"),)
    param_names = ("how",)

    def setup(self, how: str) -> None:
        design = NumpyPool if how.startswith("numpy") else jitalloc.PagePool
        self.pool = design(100_000)
        self.pool.free(self.pool.alloc(50_000))
        self.batches = [np.array(self.pool.alloc(16)) for _ in range(64)]

    def time_free(self, how: str) -> None:
        pool = self.pool
        if how.endswith("single"):
            for batch in self.batches:
                pool.free(batch)
        else:
            with pool.free_group():
                for batch in self.batches:
                    pool.free(batch)


class FreeSlots:
    """`free_slots` of the tokens of 16-token pages: each page goes once."""

    params = ((16, 256, 4096),)
    param_names = ("tokens",)

    def setup(self, tokens: int) -> None:
        pool = self.pool = jitalloc.PagePool(100_000)
        starts = [np.array([0]), np.array([tokens]), np.array([-1])]
        self.slots = [pool.alloc_extend(*starts) for _ in range(100)]
        pool.free_slots(self.slots.pop())

    def time_free_slots_x99(self, tokens: int) -> None:
        pool = self.pool
        for slots in self.slots:
            pool.free_slots(slots)


class Share:
    """`share` and the `free` that takes it back, beside a dict of reference counts."""

    params = ((1, 16, 256), ("jitalloc", "dict"))
    param_names = ("pages", "design")

    def setup(self, pages: int, design: str) -> None:
        self.pool = jitalloc.PagePool(100_000) if design == "jitalloc" else DictPool(100_000)
        self.pages = self.pool.alloc(pages)
        self.pool.share(self.pages)
        self.pool.free(self.pages)

    def time_share_free_x1000(self, pages: int, design: str) -> None:
        pool, ids = self.pool, self.pages
        for _ in range(1000):
            pool.share(ids)
            pool.free(ids)


class Refcount:
    """`refcount` of a batch of pages."""

    params = ((1, 256),)
    param_names = ("pages",)

    def setup(self, pages: int) -> None:
        self.pool = jitalloc.PagePool(100_000)
        self.pages = self.pool.alloc(pages)
        self.pool.refcount(self.pages)

    def time_refcount_x1000(self, pages: int) -> None:
        pool, ids = self.pool, self.pages
        for _ in range(1000):
            pool.refcount(ids)
