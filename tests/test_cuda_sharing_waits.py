"""What calls of sequences behind a prefix cache on the GPU launch and copy.

NUMBA_ENABLE_CUDASIM=1 NUMBA_DISABLE_JIT=1 pytest tests/test_cuda_sharing_waits.py
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jitalloc import PagedKVCache, PagePool, PrefixCache
from tests.gpu import ON_DEVICE, recorded
from tests.recording import RecordingDevice

pytestmark = [*ON_DEVICE, pytest.mark.usefixtures("few_threads")]
TEXT = list(range(24))  # six pages of four tokens


class Call(SimpleNamespace):
    """A call, how often it copies down and up, and how many kernels it starts."""

    run: Callable[[Any, Any], Any]
    down = 0
    up = 0
    starts = 1


CALLS: dict[str, Call] = {
    "append_batch": Call(run=lambda c, at: c.append_batch(at.rows, tokens=at.tokens)),
    "append_batch that copies": Call(run=lambda c, at: c.append_batch(at.fork)),
    "fork_batch": Call(run=lambda c, at: c.fork_batch(at.rows, at.empty)),
    "reorder": Call(run=lambda c, at: c.reorder(at.rows, at.swapped)),
    "truncate_batch": Call(run=lambda c, at: c.truncate_batch(at.rows, 9)),
    "apply_window_batch": Call(run=lambda c, at: c.apply_window_batch(at.rows, 3)),
    "free_batch, not committed": Call(run=lambda c, at: c.free_batch(at.rows, commit=False)),
    "free_batch": Call(run=lambda c, at: c.free_batch(at.single), down=1, up=1, starts=4),
    "free_batch of what has forks": Call(
        run=lambda c, at: c.free_batch(at.rows), down=3, up=1, starts=4
    ),
    "commit": Call(run=lambda c, at: c.commit("a"), down=1, up=2, starts=3),
    "commit of nothing new": Call(run=lambda c, at: c.commit("old"), down=1, up=1, starts=2),
    "commit of tokens on the GPU": Call(
        run=lambda c, at: c.commit("a", tokens=at.told), down=1, up=2, starts=3
    ),
    "commit_batch": Call(run=lambda c, at: c.commit_batch(at.single), down=1, up=1, starts=4),
    "commit_batch of nothing new": Call(
        run=lambda c, at: c.commit_batch(at.old), down=1, up=0, starts=3
    ),
    "commit_batch of what has forks": Call(
        run=lambda c, at: c.commit_batch(at.rows, at.numbers), down=3, up=1, starts=4
    ),
    "free": Call(run=lambda c, at: c.free("a"), down=1, up=2, starts=4),
    "free, not committed": Call(run=lambda c, at: c.free("a", commit=False), down=1, up=1),
    "allocate": Call(run=lambda c, at: c.allocate("x", tokens=TEXT[:9]), down=1, up=1, starts=2),
    "allocate, tokens on the GPU": Call(
        run=lambda c, at: c.allocate("x", tokens=at.prompt), down=1, up=1, starts=3
    ),
    "allocate without tokens": Call(run=lambda c, at: c.allocate("x", 9), down=1, up=1, starts=2),
    "allocate where cached pages give way": Call(
        run=lambda c, at: c.allocate("x", 24), down=4, up=2, starts=5
    ),
    "make_room": Call(run=lambda c, at: c.make_room(1), down=1),
    "num_reclaimable": Call(run=lambda c, at: c.num_reclaimable, down=2),
}


@recorded
@pytest.mark.parametrize("name", CALLS)
def test_what_a_call_launches_and_copies(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = RecordingDevice()
    monkeypatch.setattr("jitalloc.gpu.slab.device", lambda: gpu)
    pool: Any = PagePool(20, 4, device="cuda")
    cache: Any = PagedKVCache(pool, 10, 8, prefix_cache=PrefixCache(pool))  # type: ignore[arg-type]
    cache.allocate("old", tokens=TEXT)
    cache.commit("old")
    for seq_id, text in (("a", 100), ("b", 200)):
        cache.allocate(seq_id, tokens=[text + token for token in TEXT[:9]])
    cache.fork("b", "c")
    for seq_id in "de":
        cache.allocate(seq_id, 0)
    cache.allocate("gone", tokens=[7] * 8)
    cache.commit("gone")
    cache.free("gone")
    for each in (cache.append_batch, lambda rows: cache.reorder(rows, rows)):
        each(cache.rows(["a", "b"]))  # what the first call keeps for those behind
    cache.truncate_batch(cache.rows(["a", "b"]), drop=1)
    cache.truncate_batch(cache.rows(["a", "b"]), 9)
    cache._follow()
    tokens = np.array([5, 6], np.int32)
    at = SimpleNamespace(
        rows=cache.rows(["a", "b"]),
        single=cache.rows(["a", "old"]),
        old=cache.rows(["old"]),
        numbers=gpu.upload(np.array([9, 9], np.int32)),
        swapped=cache.rows(["b", "a"]),
        fork=cache.rows(["c"]),
        empty=cache.rows(["d", "e"]),
        tokens=gpu.upload(tokens),
        told=gpu.upload(np.array([100 + token for token in TEXT[:8]], np.int32)),
        prompt=gpu.upload(np.array(TEXT[:9], np.int32)),
    )
    cache.truncate_batch(at.rows, 9)
    cache.pool.step  # noqa: B018  (both clocks are the same)
    gpu.waits.clear()
    gpu.starts.clear()
    call = CALLS[name]
    call.run(cache, at)
    done = gpu.waits.count("download"), gpu.waits.count("upload"), len(gpu.starts)
    assert done == (call.down, call.up, call.starts), gpu.starts
    assert set(gpu.waits) <= {"download", "upload"}
