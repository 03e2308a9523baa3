"""Sequences on the GPU: every call against the model, and word for word against the CPU.

    NUMBA_ENABLE_CUDASIM=1 NUMBA_DISABLE_JIT=1 pytest tests/test_cuda_sequences.py

Skipped without these two, unless there is a GPU.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest

from jitalloc import _cuda_device
from tests import cache_steps
from tests.cuda_cache_pairs import CudaCachePair
from tests.cuda_cache_steps import CUDA_CACHE_STEPS
from tests.gpu import ON_DEVICE
from tests.test_twins import CACHES, describe

pytestmark = ON_DEVICE
ROUNDS = 12


@pytest.fixture(autouse=True)
def threads_take_turns() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(2e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.parametrize("options", CACHES, ids=describe)
@pytest.mark.parametrize("name", sorted(CUDA_CACHE_STEPS))
def test_kernel_does_what_the_model_does(
    name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_cuda_device.device(), "threads", 4)
    random, pair = Random(f"{name} {describe(options)}"), CudaCachePair(**options)
    for _ in range(ROUNDS):
        CUDA_CACHE_STEPS[name](pair, random)
        random.choice(cache_steps.BACKGROUND)(pair, random)
