"""What callers may hand in: lists, batches of one prompt, any buffer for `out`."""

from __future__ import annotations

import array
import ctypes
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jitalloc import PagedKVCache, PagePool, PrefixCache, SlotAllocator, SlotPrefixCache
from jitalloc.arguments import as_lengths, as_tokens
from jitalloc.errors import InvalidArgument, WrongDevice

# What may stand in a list, good and bad.
ELEMENTS = st.one_of(
    st.integers(-(2**31), 2**31 - 1),
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from([True, False, np.True_, np.int32(5), np.int64(2**40), 2**70, -(2**31) - 1]),
    st.sampled_from([1.0, None, "1", b"iiiii", [1], (), np.float32(1), 1j]),
)


def expected(values: list[Any], dtype: type[np.integer[Any]]) -> list[int] | None:
    """The numbers of a list that is good, told one by one."""
    bounds = np.iinfo(dtype)
    for each in values:
        if isinstance(each, bool | np.bool_) or not isinstance(each, int | np.integer):
            return None
        if not bounds.min <= each <= bounds.max:
            return None
    return [int(each) for each in values]


@given(
    st.one_of(
        st.lists(ELEMENTS, max_size=8),
        st.lists(st.integers(-(2**31), 2**31 - 1), max_size=40),
    ),
    st.sampled_from([list, tuple]),
)
def test_a_list_is_taken_element_by_element(values: list[Any], kind: Callable[..., Any]) -> None:
    for convert, dtype in ((as_tokens, np.int32), (lambda v: as_lengths("n", v), np.int64)):
        right = expected(values, dtype)
        if len(values) == 1 and isinstance(values[0], list | tuple) and dtype is np.int32:
            right = list(values[0])  # a batch of one
        if right is None:
            with pytest.raises(InvalidArgument):
                convert(kind(values))  # type: ignore[no-untyped-call]
        else:
            got = convert(kind(values))  # type: ignore[no-untyped-call]
            assert (got.dtype, got.tolist()) == (dtype, right)
            assert got.flags.c_contiguous
            assert got.flags.writeable


@pytest.mark.parametrize("position", [0, 1, 500, 999])
def test_a_bool_in_a_long_list_is_found(position: int) -> None:
    tokens: list[Any] = list(range(1000))
    tokens[position] = position == 1
    with pytest.raises(InvalidArgument, match=rf"tokens\[{position}\] = .*not a bool"):
        as_tokens(tokens)


class Number(int):
    """An int of somebody's own."""


def test_other_ints_are_ints() -> None:
    assert as_tokens([Number(3), 4]).tolist() == [3, 4]
    assert as_tokens([np.int8(3), np.uint32(4)]).tolist() == [3, 4]
    assert as_lengths("n", [2**31, -(2**63)]).tolist() == [2**31, -(2**63)]


ONE = [[1, 2, 3, 4, 5]]


@pytest.mark.parametrize(
    "tokens",
    [ONE, tuple(ONE), (tuple(ONE[0]),), np.array(ONE), np.array(ONE, np.int32), [np.array(ONE[0])]],
    ids=itertools.count(),
)
def test_a_prompt_may_be_a_batch_of_one(tokens: Any) -> None:
    pool = PagePool(8, 2)
    prefix = PrefixCache(pool)
    cache = PagedKVCache(pool, 2, 4, prefix_cache=prefix)
    cache.allocate("a", tokens=tokens)
    cache.commit("a")
    with prefix.match(tokens) as match:
        assert match.num_tokens == 4
    entries = SlotPrefixCache(2, 8)
    entries.insert(tokens, 0, 1)
    assert entries.find([1, 2, 3]) is not None


# Buffers for results.


class OnlyDLPack:
    """A tensor of another library, that hands its memory out by DLPack and by nothing else."""

    def __init__(self, of: np.ndarray, device: tuple[int, int] = (1, 0)) -> None:
        self._of, self._device = of, device

    def __dlpack__(self, **options: Any) -> Any:
        return self._of.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device


class OldDLPack(OnlyDLPack):
    """One from before DLPack 1.0, which cannot say whether its memory may be written to."""

    def __dlpack__(self, stream: Any = None) -> Any:  # type: ignore[override]
        return self._of.__dlpack__()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self._of


class CopyingDLPack(OldDLPack):
    """What is written to its array nobody ever sees."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self._of.copy()


BUFFERS: dict[str, Callable[[np.ndarray], Any]] = {
    "array": lambda of: of,
    "memoryview": memoryview,
    "array.array": lambda of: array.array("i", of.tolist()),
    "ctypes": lambda of: (ctypes.c_int32 * of.size)(),
    "DLPack": OnlyDLPack,
    "old DLPack": OldDLPack,
}


@pytest.mark.parametrize("kind", BUFFERS)
def test_out_takes_any_writable_buffer(kind: str) -> None:
    out = BUFFERS[kind](np.full(3, 9, np.int32))
    given = PagePool(8).alloc(3, out=out)
    assert given.tolist() == [0, 1, 2]
    there = out._of if isinstance(out, OnlyDLPack) else np.asarray(out)
    assert there.tolist() == [0, 1, 2]
    assert np.shares_memory(given, there)
    assert SlotAllocator(9).alloc_batch(3, out=out).tolist() == there.tolist()


def read_only(size: int) -> np.ndarray:
    made = np.zeros(size, np.int32)
    made.flags.writeable = False
    return made


BAD_BUFFERS: dict[str, Any] = {
    "a list": [0, 0, 0],
    "bytes": bytes(12),
    "read only": memoryview(read_only(3)),
    "read only by DLPack": OnlyDLPack(read_only(3)),
    "another dtype": OnlyDLPack(np.zeros(3, np.int64)),
    "too short": OnlyDLPack(np.zeros(2, np.int32)),
    "strided": OnlyDLPack(np.zeros(6, np.int32)[::2]),
    "a copy": CopyingDLPack(np.zeros(3, np.int32)),
    "floats": array.array("f", [0, 0, 0]),
}


@pytest.mark.parametrize("kind", BAD_BUFFERS)
def test_out_that_cannot_hold_a_result(kind: str) -> None:
    pool = PagePool(8)
    with pytest.raises(InvalidArgument, match="out = "):
        pool.alloc(3, out=BAD_BUFFERS[kind])
    assert pool.num_used == 0


def test_out_on_a_gpu() -> None:
    pool = PagePool(8)
    with pytest.raises(WrongDevice, match="OnlyDLPack"):
        pool.alloc(3, out=OnlyDLPack(np.zeros(3, np.int32), (2, 0)))  # type: ignore[arg-type]
    assert pool.num_used == 0


def test_tokens_of_another_library() -> None:
    assert as_tokens(OnlyDLPack(np.array([3, 4]))).tolist() == [3, 4]


# What errors say.


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: as_tokens([1.5]), "dtype of tokens = 'float64': must be an array of integers"),
        (lambda: as_tokens(np.zeros((2, 2), int)), "shape of tokens = (2, 2): must have one dim"),
        (lambda: as_lengths("n", [1], 2), "size of n = 1: must have 2 elements like the others"),
        (lambda: PagePool(8).free(3), "pages = 3: must be an array or a list of integers"),
        (
            lambda: PagedKVCache(PagePool(8), 2, 2).free_batch(["a"]),
            "dtype of rows = '<U1': must be an array of integers (rows(ids) gives the rows of ids",
        ),
        (lambda: PagedKVCache(PagePool(8), 2, 2).free_batch("a"), "rows = 'a': must be an array"),
        (lambda: PagedKVCache(PagePool(8), 2, 2).rows("ab"), "seq_ids = 'ab': is one id"),
    ],
    ids=itertools.count(),
)
def test_errors_say_what_was_meant(call: Callable[[], Any], text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        call()
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (PagePool, "PagePool() missing 1 required positional argument: 'num_pages'"),
        (lambda: PagePool(8, pages=3), "PagePool() got an unexpected keyword argument 'pages'"),
        (SlotAllocator, "SlotAllocator() missing 1 required positional argument: 'max_slots'"),
        (PrefixCache, "PrefixCache() missing 1 required positional argument: 'pool'"),
        (lambda: PrefixCache(PagePool(8), size=3), "PrefixCache() got an unexpected keyword"),
        (PagedKVCache, "PagedKVCache() missing 1 required positional argument: 'pool'"),
        (lambda: PagedKVCache(PagePool(8)), "PagedKVCache() missing 2 required positional arg"),
    ],
    ids=itertools.count(),
)
def test_errors_name_what_was_called(call: Callable[..., Any], text: str) -> None:
    with pytest.raises(TypeError) as caught:
        call()
    assert text in str(caught.value)


@pytest.mark.parametrize("make", [PagePool, SlotAllocator])
def test_an_unknown_device_is_told_which_there_are(make: Callable[..., Any]) -> None:
    for device in ("gpu", None, 3, "CPU", ["cpu"]):
        with pytest.raises(WrongDevice, match=r"device = .*: must be 'cpu' or 'cuda'"):
            make(8, device=device)
