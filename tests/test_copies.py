"""`copy` and `pickle` of what lives: all that stands on one pool together, or a refusal."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jitalloc import (
    BlockTables,
    PagedKVCache,
    PagePool,
    PrefixCache,
    SlotAllocator,
    SlotPrefixCache,
    SnapshotError,
)

WAYS: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    **{
        f"pickle {protocol}": lambda each, protocol=protocol: pickle.loads(
            pickle.dumps(each, protocol)
        )
        for protocol in (0, 2, 5)
    },
}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    """Each way to copy."""
    return WAYS[request.param]


def busy(policy: Any = "lru", null_page: bool = False) -> SimpleNamespace:
    """A pool with a prefix cache, two caches of sequences on it, and pages of the caller."""
    random = Random(3)
    pool = PagePool(400, 4, null_page=null_page)
    prefix = PrefixCache(pool, policy=policy, pin_budget=20, protected_share=0.5)
    caches = [PagedKVCache(pool, 6, 12, prefix_cache=prefix, eviction="lfu") for _ in range(2)]
    for turn in range(30):
        cache, tokens = random.choice(caches), np.repeat(random.choices(range(3), k=8), 4)
        name = ("n", turn % 5)
        if name in cache:
            cache.free(name)
        cache.allocate(name, tokens=tokens, namespace=random.choice((None, "x", 7)))
        cache.append(name, tokens=[turn, 2])
        cache.commit(name)
    pages = pool.alloc(5)
    pool.free(pages[::2])
    return SimpleNamespace(pool=pool, prefix=prefix, caches=caches, held=pages[1::2])


def goes_on(of: SimpleNamespace) -> list[Any]:
    """What a busy pool answers to the same calls; used to see that two are in one state."""
    said: list[Any] = [of.pool.alloc(3).tolist(), of.pool.stats()]
    for cache in of.caches:
        said += [cache.ids, [cache.sequence(each).pages.tolist() for each in cache.ids]]
        said += [cache.allocate("new", tokens=[1] * 13), cache.append("new", 3).slots.tolist()]
        said += [cache.stats(), cache.free(cache.ids[0])]
        cache.check()
    said += [of.prefix.stats(), of.prefix.evict(7), of.prefix.num_locked]
    of.prefix.check()
    return said


@pytest.mark.parametrize("policy", ["lru", "fifo", "lfu", "priority"])
def test_what_stands_on_one_pool_is_copied_together(way: Callable[[Any], Any], policy: str) -> None:
    of = busy(policy, null_page=policy == "fifo")
    again = SimpleNamespace(**way(vars(of)))
    assert again.prefix.pool is again.pool is not of.pool
    for cache in again.caches:
        assert (cache.pool, cache.prefix_cache) == (again.pool, again.prefix)
    again.pool.check()
    again.prefix.check()
    assert goes_on(of) == goes_on(again)


def test_a_cache_takes_its_pool_and_prefix_cache_along(way: Callable[[Any], Any]) -> None:
    of = busy()
    before = of.pool.snapshot().slab
    cache = way(of.caches[0])
    assert cache.ids == of.caches[0].ids
    assert isinstance(cache.prefix_cache, PrefixCache)
    assert cache.prefix_cache.pool is cache.pool
    cache.check()
    cache.clear()
    cache.prefix_cache.clear()
    assert (of.pool.snapshot().slab == before).all(), "the copy follows its original"
    of.caches[0].check()


def test_a_copy_under_slru_is_sound(way: Callable[[Any], Any]) -> None:
    of = busy("slru")
    prefix, cache = way((of.prefix, of.caches[1]))
    prefix.check()
    cache.check()
    way(of.prefix).check()
    cache.clear()
    prefix.clear()


def test_locks_of_the_caller_stay_behind(way: Callable[[Any], Any]) -> None:
    pool = PagePool(8, 2)
    prefix = PrefixCache(pool)
    prefix.insert([1, 2, 3, 4], pool.alloc(2))
    with prefix.match([1, 2, 3, 4]) as match:
        again = way(prefix)
        assert (prefix.num_locked, again.num_locked, again.num_cached) == (2, 0, 2)
        with pytest.raises(SnapshotError, match="PrefixMatch cannot be copied"):
            way(match)


def test_a_pool_alone(way: Callable[[Any], Any], order: str) -> None:
    pool = PagePool(20, 3, order=order, null_page=True)  # type: ignore[arg-type]
    pool.free(pool.alloc(9)[::-2])
    again = way(pool)
    assert (again.order, again.page_size, again.null_page) == (order, 3, True)
    assert (again._slab == pool._slab).all()
    assert again.alloc(8).tolist() == pool.alloc(8).tolist()
    again.alloc(1)
    assert again.num_used == pool.num_used + 1
    assert copy.copy(pool).stats() == pool.stats()


def test_slots_and_their_cache(way: Callable[[Any], Any]) -> None:
    slots, entries = SlotAllocator(100), SlotPrefixCache(4, 9)
    slots.free_batch(slots.alloc_batch(70)[::3])
    entries.insert([1, 2, 3], 5, 1)
    match = entries.find([1, 2], pin=True)
    again, others = way((slots, entries))
    again.check()
    others.check()
    assert [again.alloc() for _ in range(40)] == [slots.alloc() for _ in range(40)]
    assert again.version(0) == slots.version(0)
    assert (others.num_pinned, others.find([1, 2])) == (1, match)
    others.release(match)
    assert (others.num_pinned, entries.num_pinned) == (0, 1)
    others.insert([7], 6, 1)
    assert (len(others), len(entries)) == (2, 1)


def test_tables(way: Callable[[Any], Any]) -> None:
    tables = BlockTables(3, 4, 2)
    again = way(tables)
    assert (again._slab == tables._slab).all()
    again.arrays.pages[0, 0] = 5
    assert again._slab.tolist() != tables._slab.tolist()


def test_a_shallow_copy_would_share_pages() -> None:
    of = busy()
    for each in (of.prefix, of.caches[0]):
        with pytest.raises(SnapshotError, match="deepcopy takes the pool along"):
            copy.copy(each)


def test_a_pool_that_goes_on_meanwhile_is_noticed() -> None:
    of = busy()
    revive, (pool, *others) = of.caches[0].__reduce__()
    pool.alloc(1)
    with pytest.raises(SnapshotError, match="changed while it was copied or pickled: the pool is"):
        revive(pool, *others)


def test_what_cannot_be_copied(way: Callable[[Any], Any]) -> None:
    of = busy()
    with of.pool.free_group() as group:
        pass
    batch = of.prefix.match_batch([1, 2], [0, 2])
    for each in (group, batch):
        with pytest.raises(SnapshotError, match=f"a {type(each).__name__} cannot be copied"):
            way(each)
    of.prefix.release(batch)
