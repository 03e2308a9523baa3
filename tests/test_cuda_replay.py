"""A replay on a pool of the GPU comes to the figures of one on the CPU.

NUMBA_ENABLE_CUDASIM=1 NUMBA_DISABLE_JIT=1 pytest tests/test_cuda_replay.py
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from jitalloc.gpu import kernel as _cuda
from jitalloc.replay import ReplayOptions, Request, prepare, replay
from tests.gpu import ON_DEVICE

pytestmark = [*ON_DEVICE, pytest.mark.usefixtures("few_threads")]
MEASURED = ("allocator", "wall_seconds")


def request(arrival: float, prompt: int, response: int, *blocks: int) -> Request:
    ids = np.array(blocks, np.int64) if blocks else None
    return Request(arrival, prompt, response, 8 if blocks else 0, ids)


# Shared prompts, one that has no ids, and more than the pool holds at once.
TRAFFIC = [
    request(0.0, 16, 3, 1, 2),
    request(0.0, 15, 9, 1, 2),
    request(0.1, 24, 14, 1, 3, 4),
    request(0.1, 12, 6),
    request(0.2, 16, 2, 1, 3),
    request(9.0, 400, 2),
]


def figures(device: str, **options: Any) -> dict[str, Any]:
    asked = ReplayOptions(device=device, num_pages=12, page_size=4, max_batch=4, **options)
    if _cuda.SIMULATED:
        prepare(asked)
    report = replay(TRAFFIC, asked).to_dict()
    del report["options"]["device"]
    return {key: value for key, value in report.items() if key not in MEASURED}


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "serve", "export": "csr"},
        {"mode": "serve", "export": "padded", "order": "fifo", "policy": "lfu"},
        {"mode": "serve", "order": "lifo", "policy": "none"},
        {"mode": "cache", "policy": "slru"},
        {"mode": "cache", "policy": "none"},
    ],
    ids=lambda options: "-".join(options.values()),
)
def test_a_replay_comes_to_the_same_figures(options: dict[str, Any]) -> None:
    on_cpu = figures("cpu", **options)
    assert on_cpu["requests"]["finished"] == 5
    if options["mode"] == "serve":
        assert on_cpu["requests"]["preemptions"] > 0
    if options.get("policy") != "none":
        assert on_cpu["prefix"]["hit_tokens"] > 0
    assert figures("cuda", **options) == on_cpu
