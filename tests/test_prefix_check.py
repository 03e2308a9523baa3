"""What `check` finds in a prefix cache: each header slot, link, record and list corrupted."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import pytest

from jitalloc import state
from jitalloc._jit import JIT_DISABLED
from jitalloc.errors import CorruptState
from jitalloc.prefix import state as prefix_state
from jitalloc.prefix.state import HASH_MASK, NEVER, NODE_FIELDS, SLAB_END, UNCACHED
from tests.oracle_prefix import PREFIX_POLICIES
from tests.prefix_pairs import PrefixPair, random_turn, spell, stored

TURNS = 20 if JIT_DISABLED else 80
every_policy = pytest.mark.parametrize("policy", PREFIX_POLICIES)


def worn(policy: str = "lru", mask: int = -1) -> PrefixPair:
    """A cache with a history: branches, locks, pins, parked nodes, several namespaces."""
    random, pair = Random(9), PrefixPair(40, 3, policy=policy, protected_share=0.2)
    pair.force_collisions(mask)
    for text in ("abcde", "abxy", "abcq", "zz", "z", "m"):
        pair.store(spell(text, 3), "n" if text < "b" else None)
    for _ in range(TURNS // 2):
        random_turn(pair, random, "abc", 6)
    pair.look_up(spell("abx", 3), "n")
    pair.look_up(spell("ab", 3), "n", "pin")
    pair.must("evict", 3)
    return pair


def assert_found(pair: PrefixPair, what: object) -> str:
    try:
        pair.cache.check()
    except CorruptState as error:
        return str(error)
    pytest.fail(f"check found nothing: {what}")


@every_policy
def test_a_sound_cache_passes_and_stays_as_it_is(policy: str) -> None:
    pair = worn(policy)
    before = pair.cache.arrays.slab.copy()
    assert pair.cache.check() is None
    assert np.array_equal(pair.cache.arrays.slab, before)


@pytest.mark.parametrize("slot", range(SLAB_END + 1))
@pytest.mark.parametrize("policy", ["slru", "priority"])
def test_check_finds_any_header_slot_out_of_range(policy: str, slot: int) -> None:
    pair = worn(policy)
    header = pair.cache.arrays.header
    header[slot] = 7 if slot == HASH_MASK else -7
    assert_found(pair, slot)


EXACT = (
    "PAGES",
    "PREFIX_PAGE_SIZE",
    "POLICY",
    "BUCKET_MASK",
    "NUM_CACHED",
    "NUM_LOCKED",
    "NUM_PINNED",
    "NUM_PROTECTED",
)
EXACT += ("CAPACITY", "DEFAULT", "PIN_BUDGET", "FOLLOWING_AT", "NODES_AT", "TOKENS_AT", "SLAB_END")
EXACT += ("INSERTED", "EVICTED")


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("change", [-1, 1])
def test_check_finds_a_header_slot_off_by_one(name: str, change: int) -> None:
    pair = worn("slru")
    pair.cache.arrays.header[getattr(prefix_state, name)] += change
    assert_found(pair, name)


def firsts(pair: PrefixPair) -> list[int]:
    following = pair.cache.arrays.following_pages.tolist()
    return sorted(~each for each in following if UNCACHED < each < 0)


def assert_all_found(pair: PrefixPair, array: Any, index: Any, values: list[int]) -> None:
    """Put each value there in turn; `check` must find it, and nothing once it is gone."""
    sound = int(array[index])
    for value in values:
        if value != sound:
            array[index] = value
            assert_found(pair, (index, sound, value))
            array[index] = sound
    pair.cache.check()


@every_policy
@pytest.mark.parametrize("name", ["following_pages", "previous_pages"])
def test_check_finds_a_corrupt_link(policy: str, name: str) -> None:
    pair = worn(policy)
    links = getattr(pair.cache.arrays, name)
    pages = np.flatnonzero(pair.cache.arrays.following_pages != UNCACHED).tolist()
    for page in pages:
        sound = int(links[page])
        assert_all_found(
            pair, links, page, [sound + 1, sound - 1, -3, 40, -77, 2**31 - 1, UNCACHED]
        )
    if name == "following_pages":
        (uncached, *_) = set(range(40)) - set(pages)
        assert_all_found(pair, links, uncached, [0, uncached, ~uncached, 40])


@every_policy
def test_check_finds_a_corrupt_stamp(policy: str) -> None:
    pair = worn(policy)
    arrays = pair.cache.arrays
    clock = int(arrays.header[prefix_state.CLOCK])
    for first in firsts(pair):
        assert_all_found(pair, arrays.stamps, first, [0, -3, clock + 1, 2**62])
        following = int(arrays.nodes[first, prefix_state.QUEUE_FOLLOWING])
        if following >= 0:  # the same place twice, and an order that does not ascend
            place = int(arrays.stamps[following])
            assert_all_found(pair, arrays.stamps, first, [place, place + 1])


@every_policy
@pytest.mark.parametrize("field", range(NODE_FIELDS))
def test_check_finds_a_corrupt_record(policy: str, field: int) -> None:
    pair = worn(policy)
    nodes = pair.cache.arrays.nodes
    for first in firsts(pair)[: 3 if JIT_DISABLED else 99]:
        sound = int(nodes[first, field])
        values = [-7, 40, sound + 1, sound - 1, first]
        if field == prefix_state.NODE_LOCKS:
            values = [-7, 0] if sound else [-1, 1]
        elif field == prefix_state.NODE_STATE:
            pins = sound >> prefix_state.PINS_SHIFT
            other = sound - ((pins or -1) << prefix_state.PINS_SHIFT)  # none, or one
            values = [-7, sound ^ prefix_state.QUEUED, other]
        assert_all_found(pair, nodes, (first, field), values)


@pytest.mark.parametrize("mask", [-1, 3])
def test_check_finds_a_corrupt_bucket(mask: int) -> None:
    pair = worn(mask=mask)
    buckets = pair.cache.arrays.buckets
    for i in range(buckets.size):
        assert_all_found(pair, buckets, i, [-7, -1, 40, (int(buckets[i]) + 1) % 40])


@pytest.mark.parametrize("policy", ["lru", "lfu", "priority"])
def test_check_finds_corrupt_queues(policy: str) -> None:
    pair = worn(policy)
    slab = pair.cache.arrays.slab
    filled = slab[prefix_state.FILLED_AT : prefix_state.QUEUE_ENDS_AT].view(np.uint64)
    for queue in (0, 1, 35, 63, 64, 255):
        assert_all_found(pair, filled, queue // 64, [int(filled[queue // 64]) ^ 1 << queue % 64])
    ends = slab[prefix_state.QUEUE_ENDS_AT : prefix_state.EXPIRY_ENDS_AT].view(np.int32)
    for i in range(0, ends.size, 5 if JIT_DISABLED else 1):
        assert_all_found(pair, ends, i, [-7, -1, 40, (int(ends[i]) + 1) % 40])


def test_check_finds_a_corrupt_list_of_expiries() -> None:
    pair = PrefixPair(20, 2, policy="priority")
    for text, lifetime in (("ab", 50), ("cde", 3000), ("f", 50), ("abg", None), ("ah", 90)):
        pair.store(spell(text, 2), priority=60, lifetime=lifetime)
    slab = pair.cache.arrays.slab
    expiries = slab[slab[prefix_state.EXPIRIES_AT] : slab[prefix_state.FOLLOWING_AT]]
    for first in firsts(pair):
        assert_all_found(pair, expiries, first, [-7, 0, 2**40, NEVER, NEVER + 1])
    ends = slab[prefix_state.EXPIRY_ENDS_AT : prefix_state.COLUMNS_AT].view(np.int32)
    for i in range(ends.size):
        assert_all_found(pair, ends, i, [-7, 20, (int(ends[i]) + 1) % 20])
    links = slab[slab[prefix_state.EXPIRY_LINKS_AT] : slab[prefix_state.BUCKETS_AT]].view(np.int32)
    for first in firsts(pair):
        if expiries[first] != NEVER:
            for i in (2 * first, 2 * first + 1):
                assert_all_found(pair, links, i, [-7, 20, (int(links[i]) + 1) % 20, first])


def test_check_finds_tokens_that_belong_into_another_bucket() -> None:
    pair = worn()
    tokens, found, tried = pair.cache.arrays.tokens, 0, 0
    for first in firsts(pair):
        sound = int(tokens[first, 1])
        for value in (0, 1, sound + 1, -1):
            tokens[first, 1] = value
            tried += 1
            try:
                pair.cache.check()
            except CorruptState:
                found += 1
        tokens[first, 1] = sound
    pair.cache.check()
    assert found > 0.8 * tried  # some fall into the bucket they are in


def test_check_finds_equal_siblings() -> None:
    pair = PrefixPair(8, 2)
    for text in ("ab", "ac"):
        pair.store(spell(text, 2))
    tokens = pair.cache.arrays.tokens
    tokens[3] = tokens[1]
    assert_found(pair, "equal siblings")


def test_check_finds_a_cached_page_without_an_owner() -> None:
    pair = stored(4, "abc")
    pair.pool.arrays.refcount[1] = 0
    assert "1" in assert_found(pair, "no owner")
    pair.pool.arrays.refcount[1] = 2
    pair.cache.check()
    with pytest.raises(CorruptState):
        pair.pool.check(held=[])


def test_check_gives_the_lock_back() -> None:
    pair = stored(4, "abc")
    pair.cache.check()
    assert pair.pool.arrays.header[state.LOCK] == 0
