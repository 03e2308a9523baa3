"""Finding the longest prefix: any length is a hit, of several the one used last."""

from __future__ import annotations

from itertools import product
from random import Random

import numpy as np
import pytest

from jitalloc import SlotMatch, SlotPrefixCache
from tests.oracle_slots import common
from tests.slot_pairs import SlotPrefixPair


def test_every_length_is_a_hit() -> None:
    pair = SlotPrefixPair(4, 100)
    tokens = [7 * i % 64 for i in range(100)]
    pair.result("insert", tokens, 5, 2)
    for length in range(1, 101):
        assert pair.result("find", tokens[:length]) == (length, 5, 2)
        assert pair.result("find", [*tokens[:length], -1]) == (length, 5, 2)
    assert pair.result("find", []) is None
    assert pair.result("find", [-1]) is None
    assert pair.result("find", [*tokens, *tokens]) == (100, 5, 2)


def test_of_several_the_one_used_last() -> None:
    pair = SlotPrefixPair(4, 8)
    for slot, tokens in enumerate(([1, 2, 3], [1, 2, 4], [1, 2], [9])):
        pair.result("insert", tokens, slot, 1)
    assert pair.result("find", [1, 2]) == (2, 2, 1)
    assert pair.result("find", [1, 2, 3]) == (3, 0, 1)
    assert pair.result("find", [1, 2, 8]) == (2, 0, 1)
    assert pair.result("find", [1]) == (1, 0, 1)
    pair.result("remove", SlotMatch(2, 0, 1))
    assert pair.result("find", [1, 8]) == (1, 2, 1)


def test_a_longer_query_finds_what_it_continues() -> None:
    pair = SlotPrefixPair(4, 8)
    pair.result("insert", [1, 2], 0, 1)
    pair.result("insert", [1, 2, 3, 4], 1, 1)
    assert pair.result("find", [1, 2, 3, 5]) == (3, 1, 1)
    pair.result("evict")  # the shorter one
    assert pair.result("find", [1, 2, 9]) == (2, 1, 1)


def test_the_tokens_decide_not_the_branches() -> None:
    """Where an edge has other tokens, those further down must not lead astray."""
    pair = SlotPrefixPair(4, 20)
    pair.result("insert", [1, 2, 3, 4, 5, 6, 7, 8], 0, 1)
    pair.result("insert", [1, 2, 3, 4, 5, 6, 9, 9], 1, 1)
    assert pair.result("find", [1, 0, 3, 4, 5, 6, 7, 8]) == (1, 1, 1)
    assert pair.result("find", [1, 2, 3, 4, 0, 6, 7, 8]) == (4, 1, 1)
    pair.result("insert", [1, 2, 3, 0, 5, 6, 7, 8], 2, 1)
    assert pair.result("find", [1, 2, 3, 0, 5, 6, 9, 9]) == (6, 2, 1)


def test_all_short_queries_on_all_short_entries() -> None:
    words = [list(word) for n in (1, 2, 3) for word in product((0, 1), repeat=n)]
    cache = SlotPrefixCache(14, 3)
    for slot, tokens in enumerate(words):
        cache.insert(tokens, slot, 1)
        cache.check()
        for query in words:
            match = cache.find(query)
            longest = max(common(query, each) for each in words[: slot + 1])
            assert (match.length if match else 0) == longest


@pytest.mark.parametrize("place", [0, 1, 63, 64, 65, 127, 128, 199])
def test_the_first_difference_wherever_it_is(place: int) -> None:
    tokens = np.arange(200, dtype=np.int32)
    cache = SlotPrefixCache(4, 200)
    cache.insert(tokens, 0, 1)
    query = tokens.copy()
    query[place:] = -1
    match = cache.find(query)
    assert (match.length if match else 0) == place


def test_tokens_of_any_integer_type_and_layout() -> None:
    cache = SlotPrefixCache(4, 8)
    cache.insert(np.arange(12, dtype=np.uint8)[::2], 0, 1)
    every = (
        [0, 2, 4],
        (0, 2, 4),
        range(0, 6, 2),
        np.array([0, 2, 4], ">i8"),
        np.arange(6, dtype=np.int32)[::2],
    )
    for tokens in every:
        assert cache.find(tokens) == SlotMatch(3, 0, 1)
    read_only = np.array([0, 2, 4], np.int32)
    read_only.flags.writeable = False
    assert cache.find(read_only) == SlotMatch(3, 0, 1)


def test_negative_and_large_tokens() -> None:
    pair = SlotPrefixPair(4, 4)
    for slot, first in enumerate((-1, 2**31 - 1, -(2**31), 0)):
        pair.result("insert", [first, first], slot, 0)
    for slot, first in enumerate((-1, 2**31 - 1, -(2**31), 0)):
        assert pair.result("find", [first, 5]) == (1, slot, 0)


def test_entries_are_copies() -> None:
    cache = SlotPrefixCache(2, 4)
    tokens = np.array([1, 2, 3], np.int32)
    cache.insert(tokens, 0, 1)
    tokens[:] = 0
    assert cache.find([1, 2, 3]) == (3, 0, 1)
    cache.check()


def test_wide_and_deep_trees() -> None:
    wide, deep = SlotPrefixCache(600, 4), SlotPrefixCache(600, 600)
    tokens = np.arange(600, dtype=np.int32)
    for slot in range(600):
        wide.insert([slot, 1], slot, 1)
        deep.insert(tokens[: slot + 1], slot, 1)
    wide.check()
    deep.check()
    order = [*range(600)]
    Random(0).shuffle(order)
    for slot in order:
        assert wide.find([slot, 0]) == (1, slot, 1)
        assert deep.insert(tokens[: slot + 1], slot, 1) is None
        assert deep.find(tokens[: slot + 1]) == (slot + 1, slot, 1)
    wide.check()
    deep.check()
    assert [entry.slot for entry in iter(wide.evict, None)] == order
    assert [entry.slot for entry in iter(deep.evict, None)] == order
    wide.check()
    deep.check()
