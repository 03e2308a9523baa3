"""Which sequence gives way, what that frees, and what windows keep."""

from __future__ import annotations

import pytest

from jitalloc.errors import InvalidArgument
from tests.cache_pairs import CachePair


def three(eviction: str, **options: int) -> CachePair:
    """Three sequences of 3, 6 and 4 tokens on ten pages."""
    pair = CachePair(10, 4, eviction=eviction, **options)
    for seq_id, tokens in (("a", 3), ("b", 6), ("c", 4)):
        pair.must("allocate", seq_id, tokens)
    return pair


def leave(pair: CachePair) -> list[str]:
    """The order in which all of them go."""
    gone = []
    while (eviction := pair.must("evict")) is not None:
        gone.append(eviction[0])
    return gone


def test_lru_takes_what_was_written_to_longest_ago() -> None:
    pair = three("lru")
    pair.must("append", "a", 1)
    assert pair.must("select_eviction_target") == "b"
    assert leave(pair) == ["b", "c", "a"]


def test_reading_is_no_use() -> None:
    pair = three("lru")
    pair.agree_on_layouts()
    pair.must("pin", "a")
    pair.must("unpin", "a")
    assert leave(pair) == ["a", "b", "c"]


def test_lfu_takes_what_was_written_to_least_often() -> None:
    pair = three("lfu")
    for seq_id in ("a", "a", "c"):
        pair.must("append", seq_id, 0)
    assert leave(pair) == ["b", "c", "a"]


def test_longest_takes_the_most_tokens() -> None:
    pair = three("longest")
    pair.must("append", "a", 1)
    # Equally long: the one written to longer ago.
    assert leave(pair) == ["b", "c", "a"]


def test_priority_takes_the_lowest() -> None:
    pair = three("priority")
    pair.must("set_priority", "a", 2)
    pair.must("set_priority", "b", -1)
    assert leave(pair) == ["b", "c", "a"]
    pair.must("allocate", "x", 1, priority=1)
    pair.must("allocate", "y", 1, priority=-(2**31) + 1)
    assert pair.must("select_eviction_target") == "y"


def test_ties_go_to_the_older_sequence_and_then_to_the_lower_row() -> None:
    pair = three("priority")
    pair.must("free", "a")
    pair.must("allocate", "d", 1)  # in row 0, but younger
    pair.must("append_batch", [0, 1, 2], [1, 1, 1])
    assert leave(pair) == ["b", "c", "d"]


def test_pinned_sequences_stay() -> None:
    pair = three("lru")
    pair.must("pin", "a")
    pair.must("pin", "a")
    assert leave(pair) == ["b", "c"]
    assert pair.must("select_eviction_target") is None
    assert pair.must("evict") is None
    assert pair.do("evict", "a") == (InvalidArgument, "seq_id", "a", None)
    assert pair.must("evict_to", 0.0) == []
    pair.must("unpin", "a")
    assert leave(pair) == ["a"]


def test_one_eviction_says_what_it_gave_back() -> None:
    pair = three("lru")
    pair.must("fork", "b", "d")
    pair.must("append", "d", 7)
    eviction = pair.cache.evict("b")
    assert eviction is not None
    assert (eviction.seq_id, eviction.pages_released, eviction.tokens_dropped) == ("b", 1, 6)
    pair.cache_model.evict("b")
    pair.agree()
    stats = pair.cache.stats()
    assert (stats.evictions, stats.tokens_dropped, stats.frees) == (1, 6, 1)


# To a utilization.


def test_evict_to_stops_at_the_target() -> None:
    pair = three("lru")
    assert pair.pool.utilization == 0.4
    assert pair.must("evict_to", 0.4) == []
    assert pair.must("evict_to", 0.39) == [("a", 1, 3)]
    assert pair.must("evict_to", 0.1) == [("b", 2, 6)]
    assert pair.must("evict_to", 0.0) == [("c", 1, 4)]
    assert pair.must("evict_to", 0.0) == []


def test_the_threshold_is_the_default() -> None:
    pair = CachePair(10, 4, threshold=0.5)
    for i in range(5):
        pair.must("allocate", i, 4)
    assert not pair.cache.over_threshold
    assert pair.must("evict_to") == []
    pair.must("allocate", 5, 4)
    assert pair.cache.over_threshold
    assert pair.must("evict_to") == [(0, 1, 4)]


@pytest.mark.parametrize("used", range(1, 100))
def test_a_target_that_is_reached_evicts_nothing(used: int) -> None:
    # 0.29 * 100 is less than 29.
    pair = CachePair(100, 1, max_sequences=1, max_pages=100)
    pair.cache.allocate("a", used)
    assert pair.cache.evict_to(used / 100) == []
    assert len(pair.cache.evict_to((used - 1) / 100)) == 1


def test_shared_pages_count_once_they_are_free() -> None:
    pair = CachePair(10, 4)
    pair.must("allocate", "a", 16)
    for seq_id in "bcd":
        pair.must("fork", "a", seq_id)
    pair.must("append", "d", 4)
    # Only the fourth one frees the shared pages, so all of them must go.
    assert pair.must("evict_to", 0.3) == [("a", 0, 16), ("b", 0, 16), ("c", 0, 16), ("d", 5, 20)]


def test_sequences_whose_pages_others_keep_are_spared() -> None:
    pair = CachePair(10, 4)
    pair.must("allocate", "held", 8)
    pair.must("allocate", "with a pinned one", 8)
    pair.must("allocate", "free", 4)
    pair.must("fork", "with a pinned one", "pinned")
    pair.must("pin", "pinned")
    pair.call("share", [0, 1])
    assert pair.must("evict_to", 0.0) == [("free", 1, 4)]
    assert len(pair.cache) == 3
    pair.call("free", [0])
    assert pair.must("evict_to", 0.0) == [("held", 1, 8)]
    assert pair.must("evict_to", 0.0) == []


def test_one_page_of_its_own_is_enough() -> None:
    pair = CachePair(10, 4)
    pair.must("allocate", "a", 8)
    pair.must("fork", "a", "pinned")
    pair.must("pin", "pinned")
    pair.must("append", "a", 1)
    assert pair.must("evict_to", 0.0) == [("a", 1, 9)]


def test_empty_sequences_free_nothing_and_stay() -> None:
    pair = three("lru")
    pair.must("allocate", "empty", 0)
    assert [each[0] for each in pair.must("evict_to", 0.0)] == ["a", "b", "c"]
    assert pair.cache.ids == ["empty"]
    assert leave(pair) == ["empty"]


def test_evicting_makes_room_for_an_append() -> None:
    pair = three("lru")
    pair.must("allocate", "d", 24)
    assert pair.do("append", "c", 1)[0] is not None
    pair.must("evict_to", 0.9)
    pair.must("append", "c", 1)


# Windows.


def test_streaming_keeps_sinks_and_window() -> None:
    pair = CachePair(16, 4)
    pair.must("allocate", "a", 30)
    # Sink: page 0. Window of 5 tokens, 25 to 29: pages 6 and 7. Pages 1 to 5 go.
    assert pair.must("apply_streaming_llm", "a", 4, 5) == 20
    assert pair.cache.block_tables([0]).tolist() == [[0, 6, 7]]
    assert pair.cache.seq_lens([0]).tolist() == [10]
    assert pair.must("append", "a", 3)[0] == [30, 31, 32]
    assert pair.cache.stats().tokens_dropped == 20


@pytest.mark.parametrize("length", [0, 1, 4, 7, 8, 17, 24])
@pytest.mark.parametrize("sink", [0, 1, 4, 5, 30])
@pytest.mark.parametrize("window", [0, 1, 4, 6, 30])
def test_windows_of_any_size(length: int, sink: int, window: int) -> None:
    pair = CachePair(16, 4)
    pair.must("allocate", "a", length)
    dropped = pair.must("apply_streaming_llm", "a", sink, window)
    assert pair.cache.seq_lens([0]).tolist() == [length - dropped]
    assert length - dropped >= min(length, window)
    pair.must("append", "a", 1)


def test_apply_window_keeps_no_sink(order: str) -> None:
    pair = CachePair(16, 4, order)
    pair.must("allocate", "a", 12)
    pair.must("fork", "a", "b")
    assert pair.must("apply_window", "a", 2) == 8
    assert pair.cache.block_tables([0]).tolist() == [[2]]
    assert pair.pool.num_used == 3
    assert pair.must("apply_window", "b", 2) == 8
    assert pair.pool.num_used == 1


def test_a_pinned_sequence_can_be_cut_by_name() -> None:
    pair = CachePair(16, 4)
    pair.must("allocate", "a", 12)
    pair.must("pin", "a")
    assert pair.must("apply_window", "a", 4) == 8


def test_the_policy_streaming_cuts_the_longest() -> None:
    pair = CachePair(20, 4, eviction="streaming", sink=4, window=4)
    for seq_id, tokens in (("a", 12), ("b", 20), ("c", 8)):
        pair.must("allocate", seq_id, tokens)
    assert pair.must("evict") == ("b", 3, 12)
    assert pair.must("evict") == ("a", 1, 4)
    assert pair.must("evict") is None
    assert pair.cache.seq_lens([0, 1, 2]).tolist() == [8, 8, 8]
    assert pair.must("evict", "c") == ("c", 0, 0)


def test_streaming_to_a_utilization_spares_what_frees_nothing() -> None:
    pair = CachePair(20, 4, eviction="streaming", sink=4, window=4)
    pair.must("allocate", "a", 24)
    pair.must("allocate", "b", 16)
    pair.must("fork", "b", "c")  # c keeps b's pages where they are cut from b alone ...
    pair.must("pin", "c")
    assert pair.must("evict_to", 0.0) == [("a", 4, 16)]
    pair.must("unpin", "c")  # ... but both can be cut
    assert pair.must("evict_to", 0.0) == [("b", 0, 8), ("c", 2, 8)]


def test_streaming_counts_the_kept_pages_of_others() -> None:
    pair = CachePair(20, 4, eviction="streaming", sink=4, window=4)
    pair.must("allocate", "a", 16)
    pair.must("fork", "a", "short")
    pair.must("truncate", "short", 8)  # page 1 is in its window; page 2 is the other's alone
    pair.must("pin", "short")
    assert pair.must("evict_to", 0.0) == [("a", 1, 8)]
