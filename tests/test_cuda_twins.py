"""Every CUDA kernel against the model: bit-identical results and state.

    NUMBA_ENABLE_CUDASIM=1 NUMBA_DISABLE_JIT=1 pytest tests/test_cuda_twins.py

Without these two set, the tests need a GPU.
"""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from jitalloc.gpu import device as _cuda_device
from jitalloc.gpu import kernel as _cuda
from tests import twin_steps
from tests.cuda_pairs import CudaPair
from tests.cuda_pool_steps import CUDA_STEPS, LARGE_ONLY
from tests.gpu import ON_DEVICE
from tests.test_twins import POOLS, describe

pytestmark = ON_DEVICE
ROUNDS = 20
# Threads of a block: on a GPU, whole warps.
FEW, WARPS = (4, (32, 64)) if _cuda.SIMULATED else (32, (64, 512))
BACKGROUND = [*twin_steps.BACKGROUND, twin_steps.decode, twin_steps.alloc_batch]


def run(name: str, options: dict[str, Any], rounds: int, most: int = 64) -> None:
    random, pair = Random(f"{name} {describe(options)}"), CudaPair(**options)
    for _ in range(rounds):
        CUDA_STEPS[name](pair, random)
        random.choice(BACKGROUND)(pair, random)


@pytest.mark.parametrize("options", POOLS, ids=describe)
@pytest.mark.parametrize("name", sorted(CUDA_STEPS))
def test_kernel_does_what_the_model_does(
    name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "pool_alloc_run_cuda" and options["order"] != "sorted":
        pytest.skip("contiguous pages in a sorted pool only")
    monkeypatch.setattr(_cuda_device.device(), "threads", FEW)
    if name in LARGE_ONLY:
        monkeypatch.setattr("jitalloc.pool.pool_cuda.LARGE", 2)
        monkeypatch.setattr("jitalloc.pool.pool_cuda.MANY", 2)
    run(name, options, ROUNDS)


@pytest.mark.parametrize("threads", WARPS)
@pytest.mark.parametrize("name", sorted(CUDA_STEPS))
def test_kernel_does_so_in_blocks_of_whole_warps(
    name: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_cuda_device.device(), "threads", threads)
    if name in LARGE_ONLY:
        monkeypatch.setattr("jitalloc.pool.pool_cuda.LARGE", 2)
        monkeypatch.setattr("jitalloc.pool.pool_cuda.MANY", 2)
    for options in (POOLS[5], POOLS[6]):
        if name != "pool_alloc_run_cuda" or options["order"] == "sorted":
            run(name, options, 2)
