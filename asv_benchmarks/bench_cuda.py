"""Pools on the GPU: what the compiler and the host alone can tell, and where there is one, time.

Beside jitalloc (`jitalloc`), in the same run, whole-array code of CuPy as engines write it with
tensors (`cupy`), and the pool of the CPU, its results copied to the GPU (`cpu`). Times are
medians between two events on a stream that has work enough before them, so that the GPU never
waits for the host; `bench_cuda.Host` is the time of the host.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import jitalloc
from asv_benchmarks import gpu as tools
from asv_benchmarks.ptxas import Usage, assemble, find_ptxas
from asv_benchmarks.stubbed import stubbed_pool
from jitalloc.gpu import kernel as _cuda

DESIGNS = ("jitalloc", "cupy", "cpu")
SIZE = 16  # tokens of a page
PAGES = 1_000_000  # of a large batch
POOL = 500_000  # of which whole-array code uses up some at each call
PROMPTS = TOKENS = 256
STEPS = 50


def pool_of(design: str, num_pages: int) -> Any:
    if design == "jitalloc":
        return jitalloc.PagePool(num_pages, SIZE, device="cuda")
    return (tools.ArrayPool if design == "cupy" else tools.CopiedPool)(num_pages, SIZE)


class Kernels:
    """Registers a thread and shared memory a block on an H200; more of them, fewer blocks."""

    params = (sorted(_cuda.cuda_kernels()),)
    param_names = ("kernel",)

    def setup(self, kernel: str) -> None:
        if find_ptxas() is None:
            raise NotImplementedError("needs jitalloc[cudatest]")
        text = _cuda.cuda_kernels()[kernel].ptx((9, 0))
        with tempfile.TemporaryDirectory() as folder:
            self.used: Usage = assemble(text, (9, 0), Path(folder))

    def track_registers(self, kernel: str) -> int:
        return self.used.registers

    def track_shared_bytes(self, kernel: str) -> int:
        return self.used.shared

    track_registers.unit = "registers"  # type: ignore[attr-defined]
    track_shared_bytes.unit = "bytes"  # type: ignore[attr-defined]


def decoding(sequences: int, num_pages: int) -> tuple[Any, Any, Any]:
    """Return the pool of sequences that cross into new pages in turn, their lengths and slots."""
    pool, lengths = jitalloc.PagePool(num_pages, SIZE), np.arange(sequences) % SIZE
    last = np.full(sequences, jitalloc.NULL)
    slots = pool.alloc_extend(np.zeros(sequences, np.int64), lengths, last)
    last[lengths > 0] = slots[np.cumsum(lengths)[lengths > 0] - 1]
    return pool, lengths, last


class Decode:
    """A decode step of a batch whose sequences cross into new pages in turn, 50 in a row."""

    params = (DESIGNS, (256, 1024))
    param_names = ("design", "sequences")

    def setup(self, design: str, sequences: int) -> None:
        up, num_pages = tools.find_gpu().up, sequences * (STEPS // SIZE + 3)
        start, lengths, last = decoding(sequences, num_pages)
        pool, snapshot, held = pool_of(design, num_pages), start.snapshot(), start.num_used
        steps = [lengths + i for i in range(1, STEPS + 1)]
        new = [int(((each - 1) % SIZE == 0).sum()) for each in steps]
        there, first, out = [up(each) for each in steps], up(last), up(last)

        def before() -> None:
            out[:] = first
            if design == "cupy":
                pool.clear()
                pool.alloc(held)
            else:
                (pool.pool if design == "cpu" else pool).restore(snapshot)

        def jitalloc_steps() -> None:
            for each in there:
                pool.alloc_decode(each, out, out=out)

        def cupy_steps() -> None:
            slots = out
            for each, count in zip(there, new, strict=True):
                slots = pool.alloc_decode(each, slots, count)

        def cpu_steps() -> None:
            slots = last
            for each in steps:
                slots, _there = pool.alloc_decode(each, slots)

        made = {"jitalloc": jitalloc_steps, "cupy": cupy_steps, "cpu": cpu_steps}
        self.before: Callable[[], None] = before
        self.steps: Callable[[], None] = made[design]

    def track_step(self, design: str, sequences: int) -> float:
        return tools.median_us(self.steps, self.before, STEPS)

    track_step.unit = "us"  # type: ignore[attr-defined]


class DecodeGraph:
    """The same step in a CUDA graph: lengths grow by one, and slots are written over the last."""

    params = ((256, 1024),)
    param_names = ("sequences",)
    pool: Any = None  # asv calls `teardown` also where `setup` has skipped

    def setup(self, sequences: int) -> None:
        gpu, num_pages = tools.find_gpu(), sequences * 400  # of 6,000 steps
        start, lengths, last = decoding(sequences, num_pages)
        self.pool = pool_of("jitalloc", num_pages)
        self.pool.restore(start.snapshot())
        seq, out = gpu.up(lengths), gpu.up(last)

        def step() -> None:
            seq[:] += 1
            self.pool.alloc_decode(seq, out, out=out)

        step()
        self.graph = gpu.capture(step)

    def steps(self) -> None:
        for _ in range(STEPS):
            self.graph()

    def track_step(self, sequences: int) -> float:
        return tools.median_us(self.steps, calls=STEPS)

    def track_host(self, sequences: int) -> float:
        return tools.host_us(self.graph)

    def teardown(self, sequences: int) -> None:
        if self.pool is not None:
            self.pool.check()  # no step has failed

    track_step.unit = "us"  # type: ignore[attr-defined]
    track_host.unit = "us"  # type: ignore[attr-defined]


class Extend:
    """Slots of 65,536 tokens: 256 prompts of 256 tokens."""

    params = (DESIGNS,)
    param_names = ("design",)

    def setup(self, design: str) -> None:
        up, tokens = tools.find_gpu().up, PROMPTS * TOKENS
        new_pages = PROMPTS * -(-TOKENS // SIZE)
        self.pool = pool_of(design, 2 * new_pages)
        host = np.zeros(PROMPTS, np.int64), np.full(PROMPTS, TOKENS), np.full(PROMPTS, -1)
        there = tuple(up(each) for each in host)
        out = up(np.zeros(tokens, np.int64))
        made: dict[str, Callable[[], Any]] = {
            "jitalloc": lambda: self.pool.alloc_extend(*there, out=out),
            "cupy": lambda: self.pool.alloc_extend(*there[:2], tokens, new_pages),
            "cpu": lambda: self.pool.alloc_extend(*host),
        }
        self.call = made[design]

    def track_call(self, design: str) -> float:
        return tools.median_us(self.call, self.pool.clear)

    track_call.unit = "us"  # type: ignore[attr-defined]


class Large:
    """Free and merge of a million pages of two, in random order or as a run."""

    params = (DESIGNS, ("random", "run"))
    param_names = ("design", "pages")

    def setup(self, design: str, pages: str) -> None:
        gpu = tools.find_gpu()
        self.pool = pool_of(design, 2 * PAGES)
        random = np.random.default_rng(7).permutation(2 * PAGES)[:PAGES]
        ids = random if pages == "random" else np.arange(PAGES // 2, PAGES // 2 + PAGES)
        self.ids = gpu.up(ids.astype(np.int32))
        self.count = {"out": gpu.up(np.zeros(1, np.int64))} if design == "jitalloc" else {}
        self.all = gpu.up(np.zeros(2 * PAGES, np.int32))

    def take(self) -> None:
        self.pool.clear()
        if self.count:
            self.pool.alloc(2 * PAGES, out=self.all)
        else:
            self.pool.alloc(2 * PAGES)

    def take_and_free(self) -> None:
        self.take()
        self.pool.free(self.ids, **self.count)

    def track_free(self, design: str, pages: str) -> float:
        return tools.median_us(lambda: self.pool.free(self.ids, **self.count), self.take)

    def track_merge(self, design: str, pages: str) -> float:
        return tools.median_us(lambda: self.pool.merge(**self.count), self.take_and_free)

    track_free.unit = "us"  # type: ignore[attr-defined]
    track_merge.unit = "us"  # type: ignore[attr-defined]


class Singles:
    """A page each for a million sequences in one call."""

    params = (DESIGNS,)
    param_names = ("design",)

    def setup(self, design: str) -> None:
        gpu, host = tools.find_gpu(), np.ones(PAGES, np.int64)
        self.pool = pool_of(design, PAGES)
        counts, out = gpu.up(host), gpu.up(np.zeros(PAGES, np.int32))
        indptr = gpu.up(np.zeros(PAGES + 1, np.int32))
        made: dict[str, Callable[[], Any]] = {
            "jitalloc": lambda: self.pool.alloc_batch(counts, indptr=indptr, out=out),
            "cupy": lambda: (gpu.xp.cumsum(counts), self.pool.alloc(PAGES)),
            "cpu": lambda: self.pool.alloc_batch(host),
        }
        self.call = made[design]

    def track_pages(self, design: str) -> float:
        return PAGES / tools.median_us(self.call, self.pool.clear)

    track_pages.unit = "million a second"  # type: ignore[attr-defined]


class Host:
    """What a call costs the host while it does not wait. Held to 12 us."""

    params = (DESIGNS[:2], ("alloc_free", "decode"))
    param_names = ("design", "call")

    def setup(self, design: str, call: str) -> None:
        up = tools.find_gpu().up
        self.pool = pool = pool_of(design, POOL)
        two, slots = up(np.full(64, 2)), up(np.arange(0, 64 * SIZE, SIZE))
        out, pages = up(np.zeros(64, np.int64)), up(np.zeros(64, np.int32))
        count = up(np.zeros(1, np.int64))
        pool.alloc(64)
        calls: dict[tuple[str, str], Callable[[], Any]] = {
            ("jitalloc", "alloc_free"): lambda: pool.free(pool.alloc(64, out=pages), out=count),
            ("jitalloc", "decode"): lambda: pool.alloc_decode(two, slots, out=out),
            ("cupy", "alloc_free"): lambda: pool.free(pool.alloc(64)),
            ("cupy", "decode"): lambda: pool.alloc_decode(two, slots, 0),
        }
        self.call = calls[design, call]

    def track_call(self, design: str, call: str) -> float:
        return tools.host_us(self.call) / (2 if call == "alloc_free" else 1)

    track_call.unit = "us"  # type: ignore[attr-defined]


class HostAlone:
    """The same with a driver that does nothing, on any machine. Held to 4 us, append to 6."""

    params = (("alloc", "free", "decode", "append"),)
    param_names = ("call",)

    def setup(self, call: str) -> None:
        pool = stubbed_pool(1024, SIZE)
        cache, up = jitalloc.PagedKVCache(pool, 64, 16), pool._gpu.upload
        two, slots = up(np.full(64, 2)), up(np.arange(0, 64 * SIZE, SIZE))
        out, pages = up(np.zeros(64, np.int64)), up(np.zeros(64, np.int32))
        count, copies = up(np.zeros(1, np.int64)), up(np.zeros((2, 64), np.int32))
        calls: dict[str, Callable[[], Any]] = {
            "alloc": lambda: pool.alloc(64, out=pages),
            "free": lambda: pool.free(pages, out=count),
            "decode": lambda: pool.alloc_decode(two, slots, out=out),
            "append": lambda: cache.append_batch(pages, 1, out=out, copies=copies),
        }
        self.call = calls[call]
        self.call()

    def time_call(self, call: str) -> None:
        self.call()


class Launch:
    """One launch of a kernel with three arrays that finds nothing to do, by who launches it."""

    params = (("numba", "cupy", "jitalloc", "graph"),)
    param_names = ("launcher",)

    def setup(self, launcher: str) -> None:
        gpu = tools.find_gpu()
        self.pool = pool_of("jitalloc", 64)
        arrays = (self.pool._slab, self.pool._record, gpu.up(np.zeros(0, np.int32)))
        self.launch = gpu.launchers(_cuda.cuda_kernels()["pool_alloc_cuda"], arrays)[launcher]

    def track_host(self, launcher: str) -> float:
        return tools.host_us(self.launch)

    def track_gpu(self, launcher: str) -> float:
        def many() -> None:
            for _ in range(tools.LOADED):
                self.launch()

        return tools.median_us(many, calls=tools.LOADED)

    track_host.unit = "us"  # type: ignore[attr-defined]
    track_gpu.unit = "us"  # type: ignore[attr-defined]
