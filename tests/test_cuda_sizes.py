"""Batches of every size, in the launches of a real GPU: about a warp, a block, and many blocks.

    JITALLOC_GPU=machine pytest tests/test_cuda_sizes.py

Right calls and wrong ones, one behind the other, on a pool of the GPU and on one of the CPU. The
simulator of numba has no blocks of that size: without a GPU or a stand-in they are skipped.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from jitalloc import NULL, PagePool
from tests.cuda_pairs import same_words
from tests.gpu import REAL_GPU
from tests.pairs import outcome

pytestmark = REAL_GPU
ORDERS = ("sorted", "fifo", "lifo")
SIZES = (0, 1, 31, 32, 33, 512, 513, 2_049, 16_385)
PAGES, PAGE_SIZE = 20_001, 4


class Both:
    """A pool of the GPU and one of the CPU: what a call returns or raises, and leaves behind."""

    def __init__(self, order: str) -> None:
        self.gpu, self.cpu = (
            PagePool(PAGES, PAGE_SIZE, order=order, null_page=True, device=device)
            for device in ("cuda", "cpu")
        )
        self.device: Any = self.gpu._gpu  # type: ignore[attr-defined]

    def down(self, results: Any) -> list[Any]:
        parts = results if isinstance(results, tuple) else (results,)
        return [self.device.download(each).tolist() for each in parts if each is not None]

    def call(self, name: str, *arguments: Any) -> Any:
        """Make a call on both sides; what the CPU returns, or None where it fails."""
        wanted = outcome(lambda: getattr(self.cpu, name)(*arguments))
        there = [self.device.upload(a) if isinstance(a, np.ndarray) else a for a in arguments]

        def call() -> list[Any]:
            made = self.down(getattr(self.gpu, name)(*there))
            if wanted[0] != "returned":
                assert all({*each} <= {NULL} for each in made), name
            self.gpu.check()
            return made

        got = outcome(call)
        assert got == wanted if wanted[0] != "returned" else got[1] == as_lists(wanted[1]), name
        words = self.device.download(self.gpu._slab)  # type: ignore[attr-defined]
        assert same_words(words, self.cpu._slab), name
        return wanted[1] if wanted[0] == "returned" else None


def as_lists(result: Any) -> list[Any]:
    """What the CPU returns, as the GPU does: each array as a list, and a number as one of one."""
    if result is None:
        return []
    parts = result if isinstance(result, tuple) else (result,)
    return [each if isinstance(each, list) else [each] for each in parts]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("order", ORDERS)
def test_owners(order: str, size: int) -> None:
    numbers, both = np.random.default_rng(size), Both(order)
    pages = numbers.permutation(both.call("alloc", size)).astype(np.int32)
    often = np.concatenate([pages, pages])
    both.call("share", pages)
    both.call("refcount", pages)
    wrong: Any
    for wrong in (PAGES, -1, 0, PAGES - 1):  # the last page is free
        for place in {0, size // 2, size}:
            both.call("share", np.insert(pages, place, wrong))
            both.call("free", np.insert(often, place, wrong))
            both.call("refcount", np.insert(pages, place, wrong))
            both.call("free_slots", np.insert(pages.astype(np.int64) * PAGE_SIZE, place, wrong * 4))
    both.call("free", np.concatenate([often, often[: size // 3 + 1]]))  # too often
    half = numbers.permutation(often)
    both.call("free", half[:size])
    both.call("free", half[size:])
    both.call("merge")
    held = np.array(both.call("alloc", size), np.int64)
    slots = (held[:, None] * PAGE_SIZE + np.arange(PAGE_SIZE)).ravel()
    both.call("free_slots", slots[: size * 2])
    both.call("free_slots", numbers.permutation(slots[np.repeat(np.arange(size) > size // 2, 4)]))
    both.call("alloc", PAGES - 1 - both.cpu.num_used)
    both.call("alloc", 1)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("order", ORDERS)
def test_batches(order: str, size: int) -> None:
    numbers, both = np.random.default_rng(size), Both(order)
    counts = numbers.integers(0, 2, size)
    for kind in (np.int32, np.int64):
        both.call("admit", counts.astype(kind) * 5)
        _indptr, pages = both.call("alloc_batch", counts.astype(kind)) or ([0], [])
        both.call("free", np.array(pages, np.int32))
    for wrong in (-1, PAGES, 2**31 - 1, 2**40):
        for place in {0, size // 2, size}:
            both.call("admit", np.insert(counts, place, wrong))
            both.call("alloc_batch", np.insert(counts, place, wrong))


@pytest.mark.parametrize("size", [size for size in SIZES if size < 10_000])
@pytest.mark.parametrize("order", ORDERS)
def test_tokens(order: str, size: int) -> None:
    """Prompts, and steps of decoding for each of which a merge is due where one can be."""
    numbers, both = np.random.default_rng(size), Both(order)
    kinds = np.int32, np.int64
    lengths = numbers.integers(1, 9, size)
    zero, null = np.zeros(size, np.int64), np.full(size, NULL)
    slots = both.call("alloc_extend", zero.astype(kinds[0]), lengths.astype(kinds[1]), null)
    last = np.array(slots, np.int64)[np.cumsum(lengths) - 1] if size else null
    for step in range(3):
        spare = both.call("alloc", both.cpu.num_free) or []
        both.call("free", np.array(spare, np.int32))
        lengths += 1
        for place in {0, size // 2, size - 1} if size else ():
            for values, wrong in ((lengths, 0), (lengths, 2**31 + 1), (last, -1), (last, 2**60)):
                kept, values[place] = values[place], wrong
                both.call("alloc_decode", lengths, last)
                both.call("alloc_extend", lengths - 1, lengths, last)
                values[place] = kept
        slots = both.call("alloc_decode", lengths.astype(kinds[step % 2]), last)
        last = np.array(slots, np.int64)
    more = lengths + numbers.integers(0, 3, size)
    both.call("alloc_extend", lengths.astype(np.int32), more.astype(np.int32), last)
