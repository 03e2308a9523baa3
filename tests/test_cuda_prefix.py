"""The prefix cache of a pool on the GPU: bit for bit that of the CPU, and what the model does.

NUMBA_ENABLE_CUDASIM=1 NUMBA_DISABLE_JIT=1 pytest tests/test_cuda_prefix.py
"""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import settings

from tests.cuda_prefix_pairs import CudaPrefixPair
from tests.cuda_prefix_steps import BACKGROUND, CUDA_STEPS, HOST_STEPS
from tests.gpu import ON_DEVICE
from tests.test_prefix_machine import PrefixMachine
from tests.test_twins import describe

pytestmark = [*ON_DEVICE, pytest.mark.usefixtures("few_threads")]
ROUNDS = 12
CACHES: list[dict[str, Any]] = [
    {"num_pages": 20, "page_size": 4, "order": "lifo", "policy": "lru"},
    {"num_pages": 30, "page_size": 1, "order": "fifo", "policy": "slru", "protected_share": 0.3},
    {"num_pages": 24, "page_size": 3, "order": "sorted", "null_page": True, "policy": "fifo"},
    {"num_pages": 24, "page_size": 2, "order": "sorted", "policy": "lfu"},
    {"num_pages": 24, "page_size": 2, "order": "fifo", "policy": "priority"},
    {"num_pages": 25, "page_size": 2, "order": "fifo", "policy": "mru", "pin_budget": 3},
]


@pytest.mark.parametrize("options", CACHES, ids=describe)
@pytest.mark.parametrize("name", sorted({**CUDA_STEPS, **HOST_STEPS}))
def test_call_does_what_it_does_on_the_cpu_and_in_the_model(
    name: str, options: dict[str, Any]
) -> None:
    random, pair = Random(f"{name} {describe(options)}"), CudaPrefixPair(**options)
    for _ in range(ROUNDS):
        {**CUDA_STEPS, **HOST_STEPS}[name](pair, random)
        random.choice(BACKGROUND)(pair, random)
    while pair.matches:
        pair.give_back()
    pair.must("clear")


class CudaPrefixMachine(PrefixMachine):
    """Random calls on a cache of the GPU, one of the CPU and the model."""

    kind = CudaPrefixPair


TestCudaPrefixMachine = CudaPrefixMachine.TestCase
TestCudaPrefixMachine.settings = settings(max_examples=15, stateful_step_count=30)
