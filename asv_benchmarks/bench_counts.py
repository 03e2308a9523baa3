"""What calls on a pool of the GPU execute, counted without one: deterministic figures.

The compiled kernels run on the PTX machine of the tests, in the launch geometry of a GPU. What
bounds a call that waits for nothing else is its longest thread, and the bytes that all of them
move; `bench_cuda` has the times, where there is a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import jitalloc

MANY = 1_000_000  # pages of the large calls
BATCH = 1024
Call = Callable[[], object]


def machine() -> Any:
    """Put the machine in the place of a GPU; return its door, or let asv skip the benchmark."""
    try:
        from tests.ptx import install
        from tests.ptx import machine as found
    except ImportError as error:
        raise NotImplementedError(f"needs the tests beside the benchmarks ({error})") from error
    try:
        install.install()
        jitalloc.PagePool(1, device="cuda")
    except jitalloc.WrongDevice as error:
        raise NotImplementedError("needs jitalloc[cudatest]") from error
    return found


def up(values: Any) -> Any:
    from jitalloc import _cuda_device

    return _cuda_device.device().upload(np.asarray(values))


def decode() -> Call:
    lens, out = up(np.arange(BATCH) % 16 + 1), up(np.zeros(BATCH, np.int64))
    pool: Any = jitalloc.PagePool(2 * BATCH, device="cuda")
    lengths = np.arange(BATCH) % 16
    slots = np.full(BATCH, -1)
    made = pool.alloc_extend(up(0 * lengths), up(lengths), up(slots))
    slots[lengths > 0] = made.get()[np.cumsum(lengths)[lengths > 0] - 1]
    return partial(pool.alloc_decode, lens, up(slots), out=out)


def extend(prompts: int, tokens: int) -> Call:
    pool: Any = jitalloc.PagePool(2 * prompts * tokens // 16, device="cuda")
    lens = [up(np.full(prompts, each)) for each in (0, tokens, -1)]
    return partial(pool.alloc_extend, *lens, out=up(np.zeros(prompts * tokens, np.int64)))


def full(order: str = "sorted") -> tuple[Any, Any]:
    """Return a pool of two million pages, all taken, and a million of their ids in no order."""
    pool: Any = jitalloc.PagePool(2 * MANY, order=order, device="cuda")
    pool.alloc(2 * MANY, out=up(np.zeros(2 * MANY, np.int32)))
    ids = np.random.default_rng(7).permutation(2 * MANY)[:MANY].astype(np.int32)
    return pool, up(ids)


def free(order: str) -> Call:
    pool, ids = full(order)
    return partial(pool.free, ids, out=up(np.zeros(1, np.int64)))


def share() -> Call:
    pool, ids = full()
    return partial(pool.share, ids[:4096])


def merge(by: str) -> Call:
    pool, ids = full()
    pool.free(ids, out=up(np.zeros(1, np.int64)))
    if by == "alloc":
        return partial(pool.alloc, 1, out=up(np.zeros(1, np.int32)))
    return partial(pool.merge, out=up(np.zeros(1, np.int64)))


def singles() -> Call:
    pool: Any = jitalloc.PagePool(2 * MANY, device="cuda")
    starts, out = up(np.zeros(MANY + 1, np.int32)), up(np.zeros(MANY, np.int32))
    return partial(pool.alloc_batch, up(np.ones(MANY, np.int64)), indptr=starts, out=out)


def append(cached: bool) -> Call:
    pool: Any = jitalloc.PagePool(BATCH * 16, device="cuda")
    prefix = jitalloc.PrefixCache(pool) if cached else None
    cache: Any = jitalloc.PagedKVCache(pool, BATCH, 16, prefix_cache=prefix)
    for i in range(BATCH):
        cache.allocate(i, 100 + i % 16)
    out, copies = up(np.zeros(BATCH, np.int64)), up(np.zeros((2, BATCH), np.int32))
    return partial(cache.append_batch, cache.rows(range(BATCH)), 1, out=out, copies=copies)


CALLS: dict[str, Callable[[], Call]] = {
    "alloc_decode of 1,024": decode,
    "alloc_extend, 256 x 256 tokens": partial(extend, 256, 256),
    "alloc_extend, 1 x 65,536 tokens": partial(extend, 1, 65_536),
    "share of 4,096": share,
    "free of 1 M, sorted": partial(free, "sorted"),
    "free of 1 M, fifo": partial(free, "fifo"),
    "free of 1 M, lifo": partial(free, "lifo"),
    "merge of 1 M": partial(merge, "merge"),
    "alloc of 1 that merges 1 M": partial(merge, "alloc"),
    "alloc_batch of 1 M single pages": singles,
    "append_batch of 1,024": partial(append, False),
    "append_batch of 1,024 behind a prefix cache": partial(append, True),
}


class Calls:
    """One call: its longest thread, and what all threads do; sums over its launches."""

    params = (tuple(CALLS),)
    param_names = ("call",)
    timeout = 300

    def setup(self, call: str) -> None:
        counted = machine().counted
        made = CALLS[call]()
        with counted() as launches:
            made()
        self.launches = launches

    def _sum(self, name: str) -> int:
        return sum(getattr(each, name) for each in self.launches)

    def track_longest_thread(self, call: str) -> int:
        return self._sum("most_instructions")

    def track_memory_operations(self, call: str) -> int:
        return sum(each.loads + each.stores + each.atomics for each in self.launches)

    def track_bytes(self, call: str) -> int:
        return self._sum("bytes")

    def track_barriers(self, call: str) -> int:
        return self._sum("barriers")

    def track_launches(self, call: str) -> int:
        return len(self.launches)

    track_longest_thread.unit = "instructions"  # type: ignore[attr-defined]
    track_memory_operations.unit = "operations"  # type: ignore[attr-defined]
    track_bytes.unit = "bytes"  # type: ignore[attr-defined]
    track_barriers.unit = "barriers"  # type: ignore[attr-defined]
    track_launches.unit = "launches"  # type: ignore[attr-defined]


if __name__ == "__main__":
    for name in CALLS:
        run = Calls()
        run.setup(name)
        print(
            f"{name:46s} longest thread {run.track_longest_thread(name):8,d}, memory operations"
            f" {run.track_memory_operations(name):12,d}, bytes {run.track_bytes(name):12,d},"
            f" barriers {run.track_barriers(name):6,d}, launches {run.track_launches(name)}"
        )
