"""Finding and keeping prefixes: match, insert, release, namespaces, partial matches."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import pytest

from jitalloc import PagePool, PrefixCache
from jitalloc._jit import JIT_DISABLED
from jitalloc.state import INT32_MAX
from tests.oracle_prefix import PREFIX_POLICIES
from tests.prefix_pairs import PrefixPair, cached, random_turn, spell, stored

SIZES = (1, 2, 3, 5, 16, 64)
WALKS = 25 if JIT_DISABLED else 120
page_sizes = pytest.mark.parametrize("page_size", SIZES)


# Match and insert.


@page_sizes
def test_the_longest_prefix_in_whole_pages_is_found(page_size: int) -> None:
    pair = stored(page_size, "abcd", "abxy", "q")
    for text in ("abcd", "abxyz", "abc", "ab", "abq", "q", "qa", "zab", ""):
        tokens = spell(text, page_size)
        pair.look_up(tokens)
        pair.look_up(tokens + spell("e", page_size)[: page_size - 1])
        pair.look_up(tokens[:-1])
    assert pair.pages_of(spell("abxy", page_size)) == [0, 1, 6, 7]
    pair.drain()


@page_sizes
@pytest.mark.parametrize("pages", [1, 2, 63, 64, 65, 130])
def test_prompts_of_many_pages(page_size: int, pages: int) -> None:
    pair = PrefixPair(300, page_size)
    tokens = list(range(pages * page_size))
    pair.store(tokens)
    assert len(pair.pages_of([*tokens, 1])) == pages
    for at in {0, page_size - 1, len(tokens) // 2, len(tokens) - 1}:  # one token differs
        other = [*tokens[:at], INT32_MAX, *tokens[at + 1 :]]
        assert len(pair.pages_of(other)) == at // page_size
    pair.store([*tokens[: len(tokens) // 2], *range(5, 5 + page_size)])
    pair.store([*tokens, *range(7, 7 + 2 * page_size)])
    pair.drain()


@page_sizes
def test_scattered_pages_are_compared_like_consecutive_ones(page_size: int) -> None:
    random, pair = Random(page_size), PrefixPair(200, page_size, order="fifo")
    pages = pair.result("alloc", 200)
    random.shuffle(pages)
    pair.call("free", pages)  # they go out in this order
    tokens = list(range(140 * page_size))
    pair.store(tokens)
    assert len(pair.pages_of(tokens)) == 140
    for at in (0, 63, 64, 100, 139):
        last = (at + 1) * page_size - 1
        assert len(pair.pages_of([*tokens[:last], INT32_MAX, *tokens[last + 1 :]])) == at


def test_pages_present_already_come_back_instead_of_duplicates() -> None:
    pair = stored(4, "ab")
    mine = pair.result("alloc", 3)
    pages, present, new = pair.must("insert", spell("abc", 4), mine)
    assert (pages, present, new) == ([0, 1, mine[2]], 2, 1)
    assert pair.pool.refcount(mine).tolist() == [1, 1, 2]
    assert pair.call("free", mine) == ("returned", 2)
    assert pair.must("insert", spell("ab", 4), [0, 1]) == ([0, 1], 2, 0)


def test_a_partly_filled_page_is_not_cached() -> None:
    pair = PrefixPair(8, 4)
    mine = pair.result("alloc", 2)
    assert pair.must("insert", spell("abc", 4)[:-1], mine)[2] == 2
    assert pair.must("insert", [1, 2, 3], []) == ([], 0, 0)
    assert pair.must("insert", [], []) == ([], 0, 0)
    assert pair.pages_of(spell("abc", 4)) == mine


def test_an_empty_match_can_be_released() -> None:
    pair = PrefixPair(8, 4)
    for tokens in ([], [1, 2, 3], [1, 2, 3, 4]):
        assert pair.pages_of(tokens) == []
        pair.give_back()


def test_a_match_releases_itself_at_the_end_of_its_block() -> None:
    pair = stored(4, "ab")
    with pair.cache.match(spell("ab", 4)) as match:
        assert (pair.cache.num_locked, match.locked, match.num_tokens) == (2, True, 8)
    assert (pair.cache.num_locked, match.locked) == (0, False)
    with pair.cache.match(spell("ab", 4)) as match:
        pair.cache.release(match)  # earlier, by hand
    assert pair.cache.num_locked == 0
    pair.cache.check()


def test_a_lock_on_a_path_outlives_what_grows_and_branches_behind_it() -> None:
    pair = stored(4, "abcd")
    pair.look_up(spell("abcd", 4))
    pair.store(spell("abxy", 4))
    pair.store(spell("abcdef", 4))
    pair.look_up(spell("abc", 4))
    pair.must("evict", 64)
    assert pair.cache.num_cached == 4
    pair.give_back(0)
    pair.must("evict", 64)
    assert pair.cache.num_cached == 3
    pair.drain()


DTYPES = (np.int32, np.int64, np.uint8, np.uint16, np.uint64, np.int8, ">i4")


@page_sizes
@pytest.mark.parametrize("dtype", DTYPES)
def test_tokens_of_any_integer_type(page_size: int, dtype: Any) -> None:
    cache = PrefixCache(PagePool(8, page_size))
    tokens = (np.arange(3 * page_size + page_size // 2) % 120).astype(dtype)
    assert cache.insert(tokens, cache.pool.alloc(3)).num_new == 3
    wide = np.repeat(tokens, 2)
    for same in (tokens, wide[::2], tokens.tolist(), tuple(tokens.tolist()), tokens[::-1][::-1]):
        with cache.match(same) as match:
            assert match.pages.tolist() == [0, 1, 2]
    tokens.flags.writeable = False
    assert cache.insert(tokens, [0, 1, 2]).num_present == 3
    cache.pool.check(held=[0, 1, 2])


def test_the_largest_token() -> None:
    pair = PrefixPair(8, 2)
    pair.store([INT32_MAX, 0, INT32_MAX, INT32_MAX])
    assert len(pair.pages_of([INT32_MAX, 0, INT32_MAX, INT32_MAX])) == 2


# Namespaces.


def test_namespaces_do_not_see_each_other() -> None:
    pair, tokens = PrefixPair(32, 4), spell("abc", 4)
    spaces: tuple[Any, ...] = (None, "a", ("b", 1), 0, False, b"x", frozenset({1}))
    for namespace in spaces:
        pair.store(tokens, namespace)
    assert pair.cache.num_cached == 18  # 0 and False are equal
    assert pair.pages_of(tokens, "a") == [3, 4, 5]
    assert pair.pages_of(tokens, "unknown") == []
    assert pair.pages_of(spell("abx", 4), ("b", 1)) == [6, 7]
    pair.drain()


def test_namespaces_come_and_go() -> None:
    cache = PrefixCache(PagePool(8, 1), policy="fifo")
    for i in range(500 if JIT_DISABLED else 5000):
        page = cache.pool.alloc(1)
        cache.insert([i % 3], page, namespace=("adapter", i))
        cache.pool.free(page)
        for name, found in ((i, 1), (i - 4, i >= 4), (i - 5, 0)):
            with cache.match([name % 3], namespace=("adapter", name)) as match:
                assert match.num_pages == found
        if i >= 4:
            cache.evict(cache.num_cached - 4)
    assert cache.num_cached == 4
    cache.check()


# Partial matches.


def test_a_partial_match_says_how_the_next_page_begins() -> None:
    pair = PrefixPair(32, 4)
    pair.store([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12])
    for tokens in (
        [1, 2, 9],
        [1, 2, 3],
        [1],
        [2],
        [1, 2, 3, 9, 5],
        [1, 2, 3, 4],
        [1, 2, 3, 4, 5, 6, 7, 9],
        [1, 2, 3, 4, 5, 6, 7, 8, 9, 10],
        [*range(1, 13), 13],
    ):
        for namespace in (None, "other"):
            pair.look_up(tokens, namespace)
    match = pair.cache.match([1, 2, 3, 4, 5, 6, 0])
    assert (match.num_pages, match.partial_page, match.partial_tokens) == (1, 1, 2)
    assert pair.cache.num_locked == 3  # by earlier ones; the partial page is not locked
    pair.cache.release(match)


@pytest.mark.parametrize("parent", [[], [9, 9, 9, 9]])
def test_the_longest_agreement_wins_then_the_most_recent(parent: list[int]) -> None:
    pair = PrefixPair(64, 4)
    for tail in ([1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 6, 6], [1, 7, 7, 7]):
        pair.store(parent + tail)
    for tail in ([1, 2, 3, 0], [1, 2, 3], [1, 2], [1], [1, 7, 0, 0], [5], [1, 2, 6, 6], [1, 2]):
        pair.look_up(parent + tail)
    pair.look_up([*parent, 1, 2, 3, 4], name="pin")
    pair.look_up([*parent, 1, 2, 3])
    pair.must("insert", [*parent, 1, 2, 3, 5], pair.pages_of([*parent, 1, 2, 3, 5]))
    pair.look_up([*parent, 1, 2, 3])
    pair.drain()


@pytest.mark.parametrize("parent", [[], [9, 9, 9, 9]])
def test_a_partial_match_looks_at_so_many_children(parent: list[int]) -> None:
    pair = PrefixPair(128, 4)
    for i in range(40):
        pair.store([*parent, i, i, i, i])
    for i in (39, 8, 7, 0):
        pair.look_up([*parent, i, i])
    pair.look_up([*parent, 7, 7, 7, 7])
    for i in (7, 8, 9):
        pair.look_up([*parent, i, i])


def test_the_tops_of_other_namespaces_stand_between() -> None:
    pair = PrefixPair(128, 4)
    pair.store([1, 1, 1, 1], "mine")
    for i in range(63):
        pair.store([i, 0, 0, 0], "other")
    assert pair.look_up([1, 1], "mine")[1][2] == (0, 2)
    pair.store([77, 0, 0, 0], "other")
    assert pair.look_up([1, 1], "mine")[1][2] == (-1, 0)
    pair.look_up([1, 1, 1, 1], "mine")
    assert pair.look_up([1, 1], "mine")[1][2] == (0, 2)


# Collisions.


@pytest.mark.parametrize("mask", [0, 1])
def test_tokens_are_compared_whatever_the_hash(mask: int) -> None:
    for page_size in (1, 4):
        random, pair = Random(3), PrefixPair(24, page_size, "sorted")
        pair.force_collisions(mask)
        for _ in range(WALKS):
            random_turn(pair, random, "abcd", 4)
        pair.drain()


PATTERNS: dict[str, Callable[[int, int], tuple[int, int]]] = {
    "counted": lambda i, _at: (i, 0),
    "strides": lambda i, _at: (i * 4096, 0),
    "high bits": lambda i, _at: (i << 18, 1),
    "behind": lambda i, _at: (7, i),
    "both": lambda i, _at: (i, i),
    "like its page": lambda _i, at: (at, 0),
    "like its parent": lambda i, at: (at % 64, i // 64),
    "against its parent": lambda i, at: (at ^ (at % 64), 1),
}


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("page_size", [2, 3, 16])
def test_patterns_of_tokens_spread_over_the_buckets(name: str, page_size: int) -> None:
    leaves = 500 if JIT_DISABLED else 4000
    cache = PrefixCache(PagePool(leaves + 64, page_size))
    parents, pages = cache.pool.alloc(64), cache.pool.alloc(leaves)
    tokens = np.zeros((2, page_size), np.int32)
    for i, page in enumerate(pages.tolist()):
        parent = int(parents[page % 64])
        tokens[0, 0] = parent
        tokens[1, :2] = PATTERNS[name](i, page)
        cache.insert(tokens.ravel(), [parent, page])
    buckets = cache.arrays.buckets
    expected = buckets.size * (1 - np.exp(-cache.num_cached / buckets.size))
    assert np.count_nonzero(buckets >= 0) > 0.9 * expected


# Histories.


@page_sizes
@pytest.mark.parametrize("order", ["sorted", "lifo"])
def test_any_history_agrees_with_the_model(page_size: int, order: str) -> None:
    random, pair = Random(page_size), PrefixPair(24, page_size, order, order == "lifo")
    for _ in range(WALKS):
        random_turn(pair, random)
    pair.drain()


# Looks without locks.


every_policy = pytest.mark.parametrize("policy", PREFIX_POLICIES)


@page_sizes
def test_a_lookup_says_what_a_match_finds_and_changes_nothing(page_size: int) -> None:
    pair = stored(page_size, "abcd", "abxy", "q")
    for text in ("abcd", "abxyz", "abc", "ab", "abq", "q", "qa", "zab", ""):
        tokens = spell(text, page_size)
        for some in (tokens, tokens[:-1], [*tokens[:-1], 1], [*tokens, 97001]):
            before = pair.cache._slab.copy()
            found = pair.must("lookup", some)
            assert np.array_equal(pair.cache._slab, before)  # no node is split either
            pair.look_up(some)
            assert found == (found[0], pair.matches[-1][1].pages, *pair.matches[-1][1].partial)
            pair.give_back()


# By the policy priority the step of the call counts too, and a match and its release are two.
@pytest.mark.parametrize("policy", [each for each in PREFIX_POLICIES if each != "priority"])
@pytest.mark.parametrize("seed", range(3))
def test_a_touch_is_a_match_that_is_released_at_once(policy: str, seed: int) -> None:
    pairs = [PrefixPair(24, 2, policy=policy, protected_share=0.4) for _ in range(2)]
    randoms = [Random(seed) for _ in pairs]
    for _ in range(WALKS):
        for pair, random in zip(pairs, randoms, strict=True):
            random_turn(pair, random, "ab", 6)
            tokens = spell("".join(random.choices("ab", k=4)), 2)
            if pair is pairs[0]:
                pair.must("touch", tokens)
                pair.call("free", pair.result("alloc", 0))  # two steps more, as the other takes
            else:
                pair.look_up(tokens)
                pair.give_back()
        assert cached(pairs[0].cache) == cached(pairs[1].cache)
    assert pairs[0].drain() == pairs[1].drain()


def test_a_match_is_capped() -> None:
    pair = stored(4, "abc")
    tokens = spell("abc", 4)
    for most, pages, partial in (
        (12, 3, 0),
        (11, 2, 3),
        (8, 2, 0),
        (3, 0, 3),
        (0, 0, 0),
        (99, 3, 0),
    ):
        pair.look_up(tokens, max_tokens=most)
        match = pair.matches[-1][0]
        assert (match.num_pages, match.partial_tokens) == (pages, partial)
        pair.give_back()
    stats = pair.cache.stats()
    assert (stats.tokens, stats.hit_pages) == (6 * 12, 10)  # all of them were asked for
    with pair.cache.match_batch(tokens * 2, [0, 12, 24], max_tokens=[11, 5]) as batch:
        assert batch.num_tokens.tolist() == [8, 4]
        assert batch.partial_tokens.tolist() == [3, 1]
    with pair.cache.match_batch(tokens * 2, [0, 12, 24], max_tokens=4) as batch:
        assert batch.num_tokens.tolist() == [4, 4]


# Pages that turned out bad.


@every_policy
def test_bad_pages_go_with_all_that_follow_them(policy: str) -> None:
    pair = stored(4, "abcd", "abxy", "qr", policy=policy)
    (bad,) = (each.page for each in pair.cache_model.nodes.values() if each.tokens[-4] == 98000)
    pair.call("share", [bad])
    assert pair.must("invalidate", pages=[bad]) == (5, 4)  # the user still has that one
    assert pair.must("lookup", spell("abcd", 4))[0] == 4
    assert pair.must("invalidate", spell("qr", 4), start=4) == (1, 1)
    assert pair.must("invalidate", spell("qr", 4), start=4) == (0, 0)
    assert pair.must("invalidate", spell("a", 4)[:3]) == (0, 0)
    assert pair.must("invalidate", spell("azz", 4), "elsewhere") == (0, 0)
    assert pair.must("invalidate", spell("azz", 4)) == (1, 1)
    assert pair.must("invalidate", pages=[]) == (0, 0)
    assert pair.cache.num_cached == 1


@every_policy
def test_bad_pages_that_are_locked_are_not_found_any_more(policy: str) -> None:
    pair = stored(4, "abcd", "abx", policy=policy)
    tokens = spell("abcd", 4)
    pair.look_up(spell("abc", 4))
    path = pair.matches[-1][0].pages.tolist()
    assert pair.must("invalidate", pages=[path[1], path[2]]) == (2, 2)  # d and x
    assert pair.must("lookup", tokens) == (4, path[:1], -1, 0)
    assert pair.must("touch", tokens) == 4
    pair.store(tokens)  # computed again
    again = pair.pages_of(tokens)
    assert not {*again[1:]} & {*path}
    assert pair.must("invalidate", tokens, start=4) == (0, 0)
    pair.store(tokens)
    assert pair.must("lookup", tokens)[1][1:] not in (again[1:], path[1:])
    pair.call("defragment")
    pair.give_back(0)
    pair.give_back()
    assert pair.must("lookup", tokens)[0] == 16
    assert len(pair.drain()) == 9
