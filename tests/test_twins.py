"""Every kernel against the model: bit-identical results and state after each call.

The registry names the kernels one by one, so that a kernel without its twin fails here. CUDA
twins join it by running the same steps on a pool of their device.
"""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from jitalloc import _jit
from tests import cache_steps
from tests.cache_pairs import CachePair
from tests.cache_steps import CACHE_STEPS
from tests.pairs import PoolPair
from tests.sharing_pairs import SharingPair
from tests.sharing_steps import SHARING_BACKGROUND, SHARING_STEPS
from tests.slot_pairs import SlotPair, SlotPrefixPair
from tests.slot_steps import PREFIX_BACKGROUND, PREFIX_STEPS, SLOT_BACKGROUND, SLOT_STEPS
from tests.twin_steps import BACKGROUND, POOL_STEPS

# The bitmaps' words and the runs of 64 that `free` looks for end at these sizes.
POOLS: list[dict[str, Any]] = [
    {"num_pages": 1, "page_size": 1, "order": "sorted"},
    {"num_pages": 7, "page_size": 3, "order": "fifo"},
    {"num_pages": 64, "page_size": 4, "order": "lifo", "null_page": True},
    {"num_pages": 65, "page_size": 16, "order": "sorted", "null_page": True},
    {"num_pages": 129, "page_size": 5, "order": "sorted"},
    {"num_pages": 300, "page_size": 2, "order": "sorted"},
    {"num_pages": 200, "page_size": 8, "order": "fifo"},
]
# Rows end at the words of their bitmap as well.
CACHES: list[dict[str, Any]] = [
    {"num_pages": 20, "page_size": 1, "max_sequences": 5, "eviction": "lru"},
    {"num_pages": 40, "page_size": 4, "order": "lifo", "null_page": True, "eviction": "lfu"},
    {"num_pages": 30, "page_size": 3, "order": "fifo", "max_pages": 9, "eviction": "longest"},
    {"num_pages": 90, "page_size": 2, "max_sequences": 65, "eviction": "priority"},
    {"num_pages": 40, "page_size": 2, "max_pages": 10, "eviction": "streaming", "window": 3},
]
# The words of both levels of the bitmap; then a token an entry, one entry, and trees of some depth.
SLOTS = (1, 63, 64, 65, 4096, 4160)
PREFIXES = ((1, 4), (2, 1), (5, 8), (12, 6), (30, 70))
# Pages and policies of a prefix cache with sequences on it.
SHARINGS: list[dict[str, Any]] = [
    {"num_pages": 20, "page_size": 4, "order": "lifo", "policy": "lru"},
    {"num_pages": 30, "page_size": 1, "order": "fifo", "policy": "slru", "max_pages": 20},
    {"num_pages": 24, "page_size": 3, "null_page": True, "policy": "fifo"},
    {"num_pages": 24, "page_size": 2, "policy": "lfu", "eviction": "longest"},
    {"num_pages": 24, "page_size": 2, "order": "fifo", "policy": "priority"},
    {"num_pages": 24, "page_size": 2, "policy": "mru", "protected_share": 0.5},
]
ROUNDS = 12 if _jit.JIT_DISABLED else 60


def describe(options: dict[str, Any]) -> str:
    return "-".join(str(value) for value in options.values())


def count_calls(kernel: _jit.Kernel, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Let `kernel` note each of its calls."""
    statuses: list[Any] = []
    if not _jit.JIT_DISABLED:
        kernel.compile()
    run = kernel.run

    def counted(*args: Any) -> Any:
        statuses.append(run(*args))
        return statuses[-1]

    monkeypatch.setattr(kernel, "run", counted)
    return statuses


@pytest.mark.parametrize("name", sorted(POOL_STEPS))
def test_pool_kernel_does_what_the_model_does(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    statuses = count_calls(_jit.kernels()[name], monkeypatch)
    for options in POOLS:
        if name == "pool_alloc_run_cpu" and options["order"] != "sorted":
            continue
        random, pair = Random(f"{name} {describe(options)}"), PoolPair(**options)
        for _ in range(ROUNDS):
            POOL_STEPS[name](pair, random)
            random.choice(BACKGROUND)(pair, random)
    assert any(status >= 0 for status in statuses), "no call of this kernel succeeded"


@pytest.mark.parametrize("name", sorted(CACHE_STEPS))
def test_cache_kernel_does_what_the_model_does(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    statuses = count_calls(_jit.kernels()[name], monkeypatch)
    for options in CACHES:
        random, pair = Random(f"{name} {describe(options)}"), CachePair(**options)
        for _ in range(ROUNDS):
            CACHE_STEPS[name](pair, random)
            random.choice(cache_steps.BACKGROUND)(pair, random)
    assert any(status >= 0 for status in statuses), "no call of this kernel succeeded"


@pytest.mark.parametrize("name", sorted(SHARING_STEPS))
def test_sharing_kernel_does_what_the_model_does(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    statuses = count_calls(_jit.kernels()[name], monkeypatch)
    for options in SHARINGS:
        random, pair = Random(f"{name} {describe(options)}"), SharingPair(**options)
        for _ in range(ROUNDS // 2):
            SHARING_STEPS[name](pair, random)
            random.choice(SHARING_BACKGROUND)(pair, random)
    assert any(status >= 0 for status in statuses), "no call of this kernel succeeded"


@pytest.mark.parametrize("name", sorted(SLOT_STEPS))
def test_slot_kernel_does_what_the_model_does(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    statuses = count_calls(_jit.kernels()[name], monkeypatch)
    for max_slots in SLOTS[: 4 if _jit.JIT_DISABLED else None]:
        random, pair = Random(f"{name} {max_slots}"), SlotPair(max_slots)
        for _ in range(ROUNDS):
            SLOT_STEPS[name](pair, random)
            random.choice(SLOT_BACKGROUND)(pair, random)
    assert any(status >= 0 for status in statuses), "no call of this kernel succeeded"


@pytest.mark.parametrize("name", sorted(PREFIX_STEPS))
def test_prefix_kernel_does_what_the_model_does(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    statuses = count_calls(_jit.kernels()[name], monkeypatch)
    for capacity, max_tokens in PREFIXES:
        random, pair = Random(f"{name} {capacity}"), SlotPrefixPair(capacity, max_tokens)
        for _ in range(ROUNDS):
            PREFIX_STEPS[name](pair, random)
            random.choice(PREFIX_BACKGROUND)(pair, random)
    assert any(status >= 0 for status in statuses), "no call of this kernel succeeded"


def test_every_kernel_has_its_twin() -> None:
    steps = (POOL_STEPS, CACHE_STEPS, SHARING_STEPS, SLOT_STEPS, PREFIX_STEPS)
    assert set(_jit.kernels()) == {name for each in steps for name in each}
