"""What needs a real GPU: graphs, streams, millions of calls, sanitizers. `pytest -m gpu` runs it.

`JITALLOC_GPU_CALLS` says how many random calls there are; ten million take some minutes. On the
machine of `tests/ptx` there are fewer.
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jitalloc
from jitalloc import InvalidArgument, PagePool, WrongDevice
from jitalloc.gpu import images as _cuda_images
from jitalloc.gpu import kernel as _cuda
from tests.cuda_decode import CacheSteps, PoolSteps
from tests.cuda_stress import Stress
from tests.gpu import REAL_GPU, has_gpu
from tests.ptx import install

pytestmark = REAL_GPU

CALLS = int(os.environ.get("JITALLOC_GPU_CALLS", "3000" if install.ASKED else "10000000"))
POOLS = [("sorted", False), ("fifo", True), ("lifo", False)]
cupy: Any = importlib.import_module("cupy") if has_gpu() else None


def test_every_kernel_is_compiled_for_this_gpu_and_kept_on_disk() -> None:
    names = {f"{name}.image" for name in _cuda.cuda_kernels()}
    assert jitalloc.warmup(device="cuda") == len(names)
    digits = cupy.cuda.Device().compute_capability
    folder = _cuda_images.image_folder((int(digits[:-1]), int(digits[-1])))
    if _cuda_images.CACHE_ENABLED:
        assert names <= {path.name for path in folder.iterdir()}


# Many calls.


@pytest.mark.parametrize(("order", "null_page"), POOLS)
def test_random_calls(order: str, null_page: bool) -> None:
    stress = Stress(11, 300, order=order, null_page=null_page)
    stress.run(CALLS // len(POOLS), 1_000)
    assert stress.failed > CALLS // 1_000


@pytest.mark.parametrize("order", ["sorted", "fifo", "lifo"])
def test_a_large_pool(order: str) -> None:
    """Many blocks, and batches that one block takes in many tiles."""
    gpu, cpu = (PagePool(1_000_003, 16, order=order, device=where) for where in ("cuda", "cpu"))
    random = np.random.default_rng(3)
    pages, mine = gpu.alloc(900_000), cpu.alloc(900_000)
    for part in np.array_split(random.permutation(900_000), 7):
        there: Any = gpu.free(pages[cupy.asarray(part)])
        assert int(there[0]) == cpu.free(mine[part])
        more = gpu.alloc(50_001), cpu.alloc(50_001)
        assert (cupy.asnumpy(more[0]) == more[1]).all()
    lengths = random.integers(0, 400, 3_000)
    prompts = np.zeros_like(lengths), lengths, np.full_like(lengths, -1)
    slots = gpu.alloc_extend(*map(cupy.asarray, prompts))
    assert (cupy.asnumpy(slots) == cpu.alloc_extend(*prompts)).all()
    moves, wanted = gpu.defragment(), cpu.defragment()
    assert all((cupy.asnumpy(a) == b).all() for a, b in zip(moves, wanted, strict=True))
    assert (cupy.asnumpy(gpu._slab) == cpu._slab).all()  # type: ignore[attr-defined]


# Graphs.


def captured(step: Any, stream: Any) -> Any:
    """Return one step as a graph. Its kernels have to be loaded: a step has been made before."""
    with stream:
        stream.begin_capture()
        step()
        return stream.end_capture()


@pytest.mark.parametrize("order", ["sorted", "fifo", "lifo"])
def test_a_step_of_the_pool_in_a_graph(order: str) -> None:
    steps = PoolSteps(1_001, order, batch=64)
    replay_and_compare(steps)


def test_a_step_of_the_sequences_in_a_graph() -> None:
    """Append with copy-on-write, slots, and pages in compressed rows."""
    replay_and_compare(CacheSteps(1_001, batch=16))


def replay_and_compare(steps: Any) -> None:
    cupy.cuda.Device().synchronize()
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        steps.on_gpu()
        steps.on_cpu()
        steps.agree()
    graph = captured(steps.on_gpu, stream)
    with stream:
        steps.agree()  # nothing has run yet
        for _ in range(10):
            for _ in range(100):
                graph.launch(stream)
                steps.on_cpu()
            steps.agree()


def test_a_graph_that_runs_out_keeps_the_first_failure() -> None:
    steps = PoolSteps(20)
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()
    with stream:
        steps.on_gpu()
        graph = captured(steps.on_gpu, stream)
        for _ in range(60):
            graph.launch(stream)
        with pytest.raises(jitalloc.OutOfPages):
            steps.gpu.check()
        steps.gpu.check()
        assert (steps.buffers[1] == -1).all()


# Streams.


def test_launches_go_to_the_current_stream() -> None:
    """A call into a stream that is captured has not run until the graph does."""
    pool: Any = PagePool(8, 4, device="cuda")
    out = cupy.zeros(3, np.int32)
    pool.alloc(1, out=out[:1])
    cupy.cuda.Device().synchronize()
    stream = cupy.cuda.Stream(non_blocking=True)
    graph = captured(lambda: pool.alloc(3, out=out), stream)
    assert pool.num_used == 1
    graph.launch(stream)
    stream.synchronize()
    assert (pool.num_used, out.tolist()) == (4, [1, 2, 3])


def test_a_stream_of_the_pools_own_in_a_graph_that_stops_when_a_call_has_failed() -> None:
    stream = cupy.cuda.Stream(non_blocking=True)
    pool: Any = PagePool(8, 4, device="cuda", stream=stream)
    out, count = cupy.zeros(3, np.int32), cupy.zeros(1, np.int64)
    cupy.cuda.Device().synchronize()
    pool.free(pool.alloc(3, out=out), out=count)
    saved = pool.snapshot()
    stream.begin_capture()
    for refused in (lambda: pool.free(out), lambda: pool.alloc(3), pool.free_group):
        with pytest.raises(InvalidArgument, match="while a stream is captured"):
            refused()
    with pytest.raises(InvalidArgument, match="the call waits for the GPU"):
        pool.num_used  # noqa: B018  (waits)
    pool.alloc(3, out=out)
    graph = stream.end_capture()
    assert pool.num_used == 0
    for _ in range(2):
        steps, fault = 0, pool.fault
        with stream:
            while int(fault[0]) == 0:
                graph.launch(stream)
                steps += 1
            assert (steps, out.tolist()) == (3, [-1] * 3)
            with pytest.raises(jitalloc.OutOfPages, match="3 pages requested, 2 available"):
                pool.check()
            assert fault.tolist() == [0] * 5
        pool.clear()
    pool.restore(saved)
    pool.check()


def test_two_streams_ordered_by_events() -> None:
    gpu, cpu = (PagePool(64, 4, order="fifo", device=where) for where in ("cuda", "cpu"))
    out, count, mine = cupy.empty(9, np.int32), cupy.empty(1, np.int64), np.empty(9, np.int32)
    cupy.cuda.Device().synchronize()
    first, second = (cupy.cuda.Stream(non_blocking=True) for _ in range(2))
    for _ in range(1_000):
        with first:
            gpu.alloc(9, out=out)
            gpu.share(out[:4])
        second.wait_event(first.record())
        with second:
            gpu.free(out, out=count)  # type: ignore[call-arg]
            gpu.free(out[:4], out=count)  # type: ignore[call-arg]
        first.wait_event(second.record())
        cpu.alloc(9, out=mine)
        cpu.share(mine[:4])
        cpu.free(mine)
        cpu.free(mine[:4])
    with first:
        gpu.check()
        assert (cupy.asnumpy(gpu._slab) == cpu._slab).all()  # type: ignore[attr-defined]
        assert (cupy.asnumpy(out) == mine).all()


def test_threads_of_the_host_use_one_pool_in_turn() -> None:
    from concurrent.futures import ThreadPoolExecutor

    pool: Any = PagePool(64, 4, device="cuda")
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()

    def calls(_: int) -> None:
        with stream:
            for _ in range(100):
                pool.free(pool.alloc(2))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(calls, range(16)))
    with stream:
        pool.check([])


# Arrays of other libraries.


class Interface:
    """An array that another stream has written."""

    def __init__(self, array: Any, stream: int | None) -> None:
        self.array = array
        shown = array.__cuda_array_interface__
        self.__cuda_array_interface__ = shown | {"stream": stream, "version": 3}


class Packed:
    def __init__(self, array: Any) -> None:
        self.array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()


@pytest.mark.parametrize("kind", ["interface", "dlpack", "other stream", "default stream"])
def test_arrays_of_other_libraries(kind: str) -> None:
    pool: Any = PagePool(64, 4, device="cuda")
    pages, other = pool.alloc(9), cupy.cuda.Stream(non_blocking=True)
    streams = {"interface": None, "other stream": other.ptr, "default stream": 1}
    theirs = Packed(pages) if kind == "dlpack" else Interface(pages, streams[kind])
    for values in (theirs, theirs):
        pool.share(values)
    assert pool.refcount(theirs).tolist() == [3] * 9
    empty = cupy.empty(0, np.int32)
    pool.share(Packed(empty) if kind == "dlpack" else Interface(empty, streams[kind]))
    pool.check()


def test_a_second_gpu() -> None:
    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("there is one GPU")
    with cupy.cuda.Device(1):
        pool: Any = PagePool(8, 4, device="cuda")
        assert pool.alloc(3).tolist() == [0, 1, 2]
    with pytest.raises(WrongDevice, match=r"Device\(1\)"):
        pool.alloc(3)
    with cupy.cuda.Device(1), pytest.raises(WrongDevice, match="array of GPU 0"):
        pool.free(elsewhere())
    with cupy.cuda.Device(1):
        assert pool.num_used == 3


def elsewhere() -> Any:
    with cupy.cuda.Device(0):
        return cupy.zeros(1, np.int32)


# Sanitizers.


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck"])
def test_a_sanitizer_finds_nothing(tool: str) -> None:
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(sanitizer).exists():
        pytest.skip("no compute-sanitizer: it comes with the CUDA toolkit")
    jitalloc.warmup(device="cuda")  # the compiler is not what is watched
    command = [sanitizer, "--tool", tool, "--error-exitcode", "9", "--target-processes", "all"]
    command += [sys.executable, "-m", "tests.cuda_stress", "200"]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=1_800
    )
    assert done.returncode == 0, done.stdout[-4_000:] + done.stderr[-4_000:]
