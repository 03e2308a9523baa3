"""What a mirror of block tables is told: all that has changed, whatever call did it, no more."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import pytest

from jitalloc import BlockTables, PagedKVCache, PagePool, PrefixCache, WrongDevice
from jitalloc.sequences.loops.mirror import CHUNK, PART
from jitalloc.state import NULL
from tests.mirror_pairs import Told
from tests.sharing_pairs import SharingPair, random_turn
from tests.sharing_steps import resize, restore


def told_of(num_pages: int = 64, size: int = 4, width: int = 8) -> tuple[PagedKVCache, Told]:
    """Sequences of 5, 0, 8 and 3 tokens in rows 0 to 3 of 70, of which the mirror knows."""
    cache = PagedKVCache(PagePool(num_pages, size), 70, width)
    for seq_id, tokens in (("a", 5), ("b", 0), ("c", 8), ("d", 3)):
        cache.allocate(seq_id, tokens)
    told = Told(cache.tables)
    told.tell()
    return cache, told


def test_at_first_all_rows_are_told() -> None:
    cache, told = told_of()
    told.anew = 1
    records = told.tell()
    assert [row for row, *_ in records] == list(range(70))
    assert [tokens for _, tokens, *_ in records] == [5, 0, 8, 3, *[-1] * 66]
    assert cache.tables.max_pages_per_sequence == 8
    assert {new + nulls for _, _, _, new, nulls, _ in records} == {8}


def test_where_nothing_has_changed_nothing_is_told() -> None:
    cache, told = told_of()
    assert told.tell() == []
    cache.block_tables([0, 1])
    cache.set_priority("a", 3)
    cache.pin("a")
    assert told.tell() == []


def test_a_step_tells_lengths_and_new_pages() -> None:
    cache, told = told_of()
    cache.append_batch([0, 2, 3, 1])  # row 2 begins a page, and row 1 its first
    pages = cache.tables.arrays.pages
    records = told.tell()
    assert records == [
        (0, 6, 2, 0, 0, 0),
        (1, 1, 0, 1, 0, 0),
        (2, 9, 2, 1, 0, 1),
        (3, 4, 1, 0, 0, 2),
    ]
    assert told.rows[2] == (9, [*pages[2, :3].tolist(), *[NULL] * 5])


def test_from_the_first_page_that_has_changed_on_all_are_told() -> None:
    cache, told = told_of()
    cache.append_batch([0], 20)
    told.tell()
    cache.fork("a", "fork")
    cache.truncate("a", 21)
    cache.append_batch([0], 1)  # a page of its own in place of the sixth
    assert told.tell()[0][:5] == (0, 22, 5, 1, 1)


def test_pages_given_up_are_null() -> None:
    cache, told = told_of()
    cache.truncate("c", 3)
    assert told.tell() == [(2, 3, 1, 0, 1, 0)]
    cache.free("a")
    assert told.tell() == [(0, -1, 0, 0, 2, 0)]
    cache.allocate("e", 5)  # into the row, and the pages, of the one before
    assert told.tell() == [(0, 5, 0, 2, 0, 0)]


def test_a_row_that_ends_and_begins_between_two_messages() -> None:
    cache, told = told_of()
    cache.free("b")
    cache.allocate("e", 0)
    assert told.tell() == []  # an empty sequence is like another
    cache.free("a")
    cache.allocate("f", 6)
    assert told.tell()[0][:2] == (0, 6)


def test_pages_that_get_other_names_are_told() -> None:
    cache, told = told_of()
    cache.free("a")
    told.tell()
    assert cache.pool.defragment().src.size
    assert [row for row, *_ in told.tell()] == [2, 3]


def test_a_page_that_a_commit_replaces_is_told() -> None:
    pool = PagePool(32, 4)
    cache = PagedKVCache(pool, 8, 8, prefix_cache=PrefixCache(pool))
    told = Told(cache.tables)
    for seq_id in ("a", "b"):
        cache.allocate(seq_id, tokens=range(9))
    told.tell()
    cache.commit("a")
    assert told.tell() == []
    cache.commit("b")
    assert told.tell() == [(1, 9, 0, 3, 0, 0)]


@pytest.mark.parametrize("change", range(0, 400, 13))
def test_the_first_change_of_a_long_row_is_found(change: int) -> None:
    cache, told = told_of(500, 1, 400)
    cache.append_batch([2], 392)
    told.tell()
    pages = cache.tables.arrays.pages
    pages[2, change] = 499
    pages[2, min(change + CHUNK, 399)] = 499
    first, *rest = told.tell()
    assert (first[2], first[3] + sum(each[3] for each in rest)) == (change, 400 - change)


def test_of_a_row_with_many_new_ids_there_are_several_records() -> None:
    cache, told = told_of(2000, 1, 1000)
    cache.append_batch([0, 2], [PART + 3, 2 * PART])
    shape = [(row, first, new, start) for row, _, first, new, _, start in told.tell()]
    assert shape == [
        (0, 5, PART, 0),
        (0, 5 + PART, 3, PART),
        (2, 8, PART, PART + 3),
        (2, 8 + PART, PART, 2 * PART + 3),
    ]
    cache.free("a")
    cache.allocate("e", 2 * PART + 1)
    assert [each[2] + each[3] for each in told.tell()][-1] == 2 * PART + 1


@pytest.mark.parametrize("room", [0, 1, 4, 9, 10, 22])
def test_of_a_message_that_is_too_long_nothing_is_told(room: int) -> None:
    cache, told = told_of()
    cache.append_batch([0, 1, 2], 4)
    before = told.sent.tolist()
    assert told.pack(room).size == 4 + 3 * 6 + 3
    assert told.sent.tolist() == before
    assert len(told.tell()) == 3


OPTIONS: list[dict[str, Any]] = [
    {"num_pages": 24, "page_size": 4, "eviction": "streaming", "window": 3},
    {"num_pages": 20, "page_size": 1, "order": "lifo", "max_pages": 20, "policy": "slru"},
    {"num_pages": 30, "page_size": 3, "order": "fifo", "null_page": True, "max_sequences": 65},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_whatever_call_changes_the_tables_is_told(options: dict[str, Any]) -> None:
    random, pair = Random(str(options)), SharingPair(**options)
    told = Told(pair.cache.tables)
    for _ in range(300):
        random.choices((random_turn, resize, restore), weights=(30, 1, 1))[0](pair, random)
        if random.random() < 0.7:
            told.tell()
    told.tell()


# Where it lives.


@pytest.mark.parametrize("device", ["cpu", "cuda:0", "gpu", None, 0, ["cuda"]])
def test_no_other_device_has_a_mirror(device: Any) -> None:
    cache = PagedKVCache(PagePool(8), 4, 4)
    for owner in (cache, cache.tables):
        with pytest.raises(WrongDevice, match="'cuda' only") as caught:
            owner.mirror(device)
        assert caught.value.argument == "device"


def test_tables_that_are_no_array_of_the_cpu_are_refused() -> None:
    class There(np.ndarray[Any, Any]):
        """Like what stands for an array of the GPU."""

    tables = BlockTables(4, 4, 16)
    tables._slab = tables._slab.view(There)
    with pytest.raises(WrongDevice, match="live on the GPU themselves"):
        tables.mirror("cuda")
