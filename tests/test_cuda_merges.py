"""Merges and allocations by many blocks, in one launch or two. Here blocks are small.

    NUMBA_ENABLE_CUDASIM=1 NUMBA_DISABLE_JIT=1 pytest tests/test_cuda_merges.py

Without these two set, and without a GPU, the tests are skipped.
"""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import pytest

from jitalloc import NULL, InvalidArgument, OutOfPages, PagePool
from jitalloc.pool.loops.merging_cuda import SPAN
from tests.cuda_blocks import PAGES, blocks_of, down, in_use, up
from tests.cuda_pairs import HostView
from tests.gpu import ON_DEVICE
from tests.pairs import outcome, pool_state

pytestmark = [*ON_DEVICE, pytest.mark.usefixtures("many_small_blocks")]

# Merges.


@pytest.mark.parametrize("null_page", [False, True])
def test_a_merge_by_all_blocks(null_page: bool, many_small_blocks: list[tuple[str, int]]) -> None:
    random = Random(1)
    pair = in_use(random, null_page=null_page)
    many_small_blocks.clear()
    assert pair.result("merge") == 90
    assert many_small_blocks == [("pool_merge_cuda", blocks_of(-(-PAGES // SPAN)))]
    assert pair.result("merge") == 0
    pair.result("free", pair.held()[-1:])
    pair.result("merge")
    pair.result("free", pair.held())
    pair.result("merge")


@pytest.mark.parametrize("order", ["fifo", "lifo"])
def test_a_merge_where_nothing_waits(order: str, many_small_blocks: list[tuple[str, int]]) -> None:
    pair = in_use(Random(2), order)
    many_small_blocks.clear()
    assert pair.result("merge") == 0
    pair.result("alloc", 30)
    assert many_small_blocks == [("pool_merge_cuda", 1), ("pool_alloc_cuda", blocks_of(30))]


# Allocations.


def test_an_allocation_merges_by_all_blocks_first(many_small_blocks: list[tuple[str, int]]) -> None:
    pair = in_use(Random(3))
    many_small_blocks.clear()
    pair.result("alloc", 20)  # what is free already: no merge
    assert many_small_blocks == [("pool_alloc_cuda", blocks_of(-(-PAGES // SPAN)))]
    assert pair.model.merges == 0
    pair.result("alloc", 31)
    assert pair.model.merges == 1
    assert pair.call("alloc", 60)[0] is OutOfPages
    pair.result("free", pair.held()[3:9])
    assert pair.call("alloc", 66)[0] is OutOfPages  # nothing is merged for a call that fails
    assert pair.model.merges == 1
    pair.result("alloc", 65)


@pytest.mark.parametrize("longest", [9, 40, 300])
def test_an_extension_merges_by_all_blocks_first(
    longest: int, many_small_blocks: list[tuple[str, int]]
) -> None:
    """Of sequences with and without partly filled pages, in one tile of a block and in more."""
    random = Random(longest)
    for batch in (1, 2, 7, 40):
        pair = in_use(random)
        held = sorted({*pair.held()})
        pair.result("alloc", 19)  # one is left in the freelist
        many_small_blocks.clear()
        prompts = [(0, -1) if random.random() < 0.5 else (9, 4 * random.choice(held))]
        prompts += [(0, -1)] * (batch - 1)
        prefix_lens, last_slots = map(list, zip(*prompts, strict=True))
        seq_lens = [tokens + random.randrange(longest // batch + 1) for tokens in prefix_lens]
        seq_lens[0] += 9
        pair.result("alloc_extend", prefix_lens, seq_lens, last_slots)
        assert pair.model.merges == 1
        assert [name for name, _blocks in many_small_blocks] == ["tokens_extend_cuda"]


def test_a_step_of_decoding_merges_by_all_blocks_first(
    many_small_blocks: list[tuple[str, int]],
) -> None:
    pair = in_use(Random(7))
    pages = pair.held()[:60]
    pair.result("alloc", 19)
    last = [4 * page + 3 for page in pages]
    pair.result("alloc_decode", [5] * 60 + [NULL], [*last, 77])
    assert pair.model.merges == 1
    assert many_small_blocks[-1] == ("tokens_decode_cuda", blocks_of(-(-PAGES // SPAN)))
    pair.result("free", pair.held()[-25:])
    assert pair.call("alloc_decode", [5] * 60, last)[0] is OutOfPages  # nothing is merged
    assert pair.call("alloc_decode", [5] * 59 + [6], last)[0] is InvalidArgument
    assert pair.model.merges == 1


@pytest.mark.parametrize("order", ["sorted", "fifo", "lifo"])
def test_a_batch_of_very_many(order: str, many_small_blocks: list[tuple[str, int]]) -> None:
    random = Random(4)
    pair = in_use(random, order)
    many_small_blocks.clear()
    pair.result("alloc_batch", [1] * 18)
    blocks = blocks_of(max(21, -(-PAGES // SPAN) if order == "sorted" else 0))  # 18, room for 3
    assert many_small_blocks == [("pool_total_cuda", blocks), ("pool_alloc_batch_cuda", blocks)]
    pair.result("alloc_batch", [random.choice((0, 0, 1, 2)) for _ in range(60)])
    assert pair.model.merges == (order == "sorted")
    pair.result("free", pair.held()[:50])
    assert pair.call("alloc_batch", [3] * 100)[0] is OutOfPages
    pair.result("alloc_batch", [])
    pair.result("alloc_batch", [0] * 40)


@pytest.mark.parametrize("place", [0, 1, 7, 8, 20, 38, 39])
@pytest.mark.parametrize("wrong", [-1, 2**31 - 1, 2**62, -(2**63)])
def test_a_batch_with_a_count_that_is_wrong(wrong: int, place: int) -> None:
    counts = [1] * 40
    counts[place] = wrong
    for later in range(place + 1, 40, 9):
        counts[later] = -7
    cpu, gpu = PagePool(PAGES), HostView(PagePool(PAGES, device="cuda"))  # type: ignore[arg-type]
    expected = outcome(lambda: cpu.alloc_batch(counts))
    assert outcome(lambda: gpu.alloc_batch(counts)) == expected
    assert expected[0] is InvalidArgument
    assert pool_state(gpu) == pool_state(cpu)  # type: ignore[arg-type]


def test_a_batch_that_its_buffer_does_not_hold() -> None:
    pool: Any = PagePool(PAGES, device="cuda")
    pool.free(pool.alloc(PAGES)[:100])
    indptr, pages = pool.alloc_batch(up([2] * 40, np.int64), out=up([7] * 79))
    assert (down(indptr), down(pages)) == ([NULL] * 41, [NULL] * 79)
    with pytest.raises(InvalidArgument, match="out = 79: the call makes 80"):
        pool.check()
    assert (pool.num_released, pool.stats().merges) == (100, 0)
