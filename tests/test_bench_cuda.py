"""The benchmarks of the GPU run, and what they compare does the same: in numba's simulator.

`NUMBA_ENABLE_CUDASIM=1 NUMBA_DISABLE_JIT=1 pytest tests/test_bench_cuda.py`
"""

from __future__ import annotations

import inspect
import itertools
import time
from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np
import pytest

from asv_benchmarks import bench_cuda, gpu, stubbed
from jitalloc import PagePool
from jitalloc.gpu import device as _cuda_device
from jitalloc.gpu import kernel as _cuda

simulated = pytest.mark.skipif(not _cuda.SIMULATED, reason="NUMBA_ENABLE_CUDASIM is not set")


class SlowGpu(gpu.Gpu):
    """The simulator: NumPy in the place of CuPy, and a graph is what it was made from."""

    def __init__(self) -> None:
        self.xp = np
        self.busy: list[float] = []

    def keep_busy(self, microseconds: float) -> None:
        self.busy.append(microseconds)

    def up(self, values: Any) -> Any:
        return _cuda_device.device().upload(values)

    def down(self, values: Any) -> Any:
        return _cuda_device.device().download(values)

    def wait(self) -> None:
        pass

    def between_events(self, call: Callable[[], object]) -> float:
        start = perf_counter()
        call()
        return (perf_counter() - start) * 1e6

    def capture(self, call: Callable[[], object]) -> Callable[[], object]:
        return call

    def launchers(self, kernel: _cuda.CudaKernel, arrays: tuple[Any, ...]) -> dict[str, Any]:
        device: Any = _cuda_device.device()
        wrapped = [device.wrap(each) for each in arrays]
        launch = lambda: device.launch(kernel, 1, device.threads, *wrapped)  # noqa: E731
        return dict.fromkeys(("numba", "cupy", "jitalloc", "graph"), launch)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> SlowGpu:
    """A GPU of one thread."""
    made = SlowGpu()
    monkeypatch.setattr(gpu, "find_gpu", lambda: made)
    for name, small in {"REPEAT": 1, "WARM": 1, "LOADED": 2}.items():
        monkeypatch.setattr(gpu, name, small)
    for name, small in {"PAGES": 40, "PROMPTS": 4, "TOKENS": 20, "POOL": 900, "STEPS": 3}.items():
        monkeypatch.setattr(bench_cuda, name, small)
    monkeypatch.setattr(_cuda_device.device(), "threads", 1)
    return made


def classes() -> dict[str, type]:
    return {
        name: each
        for name, each in inspect.getmembers(bench_cuda, inspect.isclass)
        if each.__module__ == bench_cuda.__name__ and name not in ("Kernels", "HostAlone")
    }


@simulated
@pytest.mark.parametrize("name", classes())
def test_benchmark_runs(name: str, slow: SlowGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    made = classes()[name]
    of_sequences = {"Decode": [(design, 6) for design in bench_cuda.DESIGNS], "DecodeGraph": [(6,)]}
    params: list[Any] = of_sequences.get(name) or [*itertools.product(*made.params)]  # type: ignore[attr-defined]
    for values in params:
        for track in (each for each in dir(made) if each.startswith("track_")):
            benchmark = made()
            benchmark.setup(*values)
            assert getattr(benchmark, track)(*values) > 0
            assert getattr(benchmark, track).unit
            getattr(benchmark, "teardown", lambda *_: None)(*values)


@simulated
def test_designs_do_the_same(slow: SlowGpu) -> None:
    """Three pools side by side: slots of prompts, of decode steps, and what is free after all."""
    pool, copied = PagePool(64, 4), gpu.CopiedPool(64, 4)
    array = gpu.ArrayPool(64, 4)
    prefix, seq, none = np.zeros(3, np.int64), np.array([5, 4, 1]), np.full(3, -1)
    slots = pool.alloc_extend(prefix, seq, none)
    assert array.alloc_extend(prefix, seq, 10, 4).tolist() == slots.tolist()
    assert copied.alloc_extend(prefix, seq, none).tolist() == slots.tolist()
    last = theirs = copies = slots[np.cumsum(seq) - 1]
    for _ in range(9):
        seq = seq + 1
        last = pool.alloc_decode(seq, last)
        theirs = array.alloc_decode(seq, theirs, int((seq % 4 == 1).sum()))
        copies, there = copied.alloc_decode(seq, copies)
        assert theirs.tolist() == copies.tolist() == there.tolist() == last.tolist()
    pool.free_slots(slots[:3])
    array.free_slots(slots[:3])
    copied.free(slow.up(np.array([0], np.int32)))
    for each in (pool, array, copied):
        each.merge()  # type: ignore[attr-defined]
    wanted = pool.alloc(20).tolist()
    assert array.alloc(20).tolist() == copied.alloc(20).tolist() == wanted


@pytest.mark.parametrize("name", classes())
def test_benchmark_is_skipped_without_a_gpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Any:
        raise NotImplementedError("no GPU")

    monkeypatch.setattr(gpu, "find_gpu", missing)
    made = classes()[name]
    benchmark, params = made(), [each[0] for each in made.params]  # type: ignore[attr-defined]
    with pytest.raises(NotImplementedError):
        benchmark.setup(*params)
    getattr(benchmark, "teardown", lambda *_: None)(*params)  # asv calls it all the same


def test_the_gpu_is_busy_while_calls_are_queued(monkeypatch: pytest.MonkeyPatch) -> None:
    """By more than the host needs for it, of which the first calls say too much: they compile."""
    made = SlowGpu()
    monkeypatch.setattr(gpu, "find_gpu", lambda: made)
    for measure in (gpu.median_us, gpu.host_us):
        made.busy.clear()
        monkeypatch.setattr(gpu, "LOADED", 1)
        measure(lambda: time.sleep(1e-3))
        assert len(made.busy) == gpu.REPEAT + gpu.WARM
        assert 2_000 <= made.busy[-1] < 10_000 < made.busy[0]


@pytest.mark.parametrize("call", bench_cuda.HostAlone.params[0])
def test_the_host_alone_launches_once_a_call(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    benchmark = bench_cuda.HostAlone()
    benchmark.setup(call)
    started: list[str] = []
    launch = stubbed.StubbedDevice.launch

    def noted(gpu: Any, kernel: Any, *arguments: Any) -> None:
        started.append(kernel.name)
        launch(gpu, kernel, *arguments)

    monkeypatch.setattr(stubbed.StubbedDevice, "launch", noted)
    benchmark.time_call(call)
    wanted = {"free": "owners_free", "decode": "tokens_decode", "append": "sequences_append"}
    assert started == [f"{wanted.get(call, 'pool_alloc')}_cuda"]
