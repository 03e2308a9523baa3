"""attention_batch: all that one paged attention call reads of a batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from jitalloc import NULL, AttentionBatch, PagedKVCache, PagePool
from jitalloc.errors import InvalidArgument, WrongDevice
from jitalloc.sequences.state import LENGTH
from tests.cache_steps import attention_buffers
from tests.pairs import plain
from tests.pool_faults import CudaArray

FACTS = ("qo_indptr", "kv_indptr", "kv_indices", "kv_last_page_len", "seq_lens")


@pytest.fixture
def cache() -> PagedKVCache:
    """Sequences of 5, 0, 8 and 3 tokens in rows 0 to 3, four tokens a page."""
    made = PagedKVCache(PagePool(16, 4), max_sequences=5, max_pages_per_sequence=4)
    for seq_id, tokens in (("a", 5), ("b", 0), ("c", 8), ("d", 3)):
        made.allocate(seq_id, tokens)
    return made


def test_a_chunk_a_step_and_a_prompt(cache: PagedKVCache) -> None:
    batch = cache.attention_batch([2, 0, 3, 1], [6, 1, 3, 0])
    assert batch.qo_indptr.tolist() == [0, 6, 7, 10, 10]
    assert batch.positions.tolist() == [2, 3, 4, 5, 6, 7, 4, 0, 1, 2]
    assert batch.slots.tolist() == [10, 11, 12, 13, 14, 15, 4, 16, 17, 18]
    assert batch.kv_indptr.tolist() == [0, 2, 4, 5, 5]
    assert batch.kv_indices.tolist() == [2, 3, 0, 1, 4]
    assert batch.kv_last_page_len.tolist() == [4, 1, 3, 4]
    assert batch.seq_lens.tolist() == [8, 5, 3, 0]
    assert {getattr(batch, name).dtype for name in FACTS} == {np.dtype(np.int32)}
    assert batch.positions.dtype == batch.slots.dtype == np.int64


def test_it_says_what_the_other_exports_say(cache: PagedKVCache) -> None:
    slots, _copies = cache.append_batch([0, 2, 3], [2, 1, 5])
    batch = cache.attention_batch([0, 2, 3], [2, 1, 5])
    assert batch.slots.tolist() == slots.tolist()
    csr = cache.page_table_csr([0, 2, 3])
    assert [each.tolist() for each in batch[3:6]] == [each.tolist() for each in csr]
    assert batch.seq_lens.tolist() == cache.seq_lens([0, 2, 3]).tolist()
    rows = np.repeat([0, 2, 3], np.diff(batch.qo_indptr))
    assert cache.slot_mapping(rows, batch.positions).tolist() == slots.tolist()


def test_one_number_for_all(cache: PagedKVCache) -> None:
    for one in (1, np.int32(1), np.array(1)):
        assert cache.attention_batch([0, 2, 3], one).positions.tolist() == [4, 7, 2]
    assert cache.attention_batch([1, 0], 0).qo_indptr.tolist() == [0, 0, 0]
    assert plain(cache.tables.attention_batch([0], [5])) == plain(cache.attention_batch([0], 5))


def test_no_rows(cache: PagedKVCache) -> None:
    batch = cache.attention_batch([], [])
    assert plain(batch) == ([0], [], [], [0], [], [], [])
    assert plain(cache.attention_batch([], 3)) == plain(batch)


def test_positions_are_those_in_the_cache_where_tokens_were_dropped(cache: PagedKVCache) -> None:
    """What is behind the gap has moved up: keys are rotated by where they stand now."""
    cache.append("c", 6)
    assert cache.apply_streaming_llm("c", 4, 4) == 4
    cache.append("c", 1)
    batch = cache.attention_batch([2], [3])
    length = int(batch.seq_lens[0])
    assert length == 14 - 4 + 1
    assert batch.positions.tolist() == [length - 3, length - 2, length - 1]
    expected = cache.slot_mapping([2, 2, 2], batch.positions)
    assert batch.slots.tolist() == expected.tolist()


def test_buffers_may_have_room_for_more(cache: PagedKVCache) -> None:
    out = attention_buffers(2, 6, 5, np.int64)
    assert cache.attention_batch([0, 3], [2, 1], out=out) is out
    assert out.positions.tolist() == [3, 4, 2, 0, 0, 0]
    assert out.slots.tolist() == [3, 4, 18, NULL, NULL, NULL]
    assert out.kv_indices.tolist() == [0, 1, 4, NULL, NULL]
    assert cache.attention_batch([1, 1], 0, out=out).kv_indices.tolist() == [NULL] * 5


@pytest.mark.parametrize("dtype", [np.int32, "int32", np.dtype("int32")])
def test_slots_of_int32(cache: PagedKVCache, dtype: Any) -> None:
    batch = cache.attention_batch([0, 3], [2, 1], dtype=dtype)
    assert batch.slots.dtype == batch.positions.dtype == np.int32
    assert batch.slots.tolist() == [3, 4, 18]
    out = attention_buffers(2, 4, 3, np.int32)
    assert cache.attention_batch([0, 3], [2, 1], out=out) is out
    assert (out.slots.tolist(), out.positions.tolist()) == ([3, 4, 18, NULL], [3, 4, 2, 0])
    assert plain(cache.attention_batch([0, 3], [2, 1], dtype=dtype, out=out)) == plain(out)


def test_slots_that_int32_might_not_hold_are_refused_at_once() -> None:
    cache = PagedKVCache(PagePool(2, 2**30), 1, 2)
    cache.allocate("a", 1)
    batch = cache.attention_batch([0], 1, dtype=np.int32)
    assert batch.slots.tolist() == [0]
    cache = PagedKVCache(PagePool(3, 2**30), 1, 3)
    cache.allocate("a", 1)
    with pytest.raises(InvalidArgument, match="dtype = 'int32': slots of this pool go up to 32"):
        cache.attention_batch([0], 1, dtype=np.int32)
    out = attention_buffers(1, 1, 3, np.int32)
    with pytest.raises(InvalidArgument, match="dtype = 'int32'"):
        cache.attention_batch([0], 1, out=out)
    # Tables alone do not know their pool: they look at what comes out.
    assert cache.tables.attention_batch([0], 1, out=out).slots.tolist() == [0]
    cache.tables.arrays.pages[0, 0] = 2
    with pytest.raises(InvalidArgument, match=r"dtype = 'int32': slots .* up to 2147483648"):
        cache.tables.attention_batch([0], 1, out=out)
    assert out.slots.tolist() == [0]


def test_more_pages_or_tokens_than_int32_counts(cache: PagedKVCache) -> None:
    """Nobody can hold so many; a length that says so is a cheap way to have them."""
    cache.tables.arrays.columns[LENGTH, 2] = 2**31 - 1
    with pytest.raises(InvalidArgument, match=r"rows\[4\] = 2: .*total must fit int32"):
        cache.tables.attention_batch([0, 2, 2, 2, 2], 0)
    with pytest.raises(InvalidArgument, match=r"num_new\[2\] = 2147483647: .*must fit int32"):
        cache.tables.attention_batch([0, 2, 2], [1, 1, 2**31 - 1])


REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "no row": (lambda c: c.attention_batch([0, 5], 1), InvalidArgument, r"rows\[1\] = 5: rows of"),
    "a free row": (lambda c: c.attention_batch([0, 4], 1), InvalidArgument, r"rows\[1\] = 4: no"),
    "a wrong row before a wrong number": (
        lambda c: c.attention_batch([0, 4], [6, 0]),
        InvalidArgument,
        r"rows\[1\] = 4",
    ),
    "too many new": (
        lambda c: c.attention_batch([0, 3], [1, 4]),
        InvalidArgument,
        r"num_new\[1\] = 4: the sequence has 3 tokens",
    ),
    "too many for one": (
        lambda c: c.attention_batch([0, 1], 1),
        InvalidArgument,
        r"num_new\[1\] = 1: the sequence has 0 tokens",
    ),
    "fewer than none": (
        lambda c: c.attention_batch([0, 3], [1, -1]),
        InvalidArgument,
        r"num_new\[1\] = -1: must not be negative",
    ),
    "a float": (lambda c: c.attention_batch([0], 1.0), InvalidArgument, r"num_new = 1.0: must be"),
    "floats": (lambda c: c.attention_batch([0], [1.0]), InvalidArgument, "num_new = 'float64'"),
    "a bool": (lambda c: c.attention_batch([0], True), InvalidArgument, "num_new = True"),
    "too few numbers": (
        lambda c: c.attention_batch([0, 2], [1]),
        InvalidArgument,
        "num_new = 1: must have 2 elements",
    ),
    "numbers of the GPU": (lambda c: c.attention_batch([0], CudaArray()), WrongDevice, "num_new"),
    "no such dtype": (
        lambda c: c.attention_batch([0], 1, dtype=np.int16),
        InvalidArgument,
        "dtype = 'int16': must be int32 or int64",
    ),
    "no dtype": (
        lambda c: c.attention_batch([0], 1, dtype="slots"),
        InvalidArgument,
        "dtype = 'slots': must be int32 or int64",
    ),
    "another dtype than the buffer": (
        lambda c: c.attention_batch([0], 1, dtype=int, out=attention_buffers(1, 1, 2, np.int32)),
        InvalidArgument,
        "dtype = 'int64': the buffer of slots is of int32",
    ),
    "no buffers": (
        lambda c: c.attention_batch([0], 1, out=(1, 2)),
        InvalidArgument,
        "out = 'tuple': must be an AttentionBatch",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_refused(cache: PagedKVCache, name: str) -> None:
    call, error, text = REFUSED[name]
    with pytest.raises(error, match=text) as caught:
        call(cache)
    assert type(caught.value) is error


BUFFERS: dict[str, tuple[dict[str, Any], str]] = {
    "qo_indptr": ({"qo_indptr": np.zeros(2, np.int32)}, "exactly 3 elements"),
    "kv_indptr": ({"kv_indptr": np.zeros(4, np.int32)}, "exactly 3 elements"),
    "kv_last_page_len": ({"kv_last_page_len": np.zeros(3, np.int32)}, "exactly 2 elements"),
    "seq_lens": ({"seq_lens": np.zeros(2, np.int64)}, "array of int32"),
    "positions": ({"positions": np.zeros(3, np.int32)}, "array of int64"),
    "positions ": ({"positions": np.zeros(2, np.int64)}, "exactly 3 elements"),
    "slots": ({"slots": np.zeros(3)}, "array of int64"),
    "slots ": (
        {"slots": np.zeros(2, np.int64), "positions": np.zeros(2, np.int64)},
        "the call makes 3 elements",
    ),
    "kv_indices": ({"kv_indices": np.zeros(2, np.int32)}, "the call makes 3 elements"),
    "kv_indices ": ({"kv_indices": np.zeros(8, np.int32)[::2]}, "contiguous"),
}


@pytest.mark.parametrize("name", BUFFERS)
def test_buffers_that_do_not_fit_are_refused_and_untouched(cache: PagedKVCache, name: str) -> None:
    changed, text = BUFFERS[name]
    fitting = attention_buffers(2, 3, 3, np.int64)
    out = fitting._replace(**changed)
    before = plain(out)
    with pytest.raises(InvalidArgument, match=text) as caught:
        cache.attention_batch([0, 3], [2, 1], out=out)
    assert caught.value.argument == f"out.{name.strip()}"
    assert plain(out) == before
    with pytest.raises(WrongDevice, match=f"out.{name.strip()}"):
        cache.attention_batch([0, 3], 0, out=fitting._replace(**{name.strip(): CudaArray()}))


def test_a_batch_is_a_copy(cache: PagedKVCache) -> None:
    batch = cache.attention_batch([0], 1)
    batch.kv_indices[:] = 9
    batch.seq_lens[:] = 9
    assert isinstance(batch, AttentionBatch)
    assert cache.attention_batch([0], 1).kv_indices.tolist() == [0, 1]
