"""Sequences that share cached pages, against the model and by hand."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from jitalloc import PagedKVCache, PagePool
from jitalloc._jit import JIT_DISABLED
from jitalloc.errors import CorruptState, InvalidArgument, OutOfPages, PageCached
from jitalloc.sequences.state import COMPUTED, KNOWN, LOCK_END, LOCKED
from tests.sharing_pairs import STEPS, SharingPair, random_turn

ONE, TWO = list(range(100, 110)), list(range(200, 210))  # two pages of four tokens, and a half


@pytest.fixture
def both() -> SharingPair:
    """Sixteen pages of four tokens, six rows of eight pages, nothing cached."""
    return SharingPair()


PAIRS: list[dict[str, Any]] = [
    {},
    {"order": "fifo", "policy": "fifo", "null_page": True},
    {"order": "lifo", "policy": "mru", "page_size": 3, "num_pages": 20},
    {"policy": "lfu", "page_size": 1, "max_pages": 20, "num_pages": 30, "eviction": "lfu"},
    {"policy": "slru", "protected_share": 0.3, "num_pages": 24, "eviction": "streaming"},
    {"policy": "priority", "page_size": 2, "num_pages": 24, "max_pages": 12, "eviction": "longest"},
]


@pytest.mark.parametrize("options", PAIRS, ids=lambda each: str(each.get("policy", "lru")))
@pytest.mark.parametrize("seed", range(2 if JIT_DISABLED else 8))
def test_random_histories(options: dict[str, Any], seed: int) -> None:
    random, pair = Random(f"{options} {seed}"), SharingPair(**options)
    for _ in range(120 if JIT_DISABLED else 200):
        random_turn(pair, random)
    assert pair.prefix_model.hit_pages, "nothing was ever shared"


class Machine(RuleBasedStateMachine):
    """Any call in any order; `SharingPair` compares after each."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = SharingPair(order="fifo", num_pages=12)

    @rule(step=st.sampled_from(list(STEPS)), seed=st.integers(0, 2**32))
    def turn(self, step: Any, seed: int) -> None:
        step(self.pair, Random(seed))

    @precondition(lambda self: self.pair.cache_model.rows)
    @rule(seed=st.integers(0, 2**32))
    def grow(self, seed: int) -> None:
        """Prompts that go on as others did: duplicates meet at the commit."""
        random = Random(seed)
        rows = sorted(self.pair.cache_model.rows)[:2]
        n = random.randrange(1, 6)
        self.pair.do("append_batch", rows, [n] * len(rows), tokens=[7] * n * len(rows))

    @invariant()
    def sound(self) -> None:
        self.pair.prefix.check()


TestMachine = Machine.TestCase
if JIT_DISABLED:
    TestMachine.settings = settings(max_examples=40)


def test_pages_are_shared_and_locked(both: SharingPair) -> None:
    assert both.must("allocate", "a", tokens=ONE) == 0
    both.must("commit", "a")
    assert both.must("allocate", "b", tokens=[*ONE[:8], 1, 2, 3]) == 8
    a, b = (both.cache.sequence(seq_id).pages.tolist() for seq_id in "ab")
    assert a[:2] == b[:2]
    assert a[2] != b[2]
    assert both.prefix.num_locked == 2
    both.must("free", "a")
    assert both.prefix.num_locked == 2
    both.must("free", "b")
    assert (both.prefix.num_cached, both.prefix.num_locked) == (2, 0)


def test_two_that_compute_the_same_meet_at_the_commit(both: SharingPair) -> None:
    for seq_id in "ab":
        both.must("allocate", seq_id, tokens=ONE)
    used = both.pool.num_used
    assert [both.must("commit", seq_id) for seq_id in "ab"] == [8, 8]
    assert both.pool.num_used == used - 2
    a, b = (both.cache.sequence(seq_id).pages.tolist() for seq_id in "ab")
    assert a[:2] == b[:2]


def test_an_append_publishes_nothing(both: SharingPair) -> None:
    both.must("allocate", "a", tokens=[1, 2, 3])
    both.must("append", "a", tokens=[4, 5, 6, 7, 8, 9])
    assert both.prefix.num_cached == 0
    assert both.must("commit", "a") == 8
    both.must("append", "a", tokens=[10, 11, 12, 13])
    assert both.prefix.num_cached == 2
    assert both.must("commit", "a") == 12  # one page behind what it has locked: `grow_node`
    assert both.must("allocate", "b", tokens=[1, 2, 3, 4, 9]) == 4
    assert both.prefix.num_locked == 3
    both.must("free", "a")
    assert both.prefix.num_cached == 3


def test_pages_filled_by_appends_enter_at_the_end(both: SharingPair) -> None:
    both.must("allocate", "a", tokens=[1])
    for token in range(2, 10):
        both.must("append", "a", tokens=[token])
    both.must("free", "a")
    assert both.must("allocate", "b", tokens=list(range(1, 10))) == 8


def test_what_is_not_computed_is_not_published(both: SharingPair) -> None:
    prompt = list(range(32))
    both.must("allocate", "a", tokens=prompt)
    assert both.must("commit", "a", 8) == 8
    assert both.must("allocate", "b", tokens=prompt) == 8
    assert both.must("commit", "a", tokens=prompt[:18]) == 16  # as many as are told
    assert both.must("commit", "a", 3) == 16  # fewer change nothing
    both.must("free", "a")
    assert both.prefix.num_cached == 4
    both.must("free", "b")  # two pages that it found, six that it never read
    assert both.prefix.num_cached == 4


def test_the_token_appended_last_is_not_computed(both: SharingPair) -> None:
    for seq_id, computed in (("a", True), ("b", False)):
        both.must("allocate", seq_id, tokens=[1, 2, 3], namespace=seq_id)
        both.must("append", seq_id, tokens=[4, 5, 6, 7], computed=computed)
        assert both.cache.sequence(seq_id).num_computed == (3 if computed else 0)
        both.must("append", seq_id, 1, tokens=[8])
        both.must("append", seq_id, 0)
        assert both.cache.sequence(seq_id).num_computed == 7
        both.must("free", seq_id)
        assert both.must("allocate", seq_id, tokens=list(range(1, 9)), namespace=seq_id) == 4
        assert both.must("commit", seq_id) == 8
        both.must("free", seq_id)


def test_a_commit_answers_no_more_than_the_sequence_has(both: SharingPair) -> None:
    both.must("allocate", "a", tokens=ONE)
    both.must("commit", "a")
    both.must("truncate", "a", 6)
    assert both.must("commit", "a") == 6  # its last page is cached, and cut
    both.must("fork", "a", "b")
    assert both.must("commit_batch", [both.row("a"), both.row("b")]) == [6, 6]
    both.must("append", "b", tokens=[0, 0])
    assert both.must("commit_batch", [both.row("b"), both.row("a")], [8, 0]) == [8, 6]


def test_adopted_pages_enter_the_cache_and_are_shared(both: SharingPair) -> None:
    pages = both.result("alloc", 3)
    both.must("adopt", "a", range(10), pages, namespace="x", computed=9)
    assert both.cache.block_tables([both.row("a")]).tolist() == [pages]
    assert both.must("allocate", "b", tokens=[*range(10)], namespace="x") == 0
    assert both.must("commit", "a") == 8
    assert both.must("allocate", "c", tokens=[*range(10)], namespace="x") == 8
    cached = both.cache.block_tables([both.row("a")])[0, :1].tolist()
    both.call("share", cached)
    assert both.do("adopt", "d", range(4), cached)[0] is PageCached
    for seq_id in "abc":
        both.must("free", seq_id)
    both.call("free", cached)


def test_forks_are_computed_as_far_as_what_is_cached(both: SharingPair) -> None:
    both.must("allocate", "a", tokens=ONE)
    both.must("fork", "a", "b")
    both.must("truncate", "b", 7)
    both.must("commit", "a", 9)
    assert [both.cache.sequence(seq_id).num_computed for seq_id in "ab"] == [9, 7]
    both.must("fork", "a", "c")
    assert both.cache.sequence("c").num_computed == 9


def test_a_window_keeps_what_is_computed(both: SharingPair) -> None:
    for i, (computed, left) in enumerate(((3, 3), (4, 4), (9, 4), (20, 4), (22, 6), (24, 8))):
        both.must("allocate", i, 24)
        both.must("commit", i, computed)
        both.must("apply_streaming_llm", i, 4, 4)
        assert both.cache.sequence(i).num_computed == left
        both.must("free", i)


def test_unknown_tokens_end_what_can_be_cached(both: SharingPair) -> None:
    both.must("allocate", "a", tokens=ONE[:6])
    both.must("append", "a", 5)
    both.must("append", "a", tokens=[1])
    both.must("free", "a")
    assert both.prefix.num_cached == 1


def test_tokens_can_be_told_later(both: SharingPair) -> None:
    both.must("allocate", "a", 10)
    assert both.must("commit", "a") == 0
    assert both.must("commit", "a", tokens=ONE) == 8
    got = both.do("commit", "a", tokens=[*ONE[:5], 0])
    assert got == (InvalidArgument, "tokens", 0, 5)


def test_freed_without_a_commit_nothing_enters(both: SharingPair) -> None:
    both.must("allocate", "a", tokens=ONE)
    both.must("free", "a", commit=False)
    assert both.prefix.num_cached == 0


def test_room_is_made_only_if_that_suffices() -> None:
    both = SharingPair(max_pages=16)
    for text in (ONE, TWO):
        both.must("allocate", "a", tokens=text)
        both.must("commit", "a")
        both.must("free", "a")
    both.must("allocate", "held", 8 * 4)  # 4 pages are cached, 4 free
    assert both.do("allocate", "b", 9 * 4)[:3] == (OutOfPages, 9, 8)
    assert both.do("allocate", "b", tokens=[*ONE[:8], *range(6 * 4 + 1)])[:3] == (OutOfPages, 9, 8)
    assert both.prefix.num_cached == 4
    assert both.must("allocate", "b", tokens=[*ONE[:8], *range(6 * 4)]) == 8
    assert both.prefix.num_cached == 2  # what the new sequence shares has stayed
    assert both.prefix.stats().evicted_pressure == 2


def test_append_makes_room() -> None:
    both = SharingPair(max_pages=16)
    both.must("allocate", "a", tokens=ONE)
    both.must("commit", "a")
    both.must("free", "a")
    both.must("allocate", "b", 14 * 4 // 2)
    both.must("allocate", "c", 14 * 4 // 2)
    assert (both.cache.num_free, both.cache.num_reclaimable) == (0, 2)
    both.must("append", "b", 4)
    assert both.cache.num_reclaimable == 1
    both.must("append", "c", 4)
    assert both.do("append", "b")[0] is OutOfPages


def test_room_is_made_when_it_is_asked_for() -> None:
    both = SharingPair(max_pages=16)
    for text in (ONE, TWO):
        both.must("allocate", "a", tokens=text)
        both.must("commit", "a")
        both.must("free", "a")
    assert both.must("make_room", 12) == 0
    both.must("allocate", "held", 11 * 4)
    assert both.must("make_room", 3) == 2
    assert both.do("make_room", 6) == (OutOfPages, 6, 5, None)
    assert both.prefix.num_cached == 2
    alone = PagedKVCache(PagePool(4, 4), 2, 4)
    assert alone.make_room(4) == 0
    with pytest.raises(OutOfPages):
        alone.make_room(5)


def test_a_call_that_is_refused_evicts_nothing() -> None:
    both = SharingPair(num_pages=8)
    pages = both.result("alloc", 4)
    both.compare(
        lambda: both.prefix.insert(range(16), pages),
        lambda: both.prefix_model.insert(range(16), pages),
    )  # the user owns them too, so evicting them would free nothing
    assert (both.cache.num_reclaimable, both.cache.num_held) == (0, 4)
    assert both.do("allocate", "x", 28) == (OutOfPages, 7, 4, None)
    both.must("allocate", "y", 16)
    assert both.do("append", "y", 1)[0] is OutOfPages
    assert both.do("make_room", 1)[0] is OutOfPages
    assert both.prefix.num_cached == 4
    both.call("free", pages[2:])
    assert both.cache.num_reclaimable == 2
    both.must("append", "y", 8)
    assert both.prefix.num_cached == 2


def test_evict_to_counts_what_is_held(both: SharingPair) -> None:
    for i in range(4):
        both.must("allocate", i, tokens=[i] * 16)
        both.must("commit", i)
    assert both.pool.utilization == 1
    assert both.cache.over_threshold
    both.must("evict_to", 0.5)
    assert (both.cache.num_held, both.cache.num_reclaimable) == (8, 8)
    assert not both.cache.over_threshold
    assert both.pool.utilization == 1


def test_a_fork_locks_too(both: SharingPair) -> None:
    both.must("allocate", "a", tokens=ONE)
    both.must("commit", "a")
    both.must("fork", "a", "b")
    both.must("free", "a")
    assert both.prefix.num_locked == 2
    both.must("append", "b", tokens=[5])
    both.must("free", "b")
    assert (both.prefix.num_cached, both.prefix.num_locked) == (2, 0)


def test_a_window_keeps_what_stands_behind_it(both: SharingPair) -> None:
    both.must("allocate", "a", tokens=list(range(24)))
    both.must("commit", "a")
    both.must("apply_streaming_llm", "a", 4, 4)
    assert both.prefix.num_locked == 6  # the last page needs all before it
    both.must("append", "a", tokens=[1, 2, 3, 4, 5])
    assert both.must("commit", "a", None) == 4
    both.must("truncate", "a", 4)
    assert both.prefix.num_locked == 1
    both.must("free", "a")
    assert both.prefix.num_locked == 0


def test_truncate_and_append_copies_the_cached_page(both: SharingPair) -> None:
    both.must("allocate", "a", tokens=ONE)
    both.must("commit", "a")
    both.must("truncate", "a", 6)
    slots, copies = both.cache.append("a", tokens=[9])
    both.cache_model.append_batch([both.row("a")], [1], [9])
    both.agree()
    assert copies.src.size == 1
    assert slots[0] // 4 == copies.dst[0]


def test_namespaces_do_not_share(both: SharingPair) -> None:
    both.must("allocate", "a", tokens=ONE, namespace="one")
    both.must("commit", "a")
    both.must("free", "a")
    assert both.must("allocate", "b", tokens=ONE, namespace="two") == 0
    assert both.must("allocate", "c", tokens=ONE, namespace="one") == 8


def test_a_page_cached_by_hand_stays_where_it_is(both: SharingPair) -> None:
    both.must("allocate", "a", tokens=ONE, namespace="one")
    page = both.cache.sequence("a").pages[:1]
    both.prefix.insert(ONE[:4], page, "two")
    assert both.cache.commit("a") == 0
    both.cache.free("a")
    both.pool.check(held=[])
    assert both.prefix.num_cached == 1


def test_without_a_prefix_cache_tokens_are_counted_only() -> None:
    cache = PagedKVCache(PagePool(4, 4), 2, 4)
    assert cache.allocate("a", tokens=[1, 2, 3, 4, 5]) == 0
    cache.append("a", tokens=[6])
    assert cache.sequence("a").num_tokens == 6
    assert cache.commit("a", 3) == 0
    assert cache.sequence("a").num_computed == 5  # those before the token appended
    assert cache.commit_batch([0]).tolist() == [0]
    assert cache.sequence("a").num_computed == 6
    assert cache.free("a") == 2
    assert (cache.num_free, cache.num_reclaimable, cache.num_held) == (4, 0, 0)


@pytest.mark.parametrize("column", [KNOWN, COMPUTED, LOCKED, LOCK_END])
@pytest.mark.parametrize("change", [-7, -1, 1, 7])
def test_check_sees_a_broken_row(both: SharingPair, column: int, change: int) -> None:
    both.must("allocate", "a", tokens=ONE)
    both.must("commit", "a")
    both.must("allocate", "b", tokens=[1] * 9)
    both.must("commit", "b")
    columns = both.cache.tables.arrays.columns
    columns[column, both.row("a")] += change
    if column in (KNOWN, COMPUTED) and change == -1:
        both.cache.check()  # fewer known or computed tokens than could be are no fault
        return
    if column == KNOWN and change == -7:
        both.cache.check()
        return
    with pytest.raises(CorruptState, match="row 0"):
        both.cache.check()


def test_check_counts_locks(both: SharingPair) -> None:
    both.must("allocate", "a", tokens=ONE)
    both.must("commit", "a")
    both.must("fork", "a", "b")
    both.prefix.arrays.nodes[both.cache.sequence("a").pages[0], 5] = 1
    with pytest.raises(CorruptState, match="locked by more"):
        both.cache.check()
