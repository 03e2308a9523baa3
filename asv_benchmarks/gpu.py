"""What benchmarks of a GPU share: the GPU, its clock, and what engines do without jitalloc."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from functools import cache
from time import perf_counter
from typing import Any

import numpy as np

import jitalloc
from jitalloc import WrongDevice
from jitalloc.gpu import device as _cuda_device
from jitalloc.gpu import kernel as _cuda

REPEAT, WARM = 20, 3  # samples, and those before them
LOADED = 200  # calls that are queued at most, so that no launch waits for room
BUSY_BYTES = 1 << 28  # that the GPU fills, some 0.1 ms each time, while the host queues calls
MOST_BUSY_US = 20_000.0


class Gpu:
    """CuPy's current GPU: arrays, events, graphs."""

    def __init__(self) -> None:
        import cupy

        self.xp: Any = cupy
        self.stream = cupy.cuda.Stream(non_blocking=True)
        self.stream.use()
        self._room = cupy.empty(BUSY_BYTES, np.uint8)
        self._fill(1)
        self._fill_us = self.between_events(lambda: self._fill(8)) / 8

    def _fill(self, times: int) -> None:
        for _ in range(times):
            self._room.data.memset_async(0, BUSY_BYTES)

    def keep_busy(self, microseconds: float) -> None:
        """Give the GPU so much to do first that the host comes to queue behind it."""
        self._fill(math.ceil(min(microseconds, MOST_BUSY_US) / self._fill_us))

    def up(self, values: Any) -> Any:
        """Return values of the host on the GPU."""
        return self.xp.asarray(values)

    def down(self, values: Any) -> Any:
        """Wait, and return values of the GPU on the host."""
        return self.xp.asnumpy(values)

    def wait(self) -> None:
        """Wait for all calls so far."""
        self.stream.synchronize()

    def between_events(self, call: Callable[[], object]) -> float:
        """Return the microseconds of the GPU between an event before a call and one behind it."""
        first, last = self.xp.cuda.Event(), self.xp.cuda.Event()
        first.record()
        call()
        last.record()
        last.synchronize()
        return float(self.xp.cuda.get_elapsed_time(first, last)) * 1e3

    def capture(self, call: Callable[[], object]) -> Callable[[], object]:
        """Return a call, made once before, as a graph to launch."""
        self.stream.begin_capture()
        call()
        return self.stream.end_capture().launch  # type: ignore[no-any-return]

    def launchers(self, kernel: _cuda.CudaKernel, arrays: tuple[Any, ...]) -> dict[str, Any]:
        """Return ways to launch a kernel with one block; each is a call without arguments."""
        device: Any = _cuda_device.device()
        threads, wrapped = device.threads, [device.wrap(each) for each in arrays]
        function = device.load(kernel)[2]
        words = [int(each) for each in np.frombuffer(b"".join(wrapped), np.int64)]
        compiler = _cuda.load_compiler()
        stream = compiler.external_stream(self.stream.ptr)
        dispatcher = compiler.jit(kernel.function)[1, threads, stream]
        made: dict[str, Any] = {
            "numba": lambda: dispatcher(*arrays),
            "cupy": lambda: function((1,), (threads,), words),
            "jitalloc": lambda: device.launch(kernel, 1, threads, *wrapped),
        }
        made["jitalloc"]()
        return made | {"graph": self.capture(made["jitalloc"])}


@cache
def find_gpu() -> Gpu:
    """Return the GPU; where there is none, asv skips the benchmark."""
    if _cuda.SIMULATED:
        raise NotImplementedError("the simulator has no clock")
    try:
        _cuda_device.device()
    except WrongDevice as error:
        raise NotImplementedError(str(error)) from error
    return Gpu()


def median_us(
    call: Callable[[], object],
    before: Callable[[], object] = lambda: None,
    calls: int = 1,
) -> float:
    """Return the median time of the GPU for a call, in microseconds, `before` not counted.

    `call` makes `calls` calls that follow each other. The queue is full: they are there before the
    GPU comes to the first of them, unless they wait for it.
    """
    gpu, times, queueing = find_gpu(), [], [MOST_BUSY_US]

    def queue() -> None:
        start = perf_counter()
        call()
        queueing.append((perf_counter() - start) * 1e6)

    for i in range(REPEAT + WARM):
        before()
        gpu.wait()
        gpu.keep_busy(2 * min(queueing))
        spent = gpu.between_events(queue)
        if i >= WARM:  # compiled, loaded, warm
            times.append(spent / calls)
    return statistics.median(times)


def host_us(call: Callable[[], object]) -> float:
    """Return the median time that the host spends on a call, in microseconds; it never waits.

    The GPU has something to do meanwhile, as where an engine queues calls behind a model.
    """
    gpu, times, queueing = find_gpu(), [], MOST_BUSY_US
    for i in range(REPEAT + WARM):
        gpu.keep_busy(2 * queueing)
        start = perf_counter()
        for _ in range(LOADED):
            call()
        spent = perf_counter() - start
        queueing = min(queueing, spent * 1e6)
        gpu.wait()
        if i >= WARM:
            times.append(spent / LOADED * 1e6)
    return statistics.median(times)


class ArrayPool:
    """A pool in whole-array code, as engines keep it in tensors; nothing is checked.

    How many pages there are the host has to know: sizes of slices depend on it.
    """

    def __init__(self, num_pages: int, page_size: int = 16) -> None:
        self.xp, self.size = find_gpu().xp, page_size
        self.num_pages = num_pages
        self.clear()

    def clear(self) -> None:
        self.free_ids = find_gpu().up(np.arange(self.num_pages, dtype=np.int32))
        self.released = self.free_ids[:0]

    def alloc(self, n: int) -> Any:
        taken, self.free_ids = self.free_ids[:n], self.free_ids[n:]
        return taken

    def free(self, pages: Any) -> None:
        self.released = self.xp.concatenate((self.released, pages))

    def free_slots(self, slots: Any) -> None:
        self.free(self.xp.unique(slots // self.size).astype(np.int32))

    def merge(self) -> None:
        both = self.xp.concatenate((self.free_ids, self.released))
        self.free_ids, self.released = self.xp.unique(both), self.released[:0]

    def alloc_decode(self, seq_lens: Any, last_slots: Any, new_pages: int) -> Any:
        """Return a slot a sequence; `new_pages` of them begin a page."""
        begins = (seq_lens - 1) % self.size == 0
        place = self.xp.cumsum(begins) - begins
        pages = self.free_ids[place].astype(np.int64)
        self.free_ids = self.free_ids[new_pages:]
        return self.xp.where(begins, pages * self.size, last_slots + 1)

    def alloc_extend(self, prefix_lens: Any, seq_lens: Any, tokens: int, new_pages: int) -> Any:
        """Return `tokens` slots of prompts whose prefixes are whole pages."""
        xp, size = self.xp, self.size
        taken = self.alloc(new_pages).astype(np.int64)
        grown = seq_lens - prefix_lens
        ends, pages = xp.cumsum(grown), (grown + size - 1) // size
        first_page = xp.cumsum(pages) - pages
        token = xp.arange(tokens)
        owner = xp.searchsorted(ends, token, side="right")
        position = token - (ends - grown)[owner]
        return taken[first_page[owner] + position // size] * size + position % size


class CopiedPool:
    """A pool of the CPU; what it is given is copied from the GPU, and what it returns to it."""

    def __init__(self, num_pages: int, page_size: int = 16) -> None:
        self.pool, self.gpu = jitalloc.PagePool(num_pages, page_size), find_gpu()
        self.clear, self.merge = self.pool.clear, self.pool.merge

    def alloc(self, n: int) -> Any:
        return self.gpu.up(self.pool.alloc(n))

    def alloc_batch(self, counts: Any) -> Any:
        return tuple(self.gpu.up(each) for each in self.pool.alloc_batch(counts))

    def free(self, pages: Any) -> None:
        self.pool.free(self.gpu.down(pages))

    def alloc_decode(self, seq_lens: Any, last_slots: Any) -> Any:
        """Return the slots on both sides: the next step needs those of the CPU."""
        slots = self.pool.alloc_decode(seq_lens, last_slots)
        return slots, self.gpu.up(slots)

    def alloc_extend(self, *lengths: Any) -> Any:
        return self.gpu.up(self.pool.alloc_extend(*lengths))
