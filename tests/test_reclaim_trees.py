"""Eviction from trees made to be awkward, and from several threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

import numpy as np
import pytest

from jitalloc import OutOfPages, PagePool, PrefixCache
from jitalloc._jit import JIT_DISABLED
from tests.oracle_prefix import PREFIX_POLICIES
from tests.prefix_pairs import freed, spell
from tests.test_processes import compiled, hammer

MANY = 500 if JIT_DISABLED else 100_000
every_policy = pytest.mark.parametrize("policy", PREFIX_POLICIES)


def chain(pages: int) -> tuple[PrefixCache, np.ndarray]:
    pool = PagePool(pages + 10, 1, order="fifo")
    return PrefixCache(pool), np.arange(pages, dtype=np.int32)


def take_apart(cache: PrefixCache, expected: Sequence[int]) -> None:
    """Evict in batches of many sizes; pages must go in this order."""
    done, sizes = 0, (1, 64, 1, 1000, 7, 30_000)
    while cache.num_cached:
        n = min(sizes[done % len(sizes)], cache.num_cached)
        assert cache.evict(n) == n
        assert freed(cache.pool, n) == list(expected[done : done + n])
        done += n
    assert done == len(expected)
    cache.check()


def test_one_deep_chain() -> None:
    cache, tokens = chain(MANY)
    pages = cache.pool.alloc(MANY)
    assert cache.insert(tokens, pages).num_new == MANY
    cache.pool.free(pages)
    cache.check()
    with cache.match(tokens) as match:
        assert match.num_pages == MANY
        assert cache.evict(5) == 0
    take_apart(cache, pages[::-1].tolist())


@pytest.mark.parametrize("policy", ["lru", "slru", "priority"])
def test_one_deep_chain_page_by_page(policy: str) -> None:
    many = MANY // 20
    cache = PrefixCache(PagePool(many + 10, 1, order="fifo"), policy=policy)
    tokens = np.arange(many, dtype=np.int32)
    pages = np.empty(0, np.int32)
    for i in range(many):
        page = cache.pool.alloc(1)
        pages = np.append(pages, page)
        result = cache.insert(tokens[: i + 1], pages)
        assert result.num_new == 1
        cache.pool.free(page)
    cache.check()
    with cache.match(tokens) as match:
        assert match.pages.tolist() == pages.tolist()
    take_apart(cache, pages[::-1].tolist())


def test_a_chain_cut_at_every_page_by_matches() -> None:
    many = MANY // 100
    cache, tokens = chain(many)
    pages = cache.pool.alloc(many)
    cache.insert(tokens, pages)
    cache.pool.free(pages)
    ends = Random(1).sample(range(many + 1), many + 1)
    matches = [cache.match(tokens[:end]) for end in ends]
    cache.check()
    assert [match.num_pages for match in matches] == ends
    assert cache.num_locked == many
    for match in matches:
        cache.release(match)
    cache.check()
    assert cache.num_evictable == many
    take_apart(cache, pages[::-1].tolist())


@every_policy
def test_many_children_of_one_parent(policy: str) -> None:
    cache = PrefixCache(PagePool(MANY + 10, 1, order="fifo"), policy=policy)
    root = cache.pool.alloc(1)
    cache.insert([0], root)
    cache.pool.free(root)
    pages = np.array([root[0], 0], np.int32)
    for i in range(MANY):
        page = cache.pool.alloc(1)
        pages[1] = page[0]
        cache.insert(np.array([0, i], np.int32), pages)
        cache.pool.free(page)
    cache.check()
    for i in (0, MANY // 2, MANY - 1):
        with cache.match([0, i]) as match:
            assert match.num_pages == 2
    assert cache.evict(MANY - 10) == MANY - 10
    cache.check()
    assert cache.evict(MANY) == 11
    cache.check()


@every_policy
def test_all_prompts_are_equal(policy: str) -> None:
    cache = PrefixCache(PagePool(64, 4, order="fifo"), policy=policy)
    tokens = np.arange(40, dtype=np.int32)
    for i in range(MANY // 50):
        pages = cache.pool.alloc(10)
        result = cache.insert(tokens, pages)
        assert result.num_new == (0 if i else 10)
        cache.pool.free(pages)
        with cache.match(tokens) as match:
            assert match.num_pages == 10
    cache.check()
    assert cache.num_cached == cache.pool.num_used == 10
    assert cache.evict(99) == 10


@every_policy
def test_no_two_prompts_are_equal(policy: str) -> None:
    cache = PrefixCache(PagePool(256, 4), policy=policy)
    for i in range(max(MANY // 10, 100)):
        if cache.pool.available < 3:
            assert cache.evict(3) == 3
        pages = cache.pool.alloc(3)
        assert cache.insert(np.arange(i, i + 12, dtype=np.int32), pages).num_new == 3
        cache.pool.free(pages)
    cache.check()
    assert cache.num_cached == 255
    assert cache.evict(999) == 255


# Threads.


@compiled
@every_policy
def test_threads_share_a_cache(policy: str) -> None:
    pool = PagePool(120, 2)
    cache = PrefixCache(pool, policy=policy)

    def worker(seed: int) -> Callable[[], None]:
        random = Random(seed)

        def turn() -> None:
            tokens = spell("".join(random.choices("ab", k=random.randrange(8))), 2)
            with cache.match(tokens, random.choice((None, seed))) as match:
                assert pool.refcount(match.pages).all()
            try:
                pages = pool.alloc(len(tokens) // 2)
            except OutOfPages:
                cache.evict(random.randrange(20))
                return
            with cache.pin(tokens):
                cache.insert(tokens, pages, random.choice((None, seed)))
            pool.free(pages)

        return turn

    def look() -> None:
        cache.check()
        stats = cache.stats()
        assert stats.hit_pages <= stats.pages
        assert 0 <= cache.num_cached <= 120

    hammer([worker(1), worker(2), look], seconds=0.4)
    assert (cache.num_locked, cache.num_pinned) == (0, 0)
    cache.check()
    pool.check(held=[])
    available = pool.available
    assert cache.evict(120) == 120 - available
    assert pool.available == 120
