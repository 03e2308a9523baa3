"""The prefix cache on the GPU while its pool is packed, resized and restored.

NUMBA_ENABLE_CUDASIM=1 NUMBA_DISABLE_JIT=1 pytest tests/test_cuda_prefix_upkeep.py
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from jitalloc import (
    NULL,
    CorruptState,
    InvalidArgument,
    NotLocked,
    PageInUse,
    PagePool,
    PrefixCache,
)
from jitalloc.prefix.state import NODES_AT, NUM_CACHED, TOKENS_AT
from tests.cuda_prefix_pairs import CudaPrefixPair, PrefixView, state, stored, up
from tests.gpu import ON_DEVICE
from tests.prefix_pairs import spell

pytestmark = ON_DEVICE


# Pages that move.


def test_matches_outlive_defragmentations() -> None:
    pair = CudaPrefixPair(16, 4)
    hole = pair.result("alloc", 2)
    pair.store(spell("abcd", 4))
    pair.look_up(spell("abc", 4))
    pair.look_up(spell("ab", 4), name="pin")
    pair.call("free", hole)
    assert pair.result("defragment")[0]
    assert pair.cache.num_locked == 3
    pair.store(spell("abx", 4))
    pair.call("defragment")
    while pair.matches:
        pair.give_back()
    assert (pair.cache.num_locked, pair.cache.num_pinned) == (0, 0)
    pair.drain()


def test_moves_go_into_buffers_of_the_caller_and_the_cache_follows() -> None:
    cache = stored(16, 4)
    hole = cache.pool.alloc(2)
    pages = cache.pool.alloc(3)
    cache.insert(up(spell("abc", 4)), pages)
    match = cache.match(up(spell("abc", 4)))
    cache.pool.free(hole)
    before = state(cache)
    with pytest.raises(InvalidArgument, match="the call makes 2"):
        cache.pool.defragment(src=up([7]), dst=up([7]))
    assert state(cache) == before
    src, dst = cache.pool.defragment(src=up([7] * 4), dst=up([7] * 4))
    assert (src.tolist(), dst.tolist()) == ([3, 4, NULL, NULL], [0, 1, NULL, NULL])
    with cache.match(up(spell("abc", 4))) as found:
        assert found.pages.tolist() == [2, 0, 1]
    cache.release(match)
    assert cache.num_locked == 0
    cache.check()
    cache.pool.check(held=[0, 1, 2])


def test_a_pool_is_not_cut_off_below_a_cached_page() -> None:
    cache = stored(16, 4, "abcdef")
    cache.pool.share(up([5]))
    before = state(cache)
    with pytest.raises(PageInUse):
        cache.pool.resize(5)
    assert state(cache) == before
    cache.pool.free(up([5]))
    cache.pool.resize(5)
    cache.pool.resize(3)
    cache.pool.resize(40)
    with cache.match(up(spell("abcdef", 4))) as match:
        assert match.pages.tolist() == [0, 1, 2]
    assert cache.arrays.following_pages.size == 40
    cache.check()
    cache.pool.check(held=[])


def test_a_second_cache_on_one_pool_is_refused() -> None:
    cache = stored(16, 4, "abc")
    with pytest.raises(InvalidArgument, match="has a prefix cache"):
        PrefixCache(cache.pool)
    with pytest.raises(CorruptState, match="refcount"):
        cache.pool.check(held=[0])
    cache.check()


@pytest.mark.parametrize(
    "name", ["resize", "defragment", "restore", "restore a cache", "insert", "evict"]
)
def test_work_that_is_not_interrupted_stays_on_its_stream(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, carried = stored(16, 4, "ab"), []
    carry = cache.pool._gpu.carried

    def noted(work: Any) -> Any:
        return carry(lambda: (carried.append(work), work())[1])

    monkeypatch.setattr(cache.pool._gpu, "carried", noted)
    snapshot, empty = cache.snapshot(), PagePool(2, 4).snapshot()
    calls: dict[str, Callable[[], Any]] = {
        "resize": lambda: cache.pool.resize(20),
        "defragment": cache.pool.defragment,
        "restore": lambda: (cache.clear(), cache.pool.restore(empty)),
        "restore a cache": lambda: cache.restore(snapshot),
        "insert": lambda: cache.insert(spell("c", 4), cache.pool.alloc(1)),
        "evict": lambda: cache.evict(1),
    }
    calls[name]()
    assert len(carried) == (2 if name == "restore" else 1)  # with `clear`
    cache.check()


# Whole states.


def test_a_pool_with_cached_pages_is_neither_cleared_nor_restored() -> None:
    cache = stored(16, 4, "ab")
    snapshot = cache.pool.snapshot()
    before = state(cache)
    for call in (cache.pool.clear, lambda: cache.pool.restore(snapshot)):
        with pytest.raises(InvalidArgument):
            call()
    assert state(cache) == before
    cache.clear()
    cache.pool.clear()
    cache.pool.restore(PagePool(80, 4).snapshot())
    cache.insert(up(spell("abc", 4)), cache.pool.alloc(3))
    cache.check()
    cache.pool.check(held=[0, 1, 2])
    assert cache.arrays.following_pages.size == 80


@pytest.mark.parametrize("policy", ["lru", "slru", "priority"])
def test_a_state_moves_between_devices(policy: str) -> None:
    cache = stored(16, 4, "abcd", "abxy", policy=policy, protected_share=0.2)
    pages = cache.pool.alloc(1)
    cache.insert(up(spell("q", 4)), pages, "space")
    match = cache.match(up(spell("abc", 4)))
    cpu = PrefixCache(PagePool(2, 4), policy=policy, protected_share=0.2)
    cpu.pool.restore(cache.pool.snapshot())
    cpu.restore(cache.snapshot())
    cpu.check()
    cache.restore(cpu.snapshot())
    assert np.array_equal(PrefixView(cache).words[5:], cpu._slab[5:])
    assert cache._namespaces.numbers == cpu._namespaces.numbers == {"space": 3}
    assert (cache.num_locked, cache.evict(3), cpu.evict(3)) == (0, 3, 3)
    assert np.array_equal(PrefixView(cache).words[5:], cpu._slab[5:])
    with pytest.raises(NotLocked, match="older"):
        cache.release(match)
    assert not match.locked
    cache.check()
    cache.pool.check(held=pages)


def test_a_snapshot_that_does_not_fit_changes_nothing() -> None:
    cache = stored(16, 4, "abcd")
    snapshot = cache.snapshot()
    assert snapshot.slab.size == PrefixCache(PagePool(16, 4))._slab.size
    cache.evict(1)
    match = cache.match(up(spell("ab", 4)))
    before = state(cache)
    wrongs = [snapshot, None, stored(16, 2, "abc").snapshot(), stored(8, 4).snapshot()]
    for wrong in (*wrongs, stored(16, 4, "abc", policy="mru").snapshot()):
        with pytest.raises(InvalidArgument):
            cache.restore(wrong)
        assert state(cache) == before
    cache.release(match)
    cache.check()


@pytest.mark.parametrize("at", [NUM_CACHED, NODES_AT, TOKENS_AT, "node", "token", "name"])
def test_a_state_that_is_broken_shows(at: int | str) -> None:
    cache = stored(16, 4, "abc", "abd")
    cache.check()
    if at == "node":
        cache.arrays.nodes[0, 0] += 1
    elif at == "token":
        cache.arrays.tokens[0, 1] += 1
    elif at == "name":
        cache.arrays.previous_pages[0] = -77
    else:
        cache._slab[at] += 1
    with pytest.raises(CorruptState):
        cache.check()
