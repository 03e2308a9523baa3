"""Block tables on the GPU: the exports of the CPU, bit by bit, and what bad input gets.

In numba's simulator:

    NUMBA_ENABLE_CUDASIM=1 NUMBA_DISABLE_JIT=1 pytest tests/test_cuda_tables.py
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import pytest

from jitalloc import (
    NULL,
    AttentionBatch,
    BlockTables,
    InvalidArgument,
    PageTableCSR,
    WrongDevice,
)
from jitalloc.gpu import device as _cuda_device
from jitalloc.gpu import kernel as _cuda
from jitalloc.sequences.state import LENGTH
from jitalloc.sequences.tables_cuda import CudaBlockTables
from tests.cache_steps import attention_buffers
from tests.cuda_tables_steps import CUDA_STEPS, INT32, INT64, TablesPair
from tests.gpu import ON_DEVICE
from tests.test_twins import describe

pytestmark = ON_DEVICE

# Rows end at the words of their bitmap as well.
TABLES: list[dict[str, Any]] = [
    {"num_pages": 20, "page_size": 1, "max_sequences": 5, "max_pages": 20},
    {"num_pages": 40, "page_size": 3, "max_pages": 9},
    {"num_pages": 90, "page_size": 16, "null_page": True, "max_sequences": 70},
]


@pytest.fixture
def pair() -> TablesPair:
    """Sequences of 5, 0, 8 and 3 tokens in rows 0 to 3 of 5, four tokens a page."""
    made = TablesPair(Random(1), rounds=0, num_pages=16, max_sequences=5, max_pages=4)
    for seq_id, tokens in (("a", 5), ("b", 0), ("c", 8), ("d", 3)):
        made.cache_pair.cache.allocate(seq_id, tokens)
    made.copy()
    return made


def few_threads(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    whole = threads if _cuda.SIMULATED else max(threads, 32)  # a GPU scans in whole warps
    monkeypatch.setattr(_cuda_device.device(), "threads", whole)


@pytest.mark.parametrize("options", TABLES, ids=describe)
@pytest.mark.parametrize("name", sorted(CUDA_STEPS))
def test_export_is_that_of_the_cpu(
    name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    few_threads(monkeypatch, 4)  # 40 rows are then three blocks, or tiles
    random = Random(f"{name} {describe(options)}")
    for _ in range(2):
        pair = TablesPair(random, **options)
        for _ in range(5):
            CUDA_STEPS[name](pair, random)


@pytest.mark.parametrize("threads", [8, 32])
@pytest.mark.parametrize("name", sorted(CUDA_STEPS))
def test_export_is_so_in_larger_blocks(
    name: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_threads(monkeypatch, threads)
    random = Random(f"{name} {threads}")
    pair = TablesPair(random, **TABLES[2])
    for _ in range(3):
        CUDA_STEPS[name](pair, random)


@pytest.mark.parametrize("threads", [4, 32])
def test_the_first_wrong_row_of_all_blocks_is_the_one(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_threads(monkeypatch, threads)
    pair = TablesPair(Random(threads), **TABLES[2])
    sequences = pair.cache_pair.cache_model.rows
    free = next(row for row in range(70) if row not in sequences)
    rows = (sorted(row for row, at in sequences.items() if at.length) * 60)[:60]
    wrong = {37: free, 50: -2, 20: 70, 45: free}
    for place in sorted(wrong, reverse=True):  # one failure, then an earlier one as well
        rows[place] = wrong[place]
        for got in (
            pair.seq_lens(rows),
            pair.page_table_csr(rows, 40),
            pair.page_table_csr(rows),
            pair.block_tables(rows),
            pair.block_tables_into(rows, 8),
            pair.slot_mapping(rows, [0] * 60),
            pair.attention_batch(rows, [0] * 40 + [-1] * 20),
            pair.attention_batch(rows, 0, (60, 400)),
        ):
            assert got[:4] == (InvalidArgument, "rows", wrong[place], place)


def test_rows_are_looked_at_where_there_are_no_columns(pair: TablesPair) -> None:
    assert pair.block_tables([1], width=0)[0] == "returned"
    assert pair.block_tables_into([1, 0], 0)[:4] == (InvalidArgument, "width", 0, None)
    assert pair.block_tables_into([1, 4], 0)[:4] == (InvalidArgument, "rows", 4, 1)


def test_a_buffer_too_short_for_the_pages_is_a_failure(pair: TablesPair) -> None:
    rows = [0, 1, 2, 3, 0]
    assert pair.page_table_csr(rows, 6)[:4] == (InvalidArgument, "out.indices", 6, None)
    assert pair.page_table_csr(rows, 7)[0] == "returned"
    assert pair.page_table_csr([4], 0)[:4] == (InvalidArgument, "rows", 4, 0)


def test_more_pages_than_int32_counts(pair: TablesPair) -> None:
    """Nobody can hold so many; a length that says so is a cheap way to have them."""
    pair.cpu.arrays.columns[LENGTH, 2] = 2**31 - 1
    pair.copy()
    rows = [0] + [2] * 6
    got = pair.compare(
        lambda: pair.cpu.page_table_csr(rows), lambda: pair.gpu.page_table_csr(pair.up(rows, INT32))
    )
    assert got[:4] == (InvalidArgument, "rows", 2, 4)
    assert "total must fit int32" in got[-1][0]


@pytest.mark.parametrize("position", [-1, 5, 2**31, 2**40, 2**63 - 1, -(2**63)])
def test_positions_outside_the_sequence(pair: TablesPair, position: int) -> None:
    got = pair.slot_mapping([2, 0, 2], [7, position, 9])
    assert got[:4] == (InvalidArgument, "positions", position, 1)


def test_a_position_beside_its_buffer(pair: TablesPair) -> None:
    """The result goes elsewhere, and the positions stay."""
    positions, slots = pair.up([4, 7], INT64), pair.up([0, 0], INT64)
    assert pair.gpu.slot_mapping(pair.up([0, 2], INT32), positions, out=slots) is slots
    assert (pair.down(slots).tolist(), pair.down(positions).tolist()) == ([4, 15], [4, 7])


@pytest.mark.parametrize("dtype", [INT32, INT64])
def test_positions_are_of_either_size(pair: TablesPair, dtype: Any) -> None:
    slots = pair.gpu.slot_mapping(pair.up([2, 0], INT32), pair.up([7, 4], dtype))
    assert pair.down(slots).tolist() == [15, 4]


def test_a_row_that_is_null_is_a_sequence_without_tokens(pair: TablesPair) -> None:
    """Row 1 of the CPU is one."""
    rows, filled = [0, 1, 2, 1, 3, 1], pair.up([0, NULL, 2, NULL, 3, NULL], INT32)
    gpu, down = pair.gpu, pair.down
    assert down(gpu.seq_lens(filled)).tolist() == pair.cpu.seq_lens(rows).tolist()
    for width in (None, 2, 5):
        table = down(gpu.block_tables(filled, width=width))
        assert table.tolist() == pair.cpu.block_tables(rows, width=width).tolist()
    for got, expected in zip(
        gpu.page_table_csr(filled), pair.cpu.page_table_csr(rows), strict=True
    ):
        assert down(got).tolist() == expected.tolist()
    slots = gpu.slot_mapping(filled, pair.up([4, 0, 7, 99, 2, -1], INT64))
    assert down(slots).tolist() == [4, NULL, 15, NULL, 18, NULL]
    pair.pool.check()


def test_new_tokens_of_a_row_that_is_null_keep_their_places(pair: TablesPair) -> None:
    filled, counts = pair.up([NULL, 0, NULL, 2], INT32), pair.up([2, 1, 0, 2], INT32)
    for new, qo, positions, slots in (
        (counts, [0, 2, 3, 3, 5], [0, 0, 4, 6, 7], [NULL, NULL, 4, 14, 15]),
        (1, [0, 1, 2, 3, 4], [0, 4, 0, 7], [NULL, 4, NULL, 15]),
    ):
        got = [pair.down(each).tolist() for each in pair.gpu.attention_batch(filled, new)]
        assert got == [
            qo,
            positions,
            slots,
            [0, 0, 2, 2, 4],
            [0, 1, 2, 3],
            [4, 1, 4, 4],
            [0, 5, 0, 8],
        ]
    pair.pool.check()


@pytest.mark.parametrize("new", [-1, 2**31, 2**40, 2**63 - 1, -(2**63)])
def test_new_tokens_of_a_row_that_is_null_are_counted(pair: TablesPair, new: int) -> None:
    counts = pair.up([2, new, 1], INT64)
    out = AttentionBatch(*(pair.up(each, each.dtype) for each in attention_buffers(3, 9, 9, INT64)))
    pair.gpu.attention_batch(pair.up([0, NULL, 2], INT32), counts, out=out)
    assert all((pair.down(each) == NULL).all() for each in out)
    text = "must not be negative" if new < 0 else "total must fit int32"
    with pytest.raises(InvalidArgument, match=rf"num_new\[1\] = {new}: .*{text}"):
        pair.pool.check()


def test_a_buffer_too_short_for_an_attention_batch(pair: TablesPair) -> None:
    for sizes, name, size in (((2, 9), "slots", 2), ((3, 3), "kv_indices", 3)):
        got = pair.attention_batch([0, 2], [1, 2], sizes)
        assert got[:4] == (InvalidArgument, f"out.{name}", size, None)
    assert pair.attention_batch([0, 2], [1, 2], (3, 4))[0] == "returned"
    assert pair.attention_batch([0, 2], [9, 2], (0, 0))[:4] == (InvalidArgument, "num_new", 9, 0)
    assert pair.attention_batch([0, 9], [9, 2], (0, 0))[:4] == (InvalidArgument, "rows", 9, 1)


def test_an_attention_batch_takes_int32_where_all_slots_fit(pair: TablesPair) -> None:
    out = AttentionBatch(*(pair.up(each, each.dtype) for each in attention_buffers(1, 1, 4, INT32)))
    rows = pair.up([0], INT32)
    into = pair.up([9], INT32)
    assert pair.gpu.slot_mapping(rows, pair.up([4], INT64), out=into) is into
    assert pair.down(into).tolist() == [4]
    pair.pool.num_pages = 2**31 // 4 + 1
    with pytest.raises(InvalidArgument, match="dtype = 'int32': slots of this pool go up to"):
        pair.gpu.slot_mapping(rows, rows, dtype=INT32)
    with pytest.raises(InvalidArgument, match="dtype = 'int32': slots of this pool go up to"):
        pair.gpu.attention_batch(pair.up([0], INT32), 1, out=out)
    with pytest.raises(InvalidArgument, match="dtype = 'int32': slots of this pool go up to"):
        pair.gpu.attention_batch(pair.up([0], INT32), 1, dtype=INT32)


def test_empty_batches(pair: TablesPair) -> None:
    for got in (
        pair.block_tables([]),
        pair.block_tables_into([], 3),
        pair.slot_mapping([], []),
        pair.page_table_csr([]),
        pair.page_table_csr([], 2),
        pair.attention_batch([], []),
        pair.attention_batch([], 1, (3, 2)),
        pair.seq_lens([]),
    ):
        assert got[0] == "returned"


def test_a_failure_waits_for_somebody_who_waits(pair: TablesPair) -> None:
    gpu, wrong = pair.gpu, pair.up([0, 4], INT32)
    assert pair.down(gpu.seq_lens(wrong)).tolist() == [NULL, NULL]
    assert pair.down(gpu.seq_lens(pair.up([0, 2], INT32))).tolist() == [5, 8]
    gpu.slot_mapping(pair.up([0], INT32), pair.up([99], INT64))
    with pytest.raises(InvalidArgument, match=r"rows\[1\] = 4: no sequence") as caught:
        gpu.page_table_csr(wrong)
    assert "call 0 of the pool (seq_lens)" in caught.value.__notes__[0]
    with pytest.raises(InvalidArgument, match=r"rows\[1\] = 4"):
        gpu.block_tables(wrong)
    pair.pool.check()


def test_a_failure_is_of_its_call_alone(pair: TablesPair, monkeypatch: pytest.MonkeyPatch) -> None:
    few_threads(monkeypatch, 4)
    rows, right = [0, 2, 3] * 20, [5, 8, 3] * 20
    for _ in range(2):
        wrong = pair.gpu.seq_lens(pair.up([*rows, 4], INT32))
        assert set(pair.down(wrong).tolist()) == {NULL}
        assert pair.down(pair.gpu.seq_lens(pair.up(rows, INT32))).tolist() == right
    with pytest.raises(InvalidArgument, match=r"rows\[60\] = 4"):
        pair.pool.check()


# Bad input is refused at once.


@pytest.mark.parametrize("values", [np.zeros(1, np.int32), [0], (0,), 0, None])
def test_host_memory_is_refused(pair: TablesPair, values: Any) -> None:
    gpu, rows, position = pair.gpu, pair.up([0], INT32), pair.up([0], INT64)
    csr = PageTableCSR(pair.up([0, 0], INT32), pair.up([0, 0], INT32), rows)
    calls = [
        lambda: gpu.block_tables(values),
        lambda: gpu.block_tables(values, width=2),
        lambda: gpu.slot_mapping(values, position),
        lambda: gpu.slot_mapping(rows, values),
        lambda: gpu.page_table_csr(values),
        lambda: gpu.seq_lens(values),
        lambda: gpu.attention_batch(values, 1),
    ]
    whole = AttentionBatch(
        *(pair.up(each, each.dtype) for each in attention_buffers(1, 1, 2, INT64))
    )
    if isinstance(values, list | tuple | np.ndarray):
        calls.append(lambda: gpu.attention_batch(rows, values))
    if values is not None:
        calls += [
            *(
                lambda name=name: gpu.attention_batch(rows, 1, out=whole._replace(**{name: values}))
                for name in whole._fields
            ),
            lambda: gpu.block_tables(rows, out=values),
            lambda: gpu.slot_mapping(rows, position, out=values),
            lambda: gpu.seq_lens(rows, out=values),
            *(
                lambda name=name: gpu.page_table_csr(rows, out=csr._replace(**{name: values}))
                for name in csr._fields
            ),
        ]
    for call in calls:
        with pytest.raises(WrongDevice):
            call()
    pair.pool.check()


def test_dtypes_shapes_and_buffers_are_exact(pair: TablesPair) -> None:
    gpu, rows, long = pair.gpu, pair.up([0, 2], INT32), pair.up([0, 2], INT64)
    csr = PageTableCSR(pair.up([0] * 3, INT32), pair.up([0] * 9, INT32), pair.up([0] * 2, INT32))
    table = pair.up(np.zeros((2, 4)), INT32)
    whole = AttentionBatch(
        *(pair.up(each, each.dtype) for each in attention_buffers(2, 2, 9, INT64))
    )
    refused: list[tuple[str, Callable[[], Any]]] = [
        ("rows", lambda: gpu.seq_lens(long)),
        ("rows", lambda: gpu.seq_lens(pair.up([[0]], INT32))),
        ("positions", lambda: gpu.slot_mapping(rows, pair.up([0, 1], np.dtype(np.int16)))),
        ("positions", lambda: gpu.slot_mapping(rows, long[:1])),
        ("out", lambda: gpu.slot_mapping(rows, long, out=table)),
        ("dtype", lambda: gpu.slot_mapping(rows, long, dtype="int64", out=rows)),
        ("dtype", lambda: gpu.slot_mapping(rows, long, dtype="uint32")),
        ("out", lambda: gpu.slot_mapping(rows, long, out=long[:1])),
        ("out", lambda: gpu.seq_lens(rows, out=long)),
        ("out", lambda: gpu.seq_lens(rows, out=csr.indices)),
        ("out", lambda: gpu.seq_lens(rows, out=csr.indices[:4:2])),
        ("out", lambda: gpu.block_tables(rows, out=table[:1])),
        ("out", lambda: gpu.block_tables(rows, out=table.reshape(-1))),
        ("out", lambda: gpu.block_tables(rows, out=pair.up(np.zeros((2, 4)), INT64))),
        ("out", lambda: gpu.block_tables(rows, out=table[:, ::2])),
        ("width", lambda: gpu.block_tables(rows, width=3, out=table)),
        ("width", lambda: gpu.block_tables(rows, width=-1)),
        ("width", lambda: gpu.block_tables(rows, width=2.5)),  # type: ignore[arg-type]
        ("out", lambda: gpu.page_table_csr(rows, out=tuple(csr))),  # type: ignore[arg-type]
        ("out.indptr", lambda: gpu.page_table_csr(rows, out=csr._replace(indptr=rows))),
        ("out.indices", lambda: gpu.page_table_csr(rows, out=csr._replace(indices=long))),
        ("out.indices", lambda: gpu.page_table_csr(rows, out=csr._replace(indices=table))),
        ("out.last_page_len", lambda: gpu.page_table_csr(rows[:1], out=csr._replace(indptr=rows))),
        ("num_new", lambda: gpu.attention_batch(rows, long[:1])),
        ("num_new", lambda: gpu.attention_batch(rows, -1)),
        ("num_new", lambda: gpu.attention_batch(rows, 1.0)),
        ("out", lambda: gpu.attention_batch(rows, 1, out=csr)),  # type: ignore[arg-type]
        ("dtype", lambda: gpu.attention_batch(rows, 1, dtype="int16")),
        *(
            (
                f"out.{name}",
                lambda name=name: gpu.attention_batch(rows, 1, out=whole._replace(**{name: table})),
            )
            for name in whole._fields
        ),
        *(
            (
                f"out.{name}",
                lambda name=name: gpu.attention_batch(
                    rows, 1, out=whole._replace(**{name: rows[:1]})
                ),
            )
            for name in whole._fields
            if name not in ("kv_indices", "slots")  # these may be of any size
        ),
    ]
    for argument, call in refused:
        with pytest.raises(InvalidArgument) as caught:
            call()
        assert caught.value.argument == argument
        assert type(caught.value) is InvalidArgument
    pair.pool.check()


def test_what_is_not_contiguous_is_read(pair: TablesPair) -> None:
    rows, positions = pair.up([0, 9, 2, 9], INT32)[::2], pair.up([4, 9, 7, 9], INT64)[::2]
    assert pair.down(pair.gpu.slot_mapping(rows, positions)).tolist() == [4, 15]


def test_tables_of_the_gpu_are_tables(pair: TablesPair) -> None:
    assert isinstance(pair.gpu, BlockTables)
    assert "max_sequences=5" in repr(pair.gpu)
    fresh = CudaBlockTables(pair.pool, 3, 2, NULL)
    assert (pair.down(fresh.arrays.pages) == NULL).all()
    fresh.seq_lens(pair.up([0], INT32))
    with pytest.raises(InvalidArgument, match="rows"):
        pair.pool.check()
