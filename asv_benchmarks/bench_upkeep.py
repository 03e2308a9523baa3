"""A pool as a whole: looking at it, checking, packing, resizing, keeping it; its size."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import jitalloc
from jitalloc import forking

number = 1
repeat = 25
SIZES = (100_000, 1_000_000)


@cache
def riddled(num_pages: int) -> jitalloc.PoolSnapshot:
    """Return the state of a full pool after every other page was freed."""
    pool = jitalloc.PagePool(num_pages)
    pool.free(pool.alloc(num_pages)[::2].copy())
    return pool.snapshot()


class Riddled:
    """A pool of which every other page is used: what looking at it and keeping it costs."""

    params = (SIZES,)
    param_names = ("num_pages",)

    def setup(self, num_pages: int) -> None:
        self.saved = riddled(num_pages)
        self.pool = jitalloc.PagePool(1)
        self.pool.restore(self.saved)
        self.pool.stats()
        self.pool.snapshot()

    def time_stats(self, num_pages: int) -> None:
        self.pool.stats()

    def time_stats_without_runs_x100(self, num_pages: int) -> None:
        for _ in range(100):
            self.pool.stats(runs=False)

    def time_check(self, num_pages: int) -> None:
        self.pool.check()

    def time_snapshot(self, num_pages: int) -> None:
        self.pool.snapshot()

    def time_restore(self, num_pages: int) -> None:
        self.pool.restore(self.saved)

    def time_clear(self, num_pages: int) -> None:
        self.pool.clear()

    def time_defragment(self, num_pages: int) -> None:
        self.pool.defragment()

    def time_grow_by_half(self, num_pages: int) -> None:
        self.pool.resize(num_pages * 3 // 2)

    def time_save_load(self, num_pages: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "pool.npz"
            self.pool.save(path)
            jitalloc.PagePool.load(path)


class Counters:
    """The properties that a scheduler asks for at each step: `available` and `utilization`."""

    def setup(self) -> None:
        self.pool = jitalloc.PagePool(100_000)

    def time_available_utilization_x1000(self) -> None:
        pool = self.pool
        for _ in range(1000):
            _ = pool.available, pool.utilization


class Metadata:
    """Bytes of state a page: a place in the freelist, a count of owners, and two bits."""

    params = ((1_000, 100_000, 10_000_000),)
    param_names = ("num_pages",)
    unit = "bytes/page"

    def track_bytes_a_page(self, num_pages: int) -> float:
        return round(jitalloc.PagePool(num_pages).arrays.slab.nbytes / num_pages, 3)


class Making:
    """What it takes to make and drop what has a lock, and to hold all of it still for a fork."""

    def setup(self) -> None:
        self.pools = [jitalloc.PagePool(64) for _ in range(100)]
        forking._before()  # compiles its loop
        forking._after()

    def time_make_pool(self) -> None:
        jitalloc.PagePool(64)

    def time_make_slots(self) -> None:
        jitalloc.SlotAllocator(64)

    def time_hold_100_pools_still(self) -> None:
        forking._before()
        forking._after()
