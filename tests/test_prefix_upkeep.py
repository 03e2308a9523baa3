"""A prefix cache while its pool is packed, resized and restored."""

from __future__ import annotations

import gc
from random import Random

import pytest

from jitalloc import PagedKVCache, PagePool, PrefixCache
from jitalloc._jit import JIT_DISABLED
from jitalloc.errors import InvalidArgument, NotLocked, PageInUse
from tests.oracle_prefix import PREFIX_POLICIES
from tests.prefix_pairs import PrefixPair, cached, random_turn, spell, stored

TURNS = 20 if JIT_DISABLED else 80
every_policy = pytest.mark.parametrize("policy", PREFIX_POLICIES)


# Pages that move.


@every_policy
def test_cached_pages_follow_a_defragmentation(policy: str) -> None:
    random, pair = Random(1), PrefixPair(30, 2, policy=policy, null_page=True)
    for i in range(TURNS):
        random_turn(pair, random, "abc", 6)
        if i % 5 == 0:
            pair.call("defragment")
    pair.drain()


def test_a_match_outlives_a_defragmentation() -> None:
    pair = PrefixPair(16, 4)
    hole = pair.result("alloc", 2)
    pair.store(spell("abcd", 4))
    pair.look_up(spell("abc", 4))
    pair.look_up(spell("ab", 4), name="pin")
    pair.call("free", hole)
    assert pair.result("defragment")[0]
    assert pair.cache.num_locked == 3
    pair.store(spell("abx", 4))
    while pair.matches:
        pair.give_back()
    assert (pair.cache.num_locked, pair.cache.num_pinned) == (0, 0)
    pair.drain()


@every_policy
def test_a_pool_is_resized_under_its_cache(policy: str) -> None:
    random, pair = Random(2), PrefixPair(30, 3, policy=policy, protected_share=0.4)
    for i in range(TURNS):
        random_turn(pair, random, "abc", 6)
        if i % 5 == 0:
            pair.call("resize", random.randrange(20, 60))
    pair.drain()


def test_options_that_follow_the_size_of_the_pool() -> None:
    pair = PrefixPair(20, 2, policy="slru", protected_share=0.2)
    for pages in (4, 1, 3, 40):  # no page protected or pinned, then more
        pair.call("resize", pages)
        pair.store(spell("abc"[:pages], 2))
        pair.look_up(spell("abc", 2))
        pair.give_back()
        pair.look_up(spell("a", 2), name="pin")
        pair.must("evict", 2)
    pair.drain()


def test_a_pool_is_not_cut_off_below_a_cached_page() -> None:
    pair = stored(4, "abcdef")
    pair.call("share", [5])
    assert pair.call("resize", 5)[0] is PageInUse  # the user holds it too
    pair.call("free", [5])
    pair.look_up(spell("abcdef", 4))
    assert pair.call("resize", 5)[0] is PageInUse  # it is locked
    pair.give_back()
    assert pair.call("resize", 5) == ("returned", None)
    pair.call("share", [1])
    pair.call("resize", 3)
    assert pair.pages_of(spell("abcdef", 4)) == [0, 1, 2]
    pair.give_back()
    pair.call("free", [1])
    pair.call("resize", 64)
    pair.store(spell("abcxyz" * 5, 4))
    pair.drain()


@every_policy
def test_what_follows_a_page_past_the_end_goes_with_it(policy: str) -> None:
    pair = stored(4, "abc", policy=policy)
    pair.store(spell("abxyz", 4))
    pair.call("defragment")
    pages = pair.result("alloc", 6)
    pair.must("insert", spell("qrstuv", 4), pages[::-1])  # the last page first
    pair.call("free", pages[1:])
    assert pair.call("resize", 10) == ("returned", None)
    assert (pair.cache.num_cached, pair.pool.refcount(pages[:1]).tolist()) == (6, [1])
    pair.call("resize", 4)
    assert pair.call("resize", 4) == ("returned", None) or pair.cache.num_cached == 6
    pair.call("free", pair.held())
    pair.call("resize", 1)
    pair.drain()


# A pool that is cleared or restored.


def test_a_pool_with_cached_pages_is_neither_cleared_nor_restored() -> None:
    pair = stored(4, "ab")
    snapshot = pair.pool.snapshot()
    for call in (pair.pool.clear, lambda: pair.pool.restore(snapshot)):
        with pytest.raises(InvalidArgument):
            call()
        pair.agree()
    pair.must("clear")
    pair.pool.restore(PagePool(80, 4).snapshot())
    pair.cache.insert(spell("abc", 4), pair.pool.alloc(3))
    with pair.cache.match(spell("abcd", 4)) as match:
        assert match.pages.tolist() == [0, 1, 2]
    pair.cache.check()
    pair.pool.check(held=[0, 1, 2])
    assert pair.cache.arrays.following_pages.size == 80


def test_sequences_and_prefixes_on_one_pool() -> None:
    pair = stored(4, "abc")
    sequences = PagedKVCache(pair.pool, 4, 8)
    before = sequences.snapshot()
    sequences.allocate("a", 9)
    sequences.check(held=[])
    with pytest.raises(InvalidArgument):
        sequences.restore(before)
    sequences.free("a")
    pair.cache.evict(1)
    sequences.allocate("b", 5)
    pair.pool.defragment()
    sequences.check(held=[])
    pair.cache.check()
    with pair.cache.match(spell("abc", 4)) as match:
        assert match.num_pages == 2


def test_a_second_cache_on_one_pool_is_refused() -> None:
    pool = PagePool(8, 4)
    cache = PrefixCache(pool)
    with pytest.raises(InvalidArgument, match="has a prefix cache"):
        PrefixCache(pool, policy="mru")
    del cache
    gc.collect()
    again = PrefixCache(pool, policy="mru")
    again.insert(range(8), pool.alloc(2))
    pool.check(held=[0, 1])


def test_a_cache_that_is_gone_leaves_its_pages_behind() -> None:
    pool = PagePool(8, 4)
    cache = PrefixCache(pool)
    pages = pool.alloc(2)
    cache.insert(range(8), pages)
    pool.free(pages)
    del cache
    assert pool.num_used in (0, 2)


# Snapshots of the cache itself.


@every_policy
def test_a_restored_cache_goes_on_as_if_nothing_had_happened(policy: str) -> None:
    pair = stored(4, "abcd", "abxy", policy=policy)
    pair.store(spell("abq", 4), "n")
    while pair.matches:
        pair.give_back()
    snapshot, pool_snapshot = pair.cache.snapshot(), pair.pool.snapshot()
    state = cached(pair.cache)
    pair.cache.release(pair.cache.match(spell("abx", 4)))
    pair.cache.restore(snapshot)
    assert cached(pair.cache) == state
    pair.pool.check(held=[])
    copy = PrefixCache(PagePool(2, 4), policy=policy)
    copy.pool.restore(pool_snapshot)
    copy.restore(snapshot)
    assert cached(copy) == state
    assert copy.evict(3) == pair.cache.evict(3)
    assert cached(copy) == cached(pair.cache)
    copy.pool.check(held=[])


def test_matches_of_before_are_void_in_a_restored_cache() -> None:
    pair = stored(4, "abcd")
    snapshot = pair.cache.snapshot()
    match = pair.cache.match(spell("abc", 4))
    pair.cache.restore(snapshot)
    assert pair.cache.num_locked == 0
    with pytest.raises(NotLocked):
        pair.cache.release(match)
    assert not match.locked
    pair.cache.check()


@pytest.mark.parametrize("name", ["match", "pin"])
def test_a_cache_is_restored_while_a_match_is_held(name: str) -> None:
    pair = stored(4, "abcd")
    snapshot, tokens = pair.cache.snapshot(), spell("abc", 4)
    with getattr(pair.cache, name)(tokens) as match:
        assert match.locked
        pair.pool.defragment()
        assert match.locked  # pages that move take their locks along
        pair.cache.restore(pair.cache.snapshot())
        assert (match.locked, match.pinned) == (False, False)
        assert "released" in repr(match)
    with pair.cache.match_batch(tokens, [0, len(tokens)]) as batch:
        pair.cache.restore(snapshot)
        assert not batch.locked
    with pytest.raises(NotLocked):
        pair.cache.release(batch)
    assert pair.cache.num_locked == 0
    pair.cache.check()


def test_a_snapshot_that_does_not_fit_changes_nothing() -> None:
    pair = stored(4, "abcd")
    snapshot = pair.cache.snapshot()
    pair.cache.evict(1)
    match = pair.cache.match(spell("ab", 4))
    before = cached(pair.cache)
    for wrong in (
        snapshot,
        None,
        stored(2, "abc").cache.snapshot(),
        stored(4, "abc", policy="mru").cache.snapshot(),
        PrefixCache(PagePool(8, 4)).snapshot(),
    ):
        with pytest.raises(InvalidArgument):
            pair.cache.restore(wrong)
        assert cached(pair.cache) == before
    pair.cache.release(match)
    assert pair.cache.num_locked == 0
    pair.cache.check()
    pair.pool.check(held=[])
