"""No call on the GPU waits for it, and each is one launch, or a few where there is very much to do.

A device notes both: on the machine of `tests/ptx`, or in the simulator.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from jitalloc import PagePool
from jitalloc.cuda import CudaPagePool
from jitalloc.pool.upkeep_cuda import CudaPoolUpkeep
from tests.gpu import RECORDED
from tests.recording import RecordingDevice

pytestmark = RECORDED


# What waits by its docstring: the calls that return numbers, or results of a size not yet known.
CALLS: dict[str, Callable[[Any, Any], Any]] = {
    "alloc": lambda p, at: p.alloc(2),
    "alloc, contiguous": lambda p, at: p.alloc(2, contiguous=True),
    "alloc with a merge": lambda p, at: p.alloc(6),
    "alloc that fails": lambda p, at: p.alloc(8),
    "alloc_batch": lambda p, at: p.alloc_batch(at["counts"], out=at["pages"]),
    "admit": lambda p, at: p.admit(at["counts"]),
    "merge": lambda p, at: p.merge(),
    "share": lambda p, at: p.share(at["held"]),
    "free": lambda p, at: p.free(at["held"]),
    "free that fails": lambda p, at: p.free(at["pages"]),
    "free_slots": lambda p, at: p.free_slots(at["slots"]),
    "refcount": lambda p, at: p.refcount(at["held"]),
    "alloc_extend": lambda p, at: p.alloc_extend(
        at["zero"], at["slots"], at["null"], out=at["out"]
    ),
    "alloc_decode": lambda p, at: p.alloc_decode(at["one"], at["null"]),
    "clear": lambda p, at: p.clear(),
    "defragment": lambda p, at: p.defragment(src=at["held"], dst=at["pages"]),
    "free_group": lambda p, at: free_in_group(p, at),
}
# What takes two launches on very many pages.
TWO_LAUNCHES = {
    "sorted": {"alloc_batch"},
    "lifo": {"alloc_batch", "free", "free that fails", "free_slots", "free_group"},
}


def free_in_group(pool: Any, at: Any) -> None:
    with pool.free_group():
        pool.free(at["held"])
        pool.free(at["third"])


@pytest.mark.parametrize("order", TWO_LAUNCHES)
@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_a_call_is_one_launch_or_two_and_waits_for_nothing(
    name: str, large: bool, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "alloc, contiguous" and order != "sorted":
        pytest.skip("contiguous pages in a sorted pool only")
    if large:
        monkeypatch.setattr("jitalloc.pool.pool_cuda.LARGE", 1)
        monkeypatch.setattr("jitalloc.pool.pool_cuda.MANY", 1)
    gpu = RecordingDevice()
    monkeypatch.setattr("jitalloc.gpu.slab.device", lambda: gpu)
    pool: Any = PagePool(8, 4, order=order, device="cuda")
    pool.free(pool.alloc(5)[3:])
    at = {
        "counts": gpu.upload(np.array([1, 0, 2])),
        "pages": gpu.upload(np.array([7, 7, 7], np.int32)),
        "held": gpu.upload(np.array([0, 2], np.int32)),
        "third": gpu.upload(np.array([1], np.int32)),
        "slots": gpu.upload(np.array([3, 5, 4])),
        "zero": gpu.upload(np.zeros(3, np.int64)),
        "one": gpu.upload(np.ones(3, np.int64)),
        "null": gpu.upload(np.full(3, -1)),
        "out": gpu.upload(np.zeros(16, np.int64)),
    }
    gpu.waits.clear()
    gpu.starts.clear()
    CALLS[name](pool, at)
    assert gpu.waits == []
    assert len(gpu.starts) == (2 if large and name in TWO_LAUNCHES[order] else 1)


def test_the_recorder_sees_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = RecordingDevice()
    monkeypatch.setattr("jitalloc.gpu.slab.device", lambda: gpu)
    pool: Any = PagePool(8, 4, device="cuda")
    for look in (lambda: pool.num_free, pool.stats, lambda: int(pool.alloc(1)[0])):
        gpu.waits.clear()
        look()
        assert gpu.waits


def test_every_call_that_starts_a_kernel_is_recorded() -> None:
    launched = {name.partition(",")[0].partition(" ")[0] for name in CALLS}
    parts = vars(CudaPagePool) | vars(CudaPoolUpkeep)
    mine = {name for name, each in parts.items() if callable(each) and name[0] != "_"}
    waits = {"try_alloc", "stats", "check", "snapshot", "load", "resize"}
    assert mine - waits == launched
