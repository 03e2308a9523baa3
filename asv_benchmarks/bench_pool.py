"""Taking pages: alone, in batches, as runs; merging what came back; what the first call costs."""

from __future__ import annotations

import threading
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

import jitalloc
from asv_benchmarks.baselines import DESIGNS

number = 1
repeat = 25
ORDERS = ("sorted", "fifo", "lifo")


@cache
def pool_of(num_pages: int, order: str = "sorted") -> jitalloc.PagePool:
    """Return the one pool of this size and order that the samples of a process share."""
    return jitalloc.PagePool(num_pages, order=order)


class AllocFree:
    """`free(alloc(n))` with all checks on. Held to 1.2 us for 1 page and 2 us for 256 pages.

    The size of the pool must not matter.
    """

    params = ((1, 16, 256, 4096), (100_000, 10_000_000), ORDERS)
    param_names = ("pages", "num_pages", "order")

    def setup(self, pages: int, num_pages: int, order: str) -> None:
        self.pool = pool_of(num_pages, order)
        self.pool.free(self.pool.alloc(pages))

    def time_alloc_free_x1000(self, pages: int, num_pages: int, order: str) -> None:
        pool = self.pool
        for _ in range(1000):
            pool.free(pool.alloc(pages))


class AllocFreeDesigns:
    """The same pair by the textbook designs, on a pool of 100,000 pages."""

    params = ((1, 16, 256), tuple(DESIGNS))
    param_names = ("pages", "design")
    repeat = 5

    def setup(self, pages: int, design: str) -> None:
        self.pool = DESIGNS[design](100_000)
        self.pool.free(self.pool.alloc(pages))

    def time_alloc_free_x100(self, pages: int, design: str) -> None:
        pool = self.pool
        for _ in range(100):
            pool.free(pool.alloc(pages))


class Alloc:
    """`alloc(n)` alone, from a fresh pool."""

    params = ((1, 16, 256, 4096), ORDERS)
    param_names = ("pages", "order")

    def setup(self, pages: int, order: str) -> None:
        self.pool = pool_of(1000 * pages, order)
        self.pool.clear()

    def time_alloc_x1000(self, pages: int, order: str) -> None:
        pool = self.pool
        for _ in range(1000):
            pool.alloc(pages)


class AllocInto:
    """`alloc(n, out=...)` into one buffer, and `free`: what the result array costs."""

    params = ((1, 256),)
    param_names = ("pages",)

    def setup(self, pages: int) -> None:
        self.pool, self.out = pool_of(100_000), np.empty(pages, np.int32)
        self.pool.free(self.pool.alloc(pages, out=self.out))

    def time_alloc_free_x1000(self, pages: int) -> None:
        pool, out = self.pool, self.out
        for _ in range(1000):
            pool.free(pool.alloc(pages, out=out))


class AllocContiguous:
    """`alloc(64, contiguous=True)` and `free`; the run lies at the front or the very end.

    The search looks at every page before the run: O(num_pages).
    """

    params = ((100_000, 1_000_000), ("front", "end"))
    param_names = ("num_pages", "run")

    def setup(self, num_pages: int, run: str) -> None:
        self.pool = pool_of(num_pages)
        self.pool.clear()
        if run == "end":
            self.pool.free(self.pool.alloc(num_pages - 64)[::2].copy())
        self.pool.free(self.pool.alloc(64, contiguous=True))

    def time_alloc_free_x10(self, num_pages: int, run: str) -> None:
        pool = self.pool
        for _ in range(10):
            pool.free(pool.alloc(64, contiguous=True))


class AllocBatch:
    """Four pages for each of B sequences by one call, and how many of them would fit."""

    params = ((16, 256, 1024),)
    param_names = ("sequences",)

    def setup(self, sequences: int) -> None:
        self.pool, self.counts = pool_of(100_000), np.full(sequences, 4)
        self.pool.free(self.pool.alloc_batch(self.counts).pages)
        self.pool.admit(self.counts)

    def time_alloc_batch_free_x1000(self, sequences: int) -> None:
        pool, counts = self.pool, self.counts
        for _ in range(1000):
            pool.free(pool.alloc_batch(counts).pages)

    def time_admit_x1000(self, sequences: int) -> None:
        pool, counts = self.pool, self.counts
        for _ in range(1000):
            pool.admit(counts)


def freed(how: str, count: int) -> NDArray[np.int32]:
    """Return all ids below `count` in random order, singly or in runs of 64."""
    generator = np.random.default_rng(0)
    run = {"random": 1, "runs": 64}[how]
    runs = np.arange(count, dtype=np.int32).reshape(-1, run)
    return np.ascontiguousarray(generator.permutation(runs).reshape(-1))


def exhausted(design: str, count: int) -> Any:
    """Return a pool whose pages are all taken."""
    if design in ("list", "numpy"):  # neither knows which pages are taken
        return DESIGNS[design](0)
    pool = DESIGNS[design](count)
    pool.alloc(count)
    return pool


class _Million:
    """A million pages that come back to a pool whose pages are all taken."""

    params = (("random", "runs"),)
    param_names = ("freed",)

    def setup(self, how: str, design: str = "jitalloc") -> None:
        ids = freed(how, 1_000_000)
        self.ids = ids if design in ("jitalloc", "numpy") else ids.tolist()
        self.pool = exhausted(design, ids.size)
        self.repeat = 2 if design in ("list", "dict") else 8


class Merge(_Million):
    """`merge` of a million released pages. Held to 2.5 ms freed at random, 0.5 ms in runs of 64."""

    def setup(self, how: str, design: str = "jitalloc") -> None:
        super().setup(how, design)
        self.pool.free(self.ids)

    def time_merge(self, how: str) -> None:
        self.pool.merge()


class FreeMerge(_Million):
    """The `free` of the million pages, and the `merge`."""

    def time_free_merge(self, how: str) -> None:
        self.pool.free(self.ids)
        self.pool.merge()


MERGING = (("random", "runs"), ("jitalloc", "list", "numpy", "dict"))


class MergeDesigns(Merge):
    """`merge` by the textbook designs; `bitmask` has nothing to merge, and would free for minutes.

    A double free goes by unnoticed in `list` and `numpy`, whose `free` only writes ids down.
    """

    params = MERGING
    param_names = ("freed", "design")

    def time_merge(self, how: str, design: str) -> None:  # type: ignore[override]
        self.pool.merge()


class FreeMergeDesigns(FreeMerge):
    """`free` and `merge` by the textbook designs."""

    params = MERGING
    param_names = ("freed", "design")

    def time_free_merge(self, how: str, design: str) -> None:  # type: ignore[override]
        self.pool.free(self.ids)
        self.pool.merge()


class MergePartly:
    """A few pages come back to a large, mostly free pool: the merge they need at the next turn."""

    params = ((100_000, 10_000_000), (16, 4096))
    param_names = ("num_pages", "pages")

    def setup(self, num_pages: int, pages: int) -> None:
        self.pool = pool_of(num_pages)
        self.pool.free(self.pool.alloc(pages))
        self.pool.merge()

    def time_alloc_free_merge_x10(self, num_pages: int, pages: int) -> None:
        pool = self.pool
        for _ in range(10):
            pool.free(pool.alloc(pages))
            pool.merge()


class Threads:
    """20,000 pairs `free(alloc(16))` shared out among threads: what the pool's lock costs.

    Two threads on one pool meet at its lock and at Python's; with a pool each, only at Python's.
    """

    params = (("1 thread", "2 threads, 1 pool", "2 threads, 2 pools"),)
    param_names = ("threads",)

    def setup(self, threads: str) -> None:
        workers = int(threads[0])
        shared = threads.endswith("1 pool")
        self.pools = [jitalloc.PagePool(100_000) for _ in range(1 if shared else workers)]
        self.pools *= workers // len(self.pools)

    def time_alloc_free_x20000(self, threads: str) -> None:
        pairs = 20_000 // len(self.pools)

        def hammer(pool: jitalloc.PagePool) -> None:
            for _ in range(pairs):
                pool.free(pool.alloc(16))

        workers = [threading.Thread(target=hammer, args=(pool,)) for pool in self.pools]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()


class Import:
    """`import` in a new process; jitalloc brings numba, numba brings numpy. Held to 0.6 s."""

    params = (("numpy", "numba", "jitalloc"),)
    param_names = ("package",)
    repeat = 3

    def timeraw_import(self, package: str) -> str:
        return f"import {package}"


COLD = """
import os, tempfile
folder = tempfile.TemporaryDirectory()
os.environ["NUMBA_CACHE_DIR"] = folder.name
"""


class FirstCall:
    """What the first user waits for after `import jitalloc`, in a new process.

    `cold`: nothing is compiled yet; `warm`: the kernels lie in the disk cache.
    """

    params = (("cold", "warm"),)
    param_names = ("cache",)
    rounds = 1
    repeat = 3
    min_run_count = 1
    warmup_time = 0
    timeout = 300

    def timeraw_first_alloc_free(self, cache: str) -> tuple[str, str]:
        prepare = (COLD if cache == "cold" else "") + "import jitalloc"
        return "pool = jitalloc.PagePool(1024); pool.free(pool.alloc(1))", prepare

    def timeraw_warmup(self, cache: str) -> tuple[str, str]:
        return "jitalloc.warmup()", (COLD if cache == "cold" else "") + "import jitalloc"

    timeraw_warmup.repeat = 1  # type: ignore[attr-defined]
