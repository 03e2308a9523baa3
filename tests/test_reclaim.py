"""Who gives way: every policy beside a sorted list of all pages."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import pytest

from jitalloc._jit import JIT_DISABLED
from jitalloc.errors import OUT_OF_PAGES, unpack_status
from jitalloc.pool import state
from jitalloc.sequences.loops.sharing import sharing_room_cpu
from tests.oracle_prefix import PREFIX_POLICIES
from tests.prefix_pairs import PrefixPair, cached, freed, random_turn, spell

TURNS = 40 if JIT_DISABLED else 250
every_policy = pytest.mark.parametrize("policy", PREFIX_POLICIES)


# Beside the model.


@every_policy
@pytest.mark.parametrize("page_size", [1, 4])
@pytest.mark.parametrize("seed", range(3))
def test_victims_come_in_the_order_of_the_model(policy: str, page_size: int, seed: int) -> None:
    random, pair = Random(seed), PrefixPair(20, page_size, policy=policy, protected_share=0.3)
    for _ in range(TURNS):
        random_turn(pair, random, "ab" if seed else "abcdef", 8)
    pair.drain()


@every_policy
@pytest.mark.parametrize("batch", [1, 3, 64])
def test_victims_come_in_the_same_order_whatever_the_batch(policy: str, batch: int) -> None:
    # The freelist of order fifo shows the order, and the model beside it agrees.
    random, pair = Random(11), PrefixPair(60, 2, policy=policy, protected_share=0.5)
    for _ in range(TURNS // 2):
        random_turn(pair, random, "abc", 12)
    while pair.matches:
        pair.give_back(0)
    while pair.cache.num_cached:
        pair.must("evict", batch)


@every_policy
def test_exactly_so_many_go(policy: str) -> None:
    pair = PrefixPair(32, 4, policy=policy)
    for text in ("abcd", "abxy", "ghij", "abcz"):
        pair.store(spell(text, 4))
    pair.look_up(spell("abc", 4))
    evictable = pair.cache.num_evictable
    assert evictable == len(pair.cache) - 3
    assert pair.must("evict", 0) == 0
    assert pair.must("evict", 2) == 2
    assert pair.must("evict", 100) == evictable - 2
    assert pair.must("evict", 1) == 0
    pair.give_back()
    assert pair.must("evict", 100) == 3


@every_policy
def test_a_page_that_somebody_else_holds_leaves_the_index_only(policy: str) -> None:
    pair = PrefixPair(8, 4, policy=policy)
    mine = pair.result("alloc", 2)
    pair.must("insert", spell("ab", 4), mine)
    assert pair.must("evict", 2) == 2
    assert pair.pool.refcount(mine).tolist() == [1, 1]
    pair.must("insert", spell("cd", 4), mine[::-1])  # and can come back under another name
    assert pair.pages_of(spell("cd", 4)) == mine[::-1]


@every_policy
def test_what_is_locked_stays(policy: str) -> None:
    random, pair = Random(5), PrefixPair(24, 2, policy=policy)
    for _ in range(TURNS // 4):
        random_turn(pair, random, "abc", 6)
        held = {page for match, _ in pair.matches for page in match.pages.tolist()}
        pair.must("evict", 24)
        kept = {node.page for node in pair.cache_model.nodes.values()}
        assert kept == held
        assert pair.cache.num_locked == len(held)


def victims(pair: PrefixPair) -> str:
    """The letters in the order in which their pages would go, by evicting them all."""
    letters = {node.page: chr(node.key[1][-1] // 1000) for node in pair.cache_model.nodes.values()}
    return "".join(letters[page] for page in pair.drain())


def made(policy: str, *texts: str, **options: Any) -> PrefixPair:
    pair = PrefixPair(32, 2, policy=policy, **options)
    for text in texts:
        pair.store(spell(text, 2))
    return pair


def use(pair: PrefixPair, text: str, times: int = 1) -> None:
    for _ in range(times):
        pair.look_up(spell(text, 2))
        pair.give_back()


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("lru", "xbafedc"),
        ("fifo", "dcxbafe"),
        ("mru", "dcfexba"),
        ("lfu", "xbadcfe"),
        ("slru", "xbafedc"),
        ("priority", "xbafedc"),
    ],
)
def test_the_policies_by_hand(policy: str, expected: str) -> None:
    pair = made(policy, "ab", "cd", "abx", "ef")
    use(pair, "ef", 2)
    use(pair, "cd")
    assert victims(pair) == expected


# Expiry, by policy priority.


def test_the_lowest_priority_goes_first() -> None:
    pair = made("priority")
    for text, priority in (("ab", 80), ("cd", 0), ("e", None), ("acx", 50), ("f", 100)):
        pair.store(spell(text, 2), priority=priority)
    assert victims(pair) == "dcexcbaf"


def test_a_priority_is_raised_never_lowered() -> None:
    pair = made("priority")
    pair.store(spell("ab", 2), priority=50)
    pair.store(spell("a", 2), priority=10)
    pair.store(spell("cd", 2), priority=40)
    pair.store(spell("c", 2), priority=60)
    assert victims(pair) == "dbac"


def test_a_priority_expires() -> None:
    pair = made("priority")
    pair.store(spell("a", 2), priority=90, lifetime=20)
    pair.store(spell("b", 2), priority=40)
    pair.store(spell("c", 2), priority=1, lifetime=20)  # falls back upwards
    pair.store(spell("d", 2), priority=90, lifetime=2)
    for _ in range(20):
        pair.call("free", pair.result("alloc", 1))
    pair.store(spell("e", 2), priority=36)
    assert victims(pair) == "daceb"


def test_a_later_expiry_wins_at_equal_priority() -> None:
    pair = made("priority")
    pair.store(spell("ab", 2), priority=50, lifetime=5)
    pair.store(spell("a", 2), priority=50, lifetime=100)
    pair.store(spell("c", 2), priority=50, lifetime=100)
    pair.store(spell("c", 2), priority=50, lifetime=1)
    for _ in range(10):
        pair.call("merge")
    pair.must("evict", 0)
    assert victims(pair) == "bac"


def test_pages_that_expire_together_do_so_in_the_order_of_arming() -> None:
    pair, end = made("priority"), 60
    for text in "aba":  # the second time it is no longer than it was: not armed again
        page = pair.result("alloc", 1)
        lifetime = end - pair.model.step
        pair.must("insert", spell(text, 2), page, priority=50, lifetime=lifetime)
        pair.call("free", page)
    while pair.model.step < end:
        pair.call("merge")
    pair.must("evict", 0)
    assert victims(pair) == "ab"


@pytest.mark.parametrize("seed", range(4))
def test_pages_that_expire_at_far_and_equal_steps(seed: int) -> None:
    random, pair = Random(seed), PrefixPair(40, 1, policy="priority", default_priority=20)
    for i in range(TURNS):
        text = "".join(random.choices("abc", k=random.randrange(1, 6)))
        lifetime = random.choice((1, 2, 7, 64, 65, 1000, 2**40, None))
        pair.store(spell(text, 1), priority=random.choice((0, 20, 21, 100)), lifetime=lifetime)
        if i % 4 == 0:
            pair.pool.arrays.header[state.STEP] += 2 ** random.randrange(12)
            pair.model.step = pair.pool.step
        if i % 3 == 0:
            pair.must("evict", random.randrange(3))
    pair.drain()


# Segments.


def test_protected_pages_beyond_their_share_are_put_on_probation() -> None:
    pair = PrefixPair(10, 2, policy="slru", protected_share=0.3)  # three pages
    for text in "abcdef":
        pair.store(spell(text, 2))
    for text in "abcd":
        use(pair, text)
    pair.store(spell("g", 2))
    assert victims(pair) == "efagbcd"


def test_a_page_put_on_probation_is_protected_again_when_used() -> None:
    pair = PrefixPair(10, 2, policy="slru", protected_share=0.2)
    for text in "abcd":
        pair.store(spell(text, 2))
    for text in "abca":
        use(pair, text)
    assert victims(pair) == "dbca"


def test_part_of_a_path_is_put_on_probation() -> None:
    pair = PrefixPair(20, 2, policy="slru", protected_share=0.25)  # five pages
    pair.store(spell("abcdefgh", 2))
    use(pair, "abcdefgh")
    pair.store(spell("xyz", 2))
    use(pair, "xy")
    assert victims(pair) == "hgfzedcbayx"


@pytest.mark.parametrize("share", [0.0, 0.05, 1.0])
def test_shares_at_the_ends(share: float) -> None:
    random, pair = Random(8), PrefixPair(20, 1, policy="slru", protected_share=share)
    for _ in range(TURNS):
        random_turn(pair, random, "abc", 8)
    pair.drain()


# Counters that saturate.


def test_uses_stop_at_255() -> None:
    pair = made("lfu", "ab", "c", "d")
    cache = pair.cache
    tokens = {text: np.array(spell(text, 2), np.int32) for text in ("ab", "c", "d")}
    for text, times in (("d", 256), ("c", 255), ("ab", 300)):
        for _ in range(times):
            cache.release(cache.match(tokens[text]))
    assert [cache.evict(1) for _ in range(4)] == [1] * 4
    assert freed(cache.pool, 4) == [3, 2, 1, 0]  # as at a tie


def test_pages_with_other_locks_stay_apart_when_their_uses_are_equal() -> None:
    pair = made("lru", "abcd")
    tokens = spell("abcd", 2)
    for cache in (pair.cache, pair.cache_model):
        for _ in range(256):
            cache.release(cache.match(tokens))
    pair.look_up(tokens[:4])
    pair.store(tokens)
    assert pair.must("evict", 9) == 2
    pair.give_back()
    pair.drain()


# What an eviction would free.


def held_too(pair: PrefixPair, letters: str) -> list[int]:
    """The user owns the pages of these letters too."""
    nodes = pair.cache_model.nodes.values()
    pages = [each.page for each in nodes if chr(each.key[1][-1] // 1000) in letters]
    pair.call("share", pages)
    return pages


def reclaim(pair: PrefixPair, n: int) -> str:
    """Make room for `n` pages more than are free; return the letters whose pages gave way."""
    letters = {node.page: chr(node.key[1][-1] // 1000) for node in pair.cache_model.nodes.values()}
    need = pair.model.available + n
    victims: list[int] = []

    def model() -> int:
        if n > pair.cache_model.reclaimable():
            return -1
        before = dict(pair.cache_model.nodes)
        pair.cache_model._expire()
        gone = pair.cache_model.reclaim(n)
        pair.model.step += 1
        victims.extend(
            node.page for key, node in before.items() if key not in pair.cache_model.nodes
        )
        return gone

    def library() -> int:
        status = pair.cache._run(sharing_room_cpu, need)
        if status < 0:
            assert unpack_status(status) == (
                OUT_OF_PAGES,
                pair.model.available + pair.cache_model.reclaimable(),
            )
        return max(status, -1)

    pair.compare(library, model)
    return "".join(sorted(letters[page] for page in victims))


@every_policy
def test_pages_that_somebody_else_owns_stay_while_others_go_free(policy: str) -> None:
    pair = made(policy, "ab", "cd", "ef")
    held_too(pair, "bdf")
    assert pair.cache_model.reclaimable() == 3  # each behind one that stays if it can
    pair.store(spell("gh", 2))
    assert reclaim(pair, 2) == "gh"
    assert len(reclaim(pair, 1)) == 2
    assert len(reclaim(pair, 2)) == 4
    assert pair.cache.num_cached == 0


@every_policy
def test_what_cannot_be_made_room_for_stays_as_it_was(policy: str) -> None:
    pair = made(policy, "abc", "abd", "ef")
    pages = held_too(pair, "be")
    before = cached(pair.cache)
    assert reclaim(pair, 5) == ""
    assert cached(pair.cache) == before
    pair.call("free", pages)
    assert reclaim(pair, 6) == "abcdef"


@every_policy
def test_what_hides_nothing_stays_to_the_end(policy: str) -> None:
    pair = made(policy, "ab", "cd")
    held_too(pair, "cbd")
    assert reclaim(pair, 1) == "ab"
    assert reclaim(pair, 1) == ""
    assert pair.cache.num_cached == 2


@every_policy
@pytest.mark.parametrize("seed", range(3))
def test_what_goes_free_beside_the_model(policy: str, seed: int) -> None:
    random, pair = Random(f"{policy} {seed}"), PrefixPair(30, 2, policy=policy, protected_share=0.3)
    for _ in range(TURNS):
        random_turn(pair, random, "ab" if seed else "abcd", 8)
        if random.random() < 0.2:
            held_too(pair, random.choice("abcd"))
        elif random.random() < 0.2:
            held = pair.held()
            pair.call("free", random.sample(held, random.randrange(len(held) + 1)))
        elif random.random() < 0.3:
            reclaim(pair, random.randrange(1, 6))
    while pair.cache_model.reclaimable():
        reclaim(pair, random.randrange(1, 3))
    pair.call("free", pair.held())
    pair.drain()


@every_policy
def test_who_gives_way_is_told(policy: str) -> None:
    pair = made(policy, "ab", "cd", "abx", "ef")
    expected = []
    while pair.cache_model.nodes:
        expected += [pair.cache_model.victims()[0].page]
        pair.cache_model._evict(1, "requested")
    out = np.full(32, -7, np.int32)
    assert pair.cache.evict(2, out=out) == 2
    assert out[2] == -7
    rest = np.full(32, -7, np.int32)
    assert pair.cache.evict(10**6, out=rest) == len(expected) - 2
    assert [*out[:2].tolist(), *rest[: len(expected) - 2].tolist()] == expected
