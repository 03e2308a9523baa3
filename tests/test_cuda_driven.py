"""Steps driven by the GPU: what its buffers say, a thousand times, is what the CPU does when told.

    NUMBA_ENABLE_CUDASIM=1 NUMBA_DISABLE_JIT=1 pytest tests/test_cuda_driven.py

Skipped without these two, unless there is a GPU; there the step is a CUDA graph.
"""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from jitalloc.gpu import kernel as _cuda
from jitalloc.sequences.state import SEQ_FREES
from tests.cuda_cache_pairs import use_threads
from tests.cuda_driven import DrivenSteps
from tests.gpu import ON_DEVICE, has_gpu

pytestmark = ON_DEVICE
cupy: Any = importlib.import_module("cupy") if has_gpu() else None


def ended(steps: DrivenSteps) -> int:
    return int(steps.both.cpu.tables.arrays.header[SEQ_FREES])


@pytest.mark.parametrize("order", ["sorted", "fifo", "lifo"])
def test_steps_from_the_same_buffers(order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_threads(monkeypatch, 3)
    steps = DrivenSteps(5, order)
    for _ in range(25 if _cuda.SIMULATED else 60):
        steps.plan()
        steps.on_gpu()
        steps.on_cpu()
    steps.both.agree()
    assert ended(steps) > 3
    steps.both.device.check(held=[])


@pytest.mark.parametrize(("order", "times"), [("sorted", 1_000), ("fifo", 150), ("lifo", 150)])
def test_a_step_in_a_graph_replayed_a_thousand_times(order: str, times: int) -> None:
    if cupy is None:
        pytest.skip("needs a GPU: the simulator captures nothing")
    steps = DrivenSteps(24, order)
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()
    with stream:
        steps.plan()
        steps.on_gpu()
        steps.on_cpu()
        stream.begin_capture()
        steps.on_gpu()
        graph = stream.end_capture()
        for step in range(times):
            steps.plan()
            graph.launch(stream)
            steps.on_cpu()
            if step % 100 == 0:
                steps.both.device.stats()
                steps.both.agree()
    steps.both.device.stats()
    steps.both.agree()
    assert ended(steps) > times / 2
    steps.both.device.check(held=[])
