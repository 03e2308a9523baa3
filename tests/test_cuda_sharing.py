"""Sequences behind a prefix cache on the GPU: what the model says, and word for word as on the CPU.

NUMBA_ENABLE_CUDASIM=1 NUMBA_DISABLE_JIT=1 pytest tests/test_cuda_sharing.py
"""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from tests.cuda_sharing_pairs import CudaSharingPair
from tests.gpu import ON_DEVICE
from tests.sharing_pairs import random_turn
from tests.test_sharing import PAIRS

pytestmark = [*ON_DEVICE, pytest.mark.usefixtures("few_threads")]


@pytest.mark.parametrize("options", PAIRS, ids=lambda each: str(each.get("policy", "lru")))
@pytest.mark.parametrize("seed", range(1, 3))
def test_random_histories(options: dict[str, Any], seed: int) -> None:
    random, pair = Random(f"{options} {seed}"), CudaSharingPair(**options)
    for _ in range(120):
        random_turn(pair, random)
    assert pair.prefix_model.hit_pages, "nothing was ever shared"
