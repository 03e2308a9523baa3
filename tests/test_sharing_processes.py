"""Ctrl-C and threads where sequences of several caches share one prefix cache."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from random import Random

import numpy as np
import pytest

from jitalloc import OutOfPages, PagedKVCache, PagePool, PrefixCache, _jit
from jitalloc.errors import PageInUse, PinBudget
from tests.test_processes import compiled, hammer, interrupt_often

KERNELS = Path(_jit.cache_folder()).parents[1]  # those that this process uses too

MAKE = """
pool = jitalloc.PagePool(40, 4)
prefix = jitalloc.PrefixCache(pool, policy=POLICY)
cache = jitalloc.PagedKVCache(pool, 8, 8, prefix_cache=prefix)
other = jitalloc.PagedKVCache(pool, 2, 8, prefix_cache=prefix)
"""
CHECK = """
prefix.check()
cache.check()
other.check()
used = {page for each in (cache, other) for seq_id in each.ids
        for page in each.sequence(seq_id).pages.tolist()}
assert cache.num_held == len(used), (cache.num_held, used)
cache.clear()
for seq_id in other.ids:
    other.free(seq_id)
assert cache.num_held == prefix.num_locked == prefix.num_pinned == 0
assert pool.num_used == prefix.num_cached
pool.check(held=[])
if random.random() < 0.1:
    prefix.clear()
    assert pool.num_used == 0
"""
SERVED = """
first = random.randrange(3)
cache.allocate("a", tokens=[first] * 9)
cache.append_batch([cache.row("a")], [4], tokens=[1, 2, 3, 4])
cache.commit("a")
cache.fork("a", "b")
other.allocate("c", tokens=[first] * 12, namespace=None)
cache.append("b", tokens=[7, 8, 9])
cache.truncate("a", 6)
cache.free("a")
cache.evict()
other.free("c")
"""
GIVEN_WAY = """
first = random.randrange(3)
for i in range(3):
    cache.allocate(i, tokens=[first + i] * 14, namespace=("n", i))
cache.apply_streaming_llm(1, 4, 4)
cache.evict_to(0.1)
prefix.evict(2)
cache.free_batch(cache.rows(cache.ids))
"""
LOOKED_UP = """
cache.allocate("a", tokens=[1] * 9)
cache.commit("a")
with prefix.match([1] * 9) as match:
    pass
with prefix.pin([1] * 4):
    cache.free("a")
pool.defragment()
"""


# Python may drop a match between the call and the `with`: then its lock stays.
DROPPED = """
prefix.check()
cache.check()
cache.clear()
pool.check(held=[])
assert pool.num_used == prefix.num_cached
if prefix.num_locked:
    left = globals().get("left", 0) + 1
    assert left < 200, left
    pool = jitalloc.PagePool(40, 4)
    prefix = jitalloc.PrefixCache(pool)
    cache = jitalloc.PagedKVCache(pool, 8, 8, prefix_cache=prefix)
"""


@pytest.mark.parametrize(
    ("policy", "work"), [("lru", SERVED), ("slru", SERVED), ("lfu", GIVEN_WAY)]
)
def test_interrupted_sequences_leave_no_lock(policy: str, work: str) -> None:
    interrupt_often(KERNELS, MAKE.replace("POLICY", repr(policy)), work, CHECK)


def test_an_interrupted_look_up_leaves_everything_sound() -> None:
    interrupt_often(KERNELS, MAKE.replace("POLICY", "'lru'"), LOOKED_UP, DROPPED)


def sequences(cache: PagedKVCache, seed: int) -> object:
    """Requests that share prompts, run, fork and end, one turn a call."""
    random = Random(seed)

    def turn() -> None:
        name = random.randrange(100)
        tokens = np.repeat(random.choices(range(3), k=8), 4)[: random.randrange(33)]
        with contextlib.suppress(OutOfPages):
            cache.allocate(name, tokens=tokens, namespace=random.choice((None, "n")))
            cache.append(name, tokens=[5, 6, 7])
            cache.commit(name)
            cache.fork(name, "fork")
            cache.append_batch(cache.rows([name, "fork"]), [1, 2], tokens=[1, 2, 3])
            cache.apply_streaming_llm("fork", 4, 4)
        cache.free_batch(cache.rows(cache.ids), commit=random.random() < 0.7)

    return turn


@compiled
@pytest.mark.parametrize("policy", ["lru", "slru", "priority"])
def test_threads_on_one_prefix_cache(policy: str) -> None:
    pool = PagePool(60, 4)
    prefix = PrefixCache(pool, policy=policy)
    caches = [PagedKVCache(pool, 4, 12, prefix_cache=prefix) for _ in range(2)]
    random, shape = Random(5), Random(6)

    def look_up() -> None:
        tokens = np.repeat(random.choices(range(3), k=6), 4)
        with prefix.match(tokens, random.choice((None, "n"))) as match:
            assert prefix.num_locked >= match.num_pages
        with contextlib.suppress(PinBudget), prefix.pin(tokens):
            pass

    def evict() -> None:
        prefix.evict(random.randrange(5))

    def insert() -> None:  # not while pages are renamed
        with contextlib.suppress(OutOfPages):
            pages = pool.alloc(6)
            prefix.insert(np.repeat(random.choices(range(3), k=6), 4), pages)
            pool.free(pages)

    def look() -> None:
        for cache in caches:
            stats = cache.stats()
            assert stats.free_pages + stats.reclaimable_pages + stats.held_pages <= 60
        prefix.stats()
        prefix.check()

    def check() -> None:  # not while the prefix cache alone gives pages up
        for cache in caches:
            cache.check()

    def move() -> None:
        with contextlib.suppress(PageInUse):
            pool.resize(shape.choice((56, 60)))
        pool.defragment()
        time.sleep(1e-3)

    serve = [sequences(cache, seed) for seed, cache in enumerate(caches)]
    hammer([*serve, look_up, check, move], seconds=0.5)
    hammer([*serve, look_up, insert, evict, look], seconds=0.7)
    hammer([*serve, look_up, evict, look, move], seconds=0.7)
    for cache in caches:
        cache.clear()
        cache.check()
    assert prefix.num_locked == prefix.num_pinned == 0
    prefix.clear()
    pool.check(held=[])
    assert pool.num_used == 0
