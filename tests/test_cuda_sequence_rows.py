"""Rows on the GPU: those that are NULL fill a batch up, and some end without the host.

    NUMBA_ENABLE_CUDASIM=1 NUMBA_DISABLE_JIT=1 pytest tests/test_cuda_sequence_rows.py

Skipped without these two, unless there is a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

import numpy as np
import pytest

from jitalloc import NULL, InvalidArgument, OutOfRows, UnknownSequence
from jitalloc.gpu import kernel as _cuda
from jitalloc.sequences.state import LENGTH
from tests.cuda_cache_pairs import Both, told, use_threads
from tests.gpu import ON_DEVICE
from tests.test_cuda_sequence_calls import small, up
from tests.test_cuda_sequences import POOLS
from tests.test_twins import describe

pytestmark = ON_DEVICE


def filled_up(random: Random, length: int, *columns: list[int]) -> list[list[int]]:
    """Columns of a batch with rows of NULL among the others, so that there are `length`."""
    at = sorted(random.sample(range(length), len(columns[0])))
    made = [[NULL] * length, *([random.randrange(5) for _ in range(length)] for _ in columns[1:])]
    for column, values in zip(made, columns, strict=True):
        for i, value in zip(at, values, strict=True):
            column[i] = value
    return made


@pytest.mark.parametrize("threads", [2, 5, 8, 64])
@pytest.mark.parametrize("pool", POOLS, ids=describe)
def test_rows_of_null_are_passed_over(
    pool: dict[str, Any], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPU is given a batch that is filled up, the CPU one that is not."""
    use_threads(monkeypatch, threads)
    both, random = Both(pool, 9, 12), Random(f"{describe(pool)} {threads}")
    gpu, cpu, sizes = both.gpu, both.cpu, []
    for step in range(12):
        for _ in range(2):
            both.do("allocate", random.randrange(99), random.choice((0, 3, 9)))
        if cpu.ids:
            both.do("fork", random.choice(cpu.ids), random.randrange(100, 199))
        live = sorted(cpu._ids.rows.values())
        rows = random.sample(live, random.randrange(len(live) + 1))
        length = len(rows) + random.choice((0, 1, 5, 70))
        counts = [random.choice((0, 1, 2, 7)) for _ in rows]
        theirs, numbers = filled_up(random, length, rows, counts)
        got = told(partial(gpu.append_batch, theirs, numbers))
        expected = told(partial(cpu.append_batch, rows, counts))
        assert got[0] == expected[0]
        if got[0] == "returned":
            slots = [slot for slot in got[1][0] if slot != NULL]
            assert (slots, got[1][1]) == (expected[1][0], expected[1][1])
            assert len(got[1][0]) == sum(numbers)
            sizes.append(len(slots))
        parents = random.choices(live or [0], k=len(rows))
        gpu.reorder(*filled_up(random, length, rows, parents))
        cpu.reorder(rows, parents)
        lengths = cpu.tables.arrays.columns[LENGTH, rows].tolist()
        drop = [random.randrange(min(n, 3) + 1) for n in lengths]
        theirs, numbers = filled_up(random, length, rows, drop)
        assert gpu.truncate_batch(theirs, drop=numbers) == cpu.truncate_batch(rows, drop=drop)
        (theirs,) = filled_up(random, length, rows)
        dropped = gpu.apply_streaming_llm_batch(theirs, 2, 6)
        assert [n for row, n in zip(theirs, dropped, strict=True) if row != NULL] == (
            cpu.apply_streaming_llm_batch(rows, 2, 6).tolist()
        )
        empty = [row for row in live if not cpu.tables.arrays.columns[LENGTH, row]]
        if step % 2:
            src = random.choices(live or [0], k=len(empty))
            theirs, srcs = filled_up(random, len(empty) + 3, empty, src)
            gpu.fork_batch(srcs, theirs)
            cpu.fork_batch(src, empty)
        assert gpu.free_batch([NULL, *rows[:2], NULL]) == cpu.free_batch(rows[:2])
        both.agree()
    assert sum(sizes) > 20
    both.device.check(held=[])


def test_a_row_of_null_is_no_fault_among_others(monkeypatch: pytest.MonkeyPatch) -> None:
    use_threads(monkeypatch, 4)
    both = Both({"num_pages": 10, "page_size": 4}, 4, 8)
    both.must("allocate", "a", 6)
    for rows, wrong in (([NULL, 0, NULL, 3], 3), ([NULL, 0, NULL, 0], 3), ([NULL, -2], 1)):
        for call, *args in (
            (both.gpu.append_batch, [1] * len(rows)),
            (both.gpu.truncate_batch, 1),
            (both.gpu.apply_streaming_llm_batch, 1, 1),
            (both.gpu.free_batch,),
            (both.gpu.reorder, [0] * len(rows)),
        ):
            with pytest.raises(InvalidArgument) as caught:
                call(rows, *args)
            assert (caught.value.argument, caught.value.position) == ("rows", wrong)
    both.agree()


def test_a_batch_of_more_rows_than_a_block_has_threads() -> None:
    random, size = Random(1), 40 if _cuda.SIMULATED else 1_300
    for order in ("sorted", "fifo"):
        both = Both({"num_pages": 8 * size, "page_size": 4, "order": order}, size + 1, 16)
        gpu, cpu = both.gpu, both.cpu
        for cache in (gpu, cpu):
            cache.allocate("parent", 5)
        for row in range(size):
            for cache in (both.device, cpu):
                cache.fork("parent", row)
        rows = random.sample(range(1, size + 1), size)
        counts = [random.choice((0, 1, 2, 6)) for _ in rows]
        drop = [min(n, 2) for n in counts]
        parents = random.choices(rows, k=size)
        for cache in (gpu, cpu):
            cache.append_batch(rows, counts)
            cache.truncate_batch(rows, drop=drop)
            cache.reorder(rows, parents)
            cache.apply_window_batch(rows[: size // 2], 3)
        assert gpu.free_batch([NULL, *rows[2:]]) == cpu.free_batch(rows[2:])
        both.agree()


# What a prefix cache knows of rows.


@pytest.mark.parametrize("kept", [0, 4, 7, 9, 12, 20])
@pytest.mark.parametrize("window", [1, 12, 30])
def test_facts_of_a_row_cut_by_a_window_are_those_of_the_cpu(
    kept: int, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path that it locks is needed whole as long as it goes on behind the gap."""
    use_threads(monkeypatch, 2)
    both = Both({"num_pages": 60, "page_size": 4}, 4, 12, {})
    facts = []
    for cache in (both.cpu, both.gpu):
        cache.allocate("a", tokens=[*range(41)])
        cache.commit("a")
        cache.fork("a", "b")
        cache.allocate("c", 0)
        cache.append_batch([1], 2)
        cache.apply_streaming_llm_batch([0, 1], 8, window)
        length = int(cache.tables.arrays.columns[LENGTH, 0])
        cache.truncate_batch([0], min(kept, length))
        cache.fork_batch([0], [2])
        cache.reorder([1], [0])
        cache.append_batch([2, 1], 1)
        cache.apply_window_batch([2], 3)
        facts.append(cache.tables.arrays.slab.tolist())
    assert facts[0] == facts[1]
    both.device.check(held=[])


# Sequences that end without the host.


def test_ids_of_a_batch_that_ended_are_forgotten_at_the_next_look() -> None:
    looks: tuple[Callable[[Any], Any], ...] = (
        lambda c: c.ids == ["b"],
        lambda c: "a" not in c,
        lambda c: len(c) == 1,
        lambda c: c.rows(["b"]).tolist() == [1],
        lambda c: c.allocate("a", 3) == 0 and c.row("a") == 0,
    )
    for look in looks:
        cache = small()
        assert cache.free_batch(up([NULL, 0], np.int32)).tolist() == [2]
        assert look(cache)
        cache.check(held=[])


def test_a_batch_that_cannot_end_leaves_the_ids() -> None:
    cache = small()
    assert cache.free_batch(up([0, 3], np.int32)).tolist() == [NULL]
    with pytest.raises(InvalidArgument, match=r"rows\[1\] = 3"):
        cache.stats()
    assert cache.ids == ["a", "b"]


def ends_unseen(cache: Any, rows: list[int]) -> None:
    """End sequences as a graph does that is replayed: the host does not hear of it."""
    ids = cache._ids
    cache.free_batch(up(rows, np.int32), commit=False)
    ids.stale = False


def test_what_a_graph_has_ended_is_forgotten_by_the_next_call_that_waits() -> None:
    cache = small()
    ends_unseen(cache, [0])
    assert cache.ids == ["a", "b"]
    assert cache.stats().active == 1
    assert cache.ids == ["b"]
    ends_unseen(cache, [1])
    cache.allocate("c", 2)
    assert (cache.ids, cache.row("c")) == (["c"], 0)
    cache.check(held=[])


BY_ID: dict[str, Callable[[Any], Any]] = {
    "append": lambda c: c.append("a"),
    "free": lambda c: c.free("a"),
    "fork": lambda c: c.fork("a", "x"),
    "truncate": lambda c: c.truncate("a", 1),
    "apply_window": lambda c: c.apply_window("a", 1),
    "sequence": lambda c: c.sequence("a"),
    "evict": lambda c: c.evict("a"),
}


@pytest.mark.parametrize("name", BY_ID)
def test_a_sequence_that_a_graph_has_ended_is_unknown(name: str) -> None:
    cache = small()
    ends_unseen(cache, [0])
    with pytest.raises(UnknownSequence):
        BY_ID[name](cache)
    assert cache.ids == ["b"]
    cache.check(held=[])


def test_an_id_and_a_row_that_a_graph_has_given_back_are_given_away() -> None:
    cache = small()
    cache.allocate("c", 0)
    cache.allocate("d", 0)
    ends_unseen(cache, [0])
    cache.allocate("a", 1)  # the row is found although all seemed to be taken, and so is the id
    assert (cache.row("a"), cache.ids) == (0, ["b", "c", "d", "a"])
    with pytest.raises(OutOfRows):
        cache.allocate("e", 1)
    ends_unseen(cache, [2])
    cache.pin("c")  # nobody is there any more
    cache.fork("a", "e")
    assert cache.row("e") == 2
    cache.check(held=[])
