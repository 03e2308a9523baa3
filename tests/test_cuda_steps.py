"""Many calls in a row on the GPU beside the CPU: what a CUDA graph replays, and random ones.

    NUMBA_ENABLE_CUDASIM=1 NUMBA_DISABLE_JIT=1 pytest tests/test_cuda_steps.py

`test_cuda_gpu.py` does the same in graphs, and a thousand times as long.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from jitalloc import NULL, OutOfPages
from tests.cuda_decode import CacheSteps, PoolSteps
from tests.cuda_stress import Stress
from tests.gpu import ON_DEVICE

pytestmark = [*ON_DEVICE, pytest.mark.usefixtures("few_threads")]


def many(step: Callable[[], None], times: int) -> None:
    for _ in range(times):
        step()


@pytest.mark.parametrize(("order", "count"), [("sorted", 200), ("fifo", 60), ("lifo", 60)])
def test_steps_with_fixed_buffers(order: str, count: int) -> None:
    steps = PoolSteps(count, order)
    for _ in range(0, count, 20):
        many(steps.on_gpu, 20)
        many(steps.on_cpu, 20)
        steps.agree()


def test_steps_of_sequences() -> None:
    steps = CacheSteps(60)
    for _ in range(6):
        many(steps.on_gpu, 10)
        many(steps.on_cpu, 10)
        steps.agree()


def test_steps_go_on_when_the_pool_has_run_out() -> None:
    """The first failure is kept, as the CPU raises it, however many steps follow."""
    steps = PoolSteps(20)
    with pytest.raises(OutOfPages) as right:
        many(steps.on_cpu, 60)
    many(steps.on_gpu, 60)
    with pytest.raises(OutOfPages) as caught:
        steps.agree()
    wanted = (right.value.requested, right.value.available)
    assert (caught.value.requested, caught.value.available) == wanted
    assert steps.buffers[1].tolist() == [NULL] * 6
    steps.gpu.check()


@pytest.mark.parametrize(
    ("order", "null_page"), [("sorted", False), ("fifo", True), ("lifo", False)]
)
def test_random_calls(order: str, null_page: bool) -> None:
    stress = Stress(7, 100, order=order, null_page=null_page)
    stress.run(300, 75)
    assert 5 < stress.failed < stress.done / 3
