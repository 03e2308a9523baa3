"""Times of the GPU for the calls that DESIGN names, each with the queue full before it begins.

A kernel that only waits keeps the GPU busy while the host gets ahead, so that what is measured
between two events is the GPU's work and not the host's. Each call is made in a CUDA graph. Where
the GPU is no real one every call is made once, and no time is given.
"""

from __future__ import annotations

import importlib
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import jitalloc
from jitalloc.gpu import device as _cuda_device
from jitalloc.sequences.tables import PageTableCSR

Call = Callable[[], object]
SPIN = """extern "C" __global__ void spin(long long n)
{ long long begin = clock64(); while (clock64() - begin < n) ; }"""


class Clock:
    """Runs calls and notes what they took."""

    def __init__(self) -> None:
        self.cupy: Any = importlib.import_module("cupy")
        self.real = hasattr(self.cupy, "RawKernel")
        self.found: dict[str, dict[str, object]] = {}
        self.stream = self.cupy.cuda.Stream(non_blocking=True)
        if self.real:
            self.spin = self.cupy.RawKernel(SPIN, "spin")
            self.stream.use()
            self.wait(400_000_000)  # the clock of the GPU goes up

    def wait(self, cycles: int) -> None:
        self.spin((1,), (1,), (np.int64(cycles),))

    def note(self, name: str, us: float, held: str) -> None:
        self.found[name] = {"us": round(us, 2), "held to": held}
        print(f"{name:44s} {us:10.2f} us   {held}", flush=True)

    def gpu(self, name: str, call: Call, reset: Call = lambda: None, calls: int = 1) -> None:
        """Note the median time of the GPU for one of `calls` calls that `call` makes."""
        reset()
        call()
        if not self.real:
            return
        reset()
        self.stream.synchronize()
        self.stream.begin_capture()
        call()
        graph = self.stream.end_capture()
        spent = []
        for _ in range(15):
            reset()
            first, last = self.cupy.cuda.Event(), self.cupy.cuda.Event()
            self.wait(1_000_000)  # half a millisecond in which the host gets ahead
            first.record(self.stream)
            graph.launch(self.stream)
            last.record(self.stream)
            last.synchronize()
            spent.append(self.cupy.cuda.get_elapsed_time(first, last) * 1e3 / calls)
        self.note(name, statistics.median(spent), HELD.get(name, ""))

    def host(self, name: str, call: Call, calls: int = 100) -> None:
        """Note the median time of the host for a call that does not wait."""
        call()
        if not self.real:
            return
        spent = []
        for _ in range(9):
            begin = time.perf_counter()
            for _ in range(calls):
                call()
            spent.append((time.perf_counter() - begin) / calls * 1e6)
            self.stream.synchronize()
        self.note(name, statistics.median(spent), HELD.get(name, ""))


HELD = {
    "decode of 1,024": "6 us",
    "extend, 256 x 256 tokens": "15 us",
    "extend, 1 x 65,536 tokens": "15 us",
    "free of 1 M, random": "60 us",
    "merge of 1 M, random": "60 us",
    "1 M single pages": "100 us",
    "host: decode": "5 us",
    "host: append_batch": "6 us",
}


def saved(pool: Any) -> Call:
    """Return a call that puts a pool's words back to what they are now."""
    words = pool._words.copy()

    def reset() -> None:
        pool._words[...] = words

    return reset


def time_decode(clock: Clock) -> None:
    up, steps, count = _cuda_device.device().upload, 50, 1024
    pool: Any = jitalloc.PagePool(count * 8, device="cuda")
    lengths, last = np.zeros(count, np.int64), up(np.full(count, -1))
    reset = saved(pool)
    lens = [up(lengths + i + 1) for i in range(steps)]

    def many() -> None:
        for each in lens:
            pool.alloc_decode(each, last, out=last)

    def begin() -> None:
        reset()
        last[...] = -1

    clock.gpu("decode of 1,024", many, begin, steps)
    begin()
    slots = up(np.zeros(count, np.int64))
    pool.alloc_decode(lens[0], last, out=slots)  # each has a page; its second token needs none
    clock.host("host: decode", lambda: pool.alloc_decode(lens[1], slots, out=last))


def time_extend(clock: Clock) -> None:
    up = _cuda_device.device().upload
    for prompts, tokens in ((256, 256), (1, 65_536)):
        pool: Any = jitalloc.PagePool(2 * prompts * tokens // 16, device="cuda")
        given = [up(np.full(prompts, each)) for each in (0, tokens, -1)]
        extend = partial(pool.alloc_extend, *given, out=up(np.zeros(prompts * tokens, np.int64)))
        clock.gpu(f"extend, {prompts:,} x {tokens:,} tokens", extend, saved(pool))


def time_large(clock: Clock, order: str) -> None:
    up, many = _cuda_device.device().upload, 1_000_000
    pool: Any = jitalloc.PagePool(2 * many, order=order, device="cuda")
    count, all_ids = up(np.zeros(1, np.int64)), up(np.zeros(2 * many, np.int32))
    fresh = saved(pool)
    pool.alloc(2 * many, out=all_ids)
    full = saved(pool)
    ids = up(np.random.default_rng(7).permutation(2 * many)[:many].astype(np.int32))
    name = "" if order == "sorted" else f", {order}"
    clock.gpu(f"free of 1 M, random{name}", lambda: pool.free(ids, out=count), full)
    if order != "sorted":
        return
    full()
    pool.free(ids, out=count)
    freed, one = saved(pool), up(np.zeros(1, np.int32))
    clock.gpu("merge of 1 M, random", lambda: pool.merge(out=count), freed)
    clock.gpu("alloc of one page that merges 1 M", lambda: pool.alloc(1, out=one), freed)
    clock.gpu("share of 4,096", lambda: pool.share(ids[:4096]), full)
    starts, singles = (up(np.zeros(many + i, np.int32)) for i in (1, 0))
    each = partial(pool.alloc_batch, up(np.ones(many, np.int64)), indptr=starts, out=singles)
    clock.gpu("1 M single pages", each, fresh)


def time_rows(clock: Clock, cached: bool) -> None:
    up, count = _cuda_device.device().upload, 1024
    pool: Any = jitalloc.PagePool(count * 64, device="cuda")
    prefix = jitalloc.PrefixCache(pool) if cached else None
    cache: Any = jitalloc.PagedKVCache(pool, count, 64, prefix_cache=prefix)
    for i in range(count):
        cache.allocate(i, 100 + i % 16)
    rows, out = cache.rows(range(count)), up(np.zeros(count, np.int64))
    append = partial(
        cache.append_batch, rows, 1, out=out, copies=up(np.zeros((2, count), np.int32))
    )
    append()
    clock.gpu(f"append_batch of 1,024{' behind a prefix cache' if cached else ''}", append)
    if not cached:
        csr = PageTableCSR(*(up(np.zeros(n, np.int32)) for n in (count + 1, count * 64, count)))
        clock.gpu("page_table_csr of 1,024", lambda: cache.page_table_csr(rows, out=csr))
        clock.host("host: append_batch", append, 20)
    cache.check()


def measure(results: Path, _built: Path | None) -> None:
    """Measure everything, print it, and write it to `times.json`."""
    clock = Clock()
    time_decode(clock)
    time_extend(clock)
    for order in ("sorted", "fifo", "lifo"):
        time_large(clock, order)
    for cached in (False, True):
        time_rows(clock, cached)
    (results / "times.json").write_text(json.dumps(clock.found, indent=1))
    print("every call was made" if clock.real else "every call was made; no GPU, so no times")
