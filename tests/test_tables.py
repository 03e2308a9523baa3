"""BlockTables: the layouts that attention kernels read, and what `check` finds in the rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from random import Random

import numpy as np
import pytest

from jitalloc import NULL, BlockTables, PagedKVCache, PagePool, PageTableCSR
from jitalloc.errors import CorruptState, InvalidArgument
from jitalloc.sequences import state
from jitalloc.sequences.state import (
    ACTIVE,
    BORN,
    COMPUTED,
    GAP,
    KNOWN,
    LAST_USED,
    LENGTH,
    LOCK_END,
    LOCKED,
    NAMESPACE,
    PEAK_ACTIVE,
    PINNED,
    PRIORITY,
    ROW_COLUMNS,
    SEQ_ALLOCATIONS,
    SEQ_FREES,
    USES,
    TableArrays,
)
from jitalloc.state import HEADER_SLOTS
from tests import cache_steps
from tests.cache_pairs import CachePair


@pytest.fixture
def cache() -> PagedKVCache:
    """Sequences of 5, 0, 8 and 3 tokens in rows 0 to 3, four tokens a page."""
    made = PagedKVCache(PagePool(16, 4), max_sequences=5, max_pages_per_sequence=4)
    for seq_id, tokens in (("a", 5), ("b", 0), ("c", 8), ("d", 3)):
        made.allocate(seq_id, tokens)
    return made


def test_padded_tables(cache: PagedKVCache) -> None:
    table = cache.block_tables([2, 1, 0, 3])
    assert table.dtype == np.int32
    assert table.tolist() == [[2, 3], [NULL, NULL], [0, 1], [4, NULL]]
    assert cache.block_tables([3], width=3).tolist() == [[4, NULL, NULL]]
    assert cache.block_tables([1]).shape == (1, 0)
    assert cache.tables.block_tables([0]).tolist() == [[0, 1]]


def test_padding_is_the_null_page_where_there_is_one() -> None:
    cache = PagedKVCache(PagePool(9, 4, null_page=True), 2, 4)
    cache.allocate("a", 5)
    cache.allocate("b", 2)
    assert cache.block_tables([0, 1], width=3).tolist() == [[1, 2, 0], [3, 0, 0]]


def test_padded_tables_into_a_buffer(cache: PagedKVCache) -> None:
    buffer = np.full((3, 3), 77, np.int32)
    given = buffer[:2]
    assert cache.block_tables([0, 3], out=given) is given
    assert buffer.tolist() == [[0, 1, NULL], [4, NULL, NULL], [77, 77, 77]]


def test_a_table_is_a_copy(cache: PagedKVCache) -> None:
    table = cache.block_tables([3])
    table[:] = 99
    cache.append("d", 2)
    assert cache.block_tables([3]).tolist() == [[4, 5]]
    assert table.tolist() == [[99]]


def test_a_table_too_narrow_is_refused(cache: PagedKVCache) -> None:
    with pytest.raises(InvalidArgument, match=r"width = 1.*rows\[1\]"):
        cache.block_tables([3, 0], width=1)
    out = np.full((2, 1), 5, np.int32)
    with pytest.raises(InvalidArgument, match="width"):
        cache.block_tables([3, 0], out=out)
    assert out.tolist() == [[5], [5]]


def test_slot_mapping(cache: PagedKVCache) -> None:
    slots = cache.slot_mapping([0, 2, 0, 2], [4, 7, 0, 3])
    assert slots.dtype == np.int64
    assert slots.tolist() == [4, 15, 0, 11]


def test_slots_into_a_buffer(cache: PagedKVCache) -> None:
    out = np.full(2, 77)
    assert cache.slot_mapping([0, 2], [4, 7], out=out) is out
    assert out.tolist() == [4, 15]
    positions = np.array([0, 3])
    assert cache.slot_mapping([2, 2], positions, out=positions).tolist() == [8, 11]
    assert positions.tolist() == [8, 11]


def test_csr_into_buffers(cache: PagedKVCache) -> None:
    buffers = PageTableCSR(*(np.full(size, 77, np.int32) for size in (3, 6, 2)))
    csr = cache.page_table_csr([2, 0], out=buffers)
    assert all(got is given for got, given in zip(csr, buffers, strict=True))
    assert [each.tolist() for each in csr] == [[0, 2, 4], [2, 3, 0, 1, NULL, NULL], [4, 1]]
    exact = buffers._replace(indices=buffers.indices[:4])
    assert cache.page_table_csr([0, 2], out=exact).indices.tolist() == [0, 1, 2, 3]
    assert cache.page_table_csr([1, 1], out=buffers).indices.tolist() == [NULL] * 6


def test_seq_lens_into_a_buffer(cache: PagedKVCache) -> None:
    out = np.full(3, 77, np.int32)
    assert cache.seq_lens([3, 1, 0], out=out) is out
    assert out.tolist() == [3, 0, 5]


def test_a_refused_row_leaves_the_buffers(cache: PagedKVCache) -> None:
    slots, lengths = np.full(2, 77), np.full(2, 77, np.int32)
    csr = PageTableCSR(*(np.full(size, 77, np.int32) for size in (3, 6, 2)))
    short = csr._replace(indices=csr.indices[:3])
    for call in (
        lambda: cache.slot_mapping([0, 4], [0, 0], out=slots),
        lambda: cache.slot_mapping([0, 0], [0, 5], out=slots),
        lambda: cache.page_table_csr([0, 4], out=csr),
        lambda: cache.page_table_csr([0, 2], out=short),
        lambda: cache.seq_lens([0, 4], out=lengths),
    ):
        with pytest.raises(InvalidArgument):
            call()
    assert all((each == 77).all() for each in (slots, lengths, *csr))


def test_csr_of_all_lengths(cache: PagedKVCache) -> None:
    indptr, indices, last_page_len = csr = cache.page_table_csr([0, 1, 2, 3])
    assert all(each.dtype == np.int32 for each in csr)
    assert indptr.tolist() == [0, 2, 2, 4, 5]
    assert indices.tolist() == [0, 1, 2, 3, 4]
    assert last_page_len.tolist() == [1, 4, 4, 3]
    lengths = (np.diff(indptr) - 1) * 4 + last_page_len
    assert lengths.tolist() == cache.seq_lens([0, 1, 2, 3]).tolist() == [5, 0, 8, 3]
    assert (csr.indptr is indptr, csr.last_page_len is last_page_len) == (True, True)


def test_seq_lens(cache: PagedKVCache) -> None:
    lengths = cache.seq_lens(np.array([3, 3, 0], np.int32))
    assert lengths.dtype == np.int32
    assert lengths.tolist() == [3, 3, 5]


def test_empty_batches_of_rows(cache: PagedKVCache) -> None:
    assert cache.block_tables([]).shape == (0, 0)
    assert cache.slot_mapping([], []).size == 0
    assert cache.page_table_csr([]).indptr.tolist() == [0]
    assert cache.seq_lens([]).size == 0


@pytest.mark.parametrize("row", [-1, 4, 5, 2**31 - 1])
def test_rows_without_a_sequence_are_refused(cache: PagedKVCache, row: int) -> None:
    for call in (
        lambda rows: cache.block_tables(rows),
        lambda rows: cache.block_tables(rows, width=4),
        lambda rows: cache.page_table_csr(rows),
        lambda rows: cache.seq_lens(rows),
        lambda rows: cache.slot_mapping(rows, [0, 0]),
    ):
        with pytest.raises(InvalidArgument) as caught:
            call([0, row])
        error = caught.value
        assert (error.argument, error.value, error.position) == ("rows", row, 1)


@pytest.mark.parametrize("position", [-1, 5, 2**40])
def test_positions_outside_the_sequence_are_refused(cache: PagedKVCache, position: int) -> None:
    with pytest.raises(InvalidArgument, match="positions") as caught:
        cache.slot_mapping([2, 0], [7, position])
    assert (caught.value.value, caught.value.position) == (position, 1)


@pytest.mark.parametrize("page_size", [1, 3, 4])
def test_layouts_of_random_sequences(page_size: int, order: str) -> None:
    random = Random(page_size)
    pair = CachePair(40, page_size, order, max_sequences=70, max_pages=20)
    for _ in range(40):
        random.choice(cache_steps.BACKGROUND)(pair, random)
    pair.agree_on_layouts()


def test_tables_alone() -> None:
    tables = BlockTables(3, 2, 4)
    assert (tables.max_sequences, tables.max_pages_per_sequence, tables.page_size) == (3, 2, 4)
    assert repr(tables) == "BlockTables(max_sequences=3, max_pages_per_sequence=2, page_size=4)"
    assert (tables.arrays.pages == NULL).all()
    with pytest.raises(InvalidArgument, match="rows"):
        tables.seq_lens([0])


# What check finds.


def used_pair(order: str = "sorted") -> CachePair:
    """70 rows, eight of them live, with shared pages, a pinned sequence and some history."""
    pair = CachePair(40, 4, order, null_page=True, max_sequences=70, max_pages=6)
    for seq_id, tokens in enumerate((9, 5, 0, 4, 6, 1)):
        pair.must("allocate", seq_id, tokens, priority=seq_id)
    pair.must("fork", 0, "fork")
    pair.must("append", "fork", 2)
    pair.must("fork", 4, "other fork")
    pair.must("free", 3)
    pair.must("pin", 1)
    pair.must("apply_window", 0, 3)
    pair.must("evict", 5)
    pair.call("alloc", 3)
    return pair


def broken(pair: CachePair) -> str:
    with pytest.raises(CorruptState) as caught:
        pair.cache.check()
    return str(caught.value)


def test_sound_tables_pass(order: str) -> None:
    pair = used_pair(order)
    pair.cache.check()
    pair.cache.check(held=pair.held())
    with pytest.raises(CorruptState):
        pair.cache.check(held=[*pair.held(), 1])


@pytest.mark.parametrize("slot", range(HEADER_SLOTS))
def test_check_finds_any_header_slot_out_of_range(slot: int) -> None:
    pair = used_pair()
    pair.cache.tables.arrays.header[slot] = -7
    assert f"header[{slot}]" in broken(pair) or slot in (SEQ_ALLOCATIONS, SEQ_FREES)


EXACT = ("NUM_ROWS", "MAX_PAGES", "ACTIVE", "SEQ_ALLOCATIONS", "SEQ_FREES")
EXACT += ("ROW_PAGE_SIZE", "ROW_PAGE_SHIFT")


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("change", [-1, 1])
def test_check_finds_a_header_slot_off_by_one(name: str, change: int) -> None:
    pair = used_pair()
    pair.cache.tables.arrays.header[getattr(state, name)] += change
    broken(pair)


@pytest.mark.parametrize("peak", [2, 71])
def test_check_finds_an_impossible_peak(peak: int) -> None:
    pair = used_pair()
    pair.cache.tables.arrays.header[PEAK_ACTIVE] = peak
    broken(pair)


# By column: values that no sequence can have. Row 1 is live, row 69 is free.
BAD_COLUMNS: dict[int, tuple[int, ...]] = {
    LENGTH: (-1, 25, 2**31, 2**40),
    LAST_USED: (-1, 1, 1000),
    USES: (-1, 0),
    PRIORITY: (2**31, -(2**31)),
    PINNED: (-1, 2),
    BORN: (-1, 1000),
    KNOWN: (-1, 2**31),
    COMPUTED: (-1, 2**31),
    LOCKED: (-1, 2**31),
    LOCK_END: (-1, 1, 2**31),
    NAMESPACE: (-1, 2**31),
    GAP: (-1, 2**31),
}


def test_there_are_bad_values_for_every_column() -> None:
    assert sorted(BAD_COLUMNS) == list(range(ROW_COLUMNS))


@pytest.mark.parametrize(
    ("column", "value"), [(column, value) for column, bad in BAD_COLUMNS.items() for value in bad]
)
def test_check_finds_a_bad_fact_of_a_sequence(column: int, value: int) -> None:
    pair = used_pair()
    pair.cache.tables.arrays.columns[column, 1] = value
    assert "a column of row 1" in broken(pair)


@pytest.mark.parametrize("length", [0, 4, 9])
def test_check_finds_a_length_that_is_not_that_of_the_pages(length: int) -> None:
    pair = used_pair()
    pair.cache.tables.arrays.columns[LENGTH, 1] = length
    assert "pages of row 1" in broken(pair)


@pytest.mark.parametrize("column", range(ROW_COLUMNS))
def test_check_finds_a_fact_left_in_a_free_row(column: int) -> None:
    pair = used_pair()
    pair.cache.tables.arrays.columns[column, 69] = 1
    assert "a column of row 69" in broken(pair)


def test_check_finds_a_row_behind_the_last() -> None:
    pair = used_pair()
    flip(pair, "taken", 71)
    changed = [ACTIVE, SEQ_ALLOCATIONS, PEAK_ACTIVE]
    pair.cache.tables.arrays.header[changed] += 1
    assert "past the last row" in broken(pair)


def flip(pair: CachePair, array: str, row: int) -> None:
    getattr(pair.cache.tables.arrays, array)[row // 64] ^= np.uint64(1 << row % 64)


def set_page(pair: CachePair, row: int, place: int, page: int) -> None:
    pair.cache.tables.arrays.pages[row, place] = page


CORRUPTIONS: dict[str, list[tuple[Callable[[CachePair], None], str]]] = {
    "taken": [
        (lambda pair: flip(pair, "taken", 0), "taken"),
        (lambda pair: flip(pair, "taken", 69), "taken"),
        (lambda pair: flip(pair, "taken", 71), "taken"),
        (lambda pair: (flip(pair, "taken", 2), flip(pair, "taken", 69)), ""),
    ],
    "marks": [
        (lambda pair: flip(pair, "marks", 0), "marks"),
        (lambda pair: flip(pair, "marks", 69), "marks"),
    ],
    "pages": [
        (lambda pair: set_page(pair, 1, 0, NULL), "row 1"),
        (lambda pair: set_page(pair, 1, 0, 0), "row 1"),  # the null page
        (lambda pair: set_page(pair, 1, 0, 40), "row 1"),
        (lambda pair: set_page(pair, 1, 1, pair.model.free_list[0]), "row 1"),
        (lambda pair: set_page(pair, 1, 1, pair.cache_model.rows[1].pages[0]), "row 1"),
        (lambda pair: set_page(pair, 1, 2, 5), "row 1"),
        (lambda pair: set_page(pair, 2, 0, 5), "row 2"),
        (lambda pair: set_page(pair, 69, 5, 5), "row 69"),
        (lambda pair: set_page(pair, 69, 5, -2), "row 69"),
    ],
}


def test_there_are_corruptions_of_every_array() -> None:
    arrays = {field.name for field in dataclasses.fields(TableArrays)}
    assert arrays - {"slab", "header", "columns"} == set(CORRUPTIONS)


@pytest.mark.parametrize(
    ("array", "i"), [(array, i) for array, each in CORRUPTIONS.items() for i in range(len(each))]
)
def test_check_finds_a_corrupt_array(array: str, i: int) -> None:
    pair = used_pair()
    corrupt, word = CORRUPTIONS[array][i]
    corrupt(pair)
    assert word in broken(pair)


def test_check_finds_tables_and_owners_that_differ() -> None:
    pair = used_pair()
    page = pair.cache_model.rows[1].pages[0]
    pair.pool.arrays.refcount[page] += 1
    pair.cache.check()  # somebody else may hold it ...
    with pytest.raises(CorruptState, match=f"page {page}"):
        pair.cache.check(held=pair.held())  # ... but nobody does
    shared = pair.cache_model.rows[4].pages[0]
    pair.pool.arrays.refcount[shared] -= 1
    broken(pair)


def test_the_pool_checks_the_tables_on_it() -> None:
    pair = used_pair()
    shared = pair.cache_model.rows[4].pages[0]
    pair.pool.arrays.refcount[shared] -= 1
    with pytest.raises(CorruptState, match=f"page {shared}"):
        pair.pool.check()


def test_check_finds_ids_in_the_wrong_rows() -> None:
    pair = used_pair()
    pair.cache._ids.rows[0], pair.cache._ids.rows[1] = (
        pair.cache._ids.rows[1],
        pair.cache._ids.rows[0],
    )
    assert "row" in broken(pair)
    pair = used_pair()
    del pair.cache._ids.rows[0]
    assert "rows" in broken(pair)


# Slots of int32.


def test_slots_of_int32_where_asked_for(cache: PagedKVCache) -> None:
    for dtype in (np.int32, "int32"):
        slots = cache.slot_mapping([0, 2], [4, 7], dtype=dtype)
        assert (slots.dtype, slots.tolist()) == (np.int32, [4, 15])
        assert cache.append_batch([0, 2], 1, dtype=dtype).slots.dtype == np.int32
    out = np.full(2, 77, np.int32)
    assert cache.slot_mapping([0, 2], [4, 7], out=out) is out
    assert out.tolist() == [4, 15]
    assert cache.slot_mapping([0], [4], dtype=np.int64).dtype == np.int64
    with pytest.raises(InvalidArgument, match="dtype = 'int64': the buffer of slots is of int32"):
        cache.slot_mapping([0, 2], [4, 7], dtype=np.int64, out=out)


def test_slots_that_int32_might_not_hold_are_refused_before_anything_is_done() -> None:
    cache = PagedKVCache(PagePool(3, 2**30), 1, 3)
    cache.allocate("a", 1)
    text = "dtype = 'int32': slots of this pool go up to 3221225471"
    with pytest.raises(InvalidArgument, match=text):
        cache.append_batch([0], dtype=np.int32)
    with pytest.raises(InvalidArgument, match=text):
        cache.slot_mapping([0], [0], dtype=np.int32)
    with pytest.raises(InvalidArgument, match=text):
        cache.slot_mapping([0], [0], out=np.zeros(1, np.int32))
    assert cache.seq_lens([0]).tolist() == [1]
    # Tables alone do not know their pool: they look at what comes out.
    assert cache.tables.slot_mapping([0], [0], dtype=np.int32).tolist() == [0]
    cache.tables.arrays.pages[0, 0] = 2
    with pytest.raises(InvalidArgument, match=r"dtype = 'int32': .* up to 2147483648"):
        cache.tables.slot_mapping([0], [0], dtype=np.int32)
