"""One random export for each CUDA kernel of the block tables, compared with that of the CPU."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np

from jitalloc import NULL, AttentionBatch, PagePool, PageTableCSR, errors
from jitalloc.sequences.state import LOCK_END, LOCKED
from jitalloc.sequences.tables_cuda import CudaBlockTables
from tests import cache_steps
from tests.cache_pairs import CachePair
from tests.cache_steps import attention_buffers
from tests.pairs import outcome

INT32, INT64 = np.dtype(np.int32), np.dtype(np.int64)

# Kernels of the CPU that have no twin, and why tables on a GPU do without.
WITHOUT_TWIN = {"tables_check_cpu": "runs on a copy of the state"}


def outcome_in_words(call: Callable[[], Any]) -> tuple[Any, ...]:
    """What a call returned, with dtypes and shapes, or which error it raised and its text."""
    said: list[Any] = []

    def listened() -> Any:
        try:
            results = call()
        except errors.JitallocError as error:
            said.append(str(error))
            raise
        parts = results if isinstance(results, tuple) else (results,)
        said.extend((each.dtype, each.shape) for each in parts)
        return results

    return (*outcome(listened), said)


class TablesPair:
    """Block tables of the CPU with random sequences, and a copy of them on the GPU."""

    def __init__(self, random: Random, rounds: int = 40, **options: Any) -> None:
        self.cache_pair = pair = CachePair(**options)
        for _ in range(rounds):
            random.choice(cache_steps.BACKGROUND)(pair, random)
        self.cpu = tables = pair.cache.tables
        self.pool: Any = PagePool(
            1 + pair.pool.null_page, tables.page_size, device="cuda", null_page=pair.pool.null_page
        )
        sizes = tables.max_sequences, tables.max_pages_per_sequence
        self.gpu = CudaBlockTables(self.pool, *sizes, tables.pad)
        self.copy()

    def copy(self) -> None:
        """Bring the state of the CPU to the GPU."""
        self.gpu._install(self.cpu._slab)

    def up(self, values: Any, dtype: np.dtype[Any]) -> Any:
        return self.pool._gpu.upload(np.array(values, dtype))

    def down(self, values: Any) -> Any:
        return self.pool._gpu.download(values)

    def compare(self, on_cpu: Callable[[], Any], on_gpu: Callable[[], Any]) -> tuple[Any, ...]:
        """Both sides return the same or raise the same; the state is as it was."""
        expected = outcome_in_words(on_cpu)
        got = outcome_in_words(lambda: self.settle(on_gpu))
        assert got == expected
        assert self.down(self.gpu._slab).tolist() == self.cpu._slab.tolist()
        record = self.down(self.pool._record).tolist()
        assert not any(record[:1] + record[8:]), "a ticket or a lowest failure is left over"
        assert self.pool.step == 0, "an export is no step"
        return got

    def settle(self, call: Callable[[], Any]) -> Any:
        """Run an export; its results as NumPy arrays, or what the pool has kept for later."""
        results = call()
        parts = [self.down(each) for each in (results if isinstance(results, tuple) else [results])]
        try:
            self.pool._settled()
        except errors.JitallocError:
            assert all((each == NULL).all() for each in parts), "results of a failed call"
            raise
        return type(results)(*parts) if isinstance(results, tuple) else parts[0]

    def some_rows(self, random: Random) -> list[int]:
        """Live rows, some of them named twice, and sometimes one that is free or out of range."""
        if random.random() < 0.5:
            return cache_steps.some_rows(self.cache_pair, random)
        live = sorted(self.cache_pair.cache_model.rows)
        rows = random.choices(live, k=random.choice((0, 1, 9, 40))) if live else []
        for _ in range(random.choice((0, 0, 1, 2)) if rows else 0):
            wrong = random.choice((-2, -(2**31), 2**31 - 1, *range(self.cpu.max_sequences + 1)))
            rows[random.randrange(len(rows))] = wrong
        return rows

    # One export, on both sides.

    def block_tables(self, rows: Any, width: int | None = None) -> tuple[Any, ...]:
        on_gpu = self.up(rows, INT32)
        return self.compare(
            lambda: self.cpu.block_tables(rows, width=width),
            lambda: self.gpu.block_tables(on_gpu, width=width),
        )

    def block_tables_into(self, rows: Any, width: int) -> tuple[Any, ...]:
        """With a buffer, and something behind it that must stay."""
        whole = self.up(np.full((len(rows) + 1, width), 55), INT32)
        out = whole[: len(rows)]
        on_gpu = self.up(rows, INT32)
        got = self.compare(
            lambda: self.cpu.block_tables(rows, width=width),
            lambda: self.gpu.block_tables(on_gpu, out=out),
        )
        assert (self.down(whole)[len(rows) :] == 55).all()
        return got

    def slot_mapping(self, rows: Any, positions: Any) -> tuple[Any, ...]:
        on_gpu, at = self.up(rows, INT32), self.up(positions, INT64)
        return self.compare(
            lambda: self.cpu.slot_mapping(rows, positions),
            lambda: self.gpu.slot_mapping(on_gpu, at, out=at),
        )

    def slots_of(self, rows: Any, positions: Any, dtype: Any) -> tuple[Any, ...]:
        """Without a buffer, of either dtype."""
        on_gpu, at = self.up(rows, INT32), self.up(positions, INT64)
        return self.compare(
            lambda: self.cpu.slot_mapping(rows, positions, dtype=dtype),
            lambda: self.gpu.slot_mapping(on_gpu, at, dtype=dtype),
        )

    def page_table_csr(self, rows: Any, room: int | None = None) -> tuple[Any, ...]:
        """With buffers that hold `room` pages, or without."""

        def buffers() -> PageTableCSR | None:
            if room is None:
                return None
            sizes = len(rows) + 1, room, len(rows)
            return PageTableCSR(*(np.full(size, 66, np.int32) for size in sizes))

        host, on_gpu = buffers(), self.up(rows, INT32)
        there = PageTableCSR(*(self.up(each, INT32) for each in host)) if host else None
        return self.compare(
            lambda: self.cpu.page_table_csr(rows, out=host),
            lambda: self.gpu.page_table_csr(on_gpu, out=there),
        )

    def attention_batch(
        self, rows: Any, new: Any, sizes: tuple[int, int] | None = None, kind: Any = INT64
    ) -> tuple[Any, ...]:
        """With buffers of so many tokens and pages, or without; `new` for all or for each."""
        host = None if sizes is None else attention_buffers(len(rows), *sizes, kind)
        there = host and AttentionBatch(*(self.up(each, each.dtype) for each in host))
        on_gpu = self.up(rows, INT32)
        counts = new if isinstance(new, int) else self.up(new, INT64)
        dtype = None if host else kind
        return self.compare(
            lambda: self.cpu.attention_batch(rows, new, dtype=dtype, out=host),
            lambda: self.gpu.attention_batch(on_gpu, counts, dtype=dtype, out=there),
        )

    def seq_lens(self, rows: Any) -> tuple[Any, ...]:
        on_gpu = self.up(rows, INT32)
        return self.compare(
            lambda: self.cpu.seq_lens(rows), lambda: self.gpu.seq_lens(on_gpu, out=on_gpu)
        )

    def rename(self, names: Any) -> None:
        self.gpu._rename(self.up(names, INT32))
        self.cpu._rename(np.array(names, np.int32))
        assert self.down(self.gpu._slab).tolist() == self.cpu._slab.tolist()


Step = Callable[[TablesPair, Random], Any]


def padded(pair: TablesPair, random: Random) -> None:
    most = pair.cpu.max_pages_per_sequence
    pair.block_tables_into(pair.some_rows(random), random.choice((0, 1, 2, most, 40)))
    pair.block_tables(pair.some_rows(random), random.randrange(most + 1))


def width(pair: TablesPair, random: Random) -> None:
    pair.block_tables(pair.some_rows(random))


def slots(pair: TablesPair, random: Random) -> None:
    rows, sequences = pair.some_rows(random), pair.cache_pair.cache_model.rows
    ends = [sequences[row].length if row in sequences else 1 for row in rows]
    positions = [random.randrange(end) if end else 0 for end in ends]
    if rows and random.random() < 0.3:
        at = random.randrange(len(rows))
        positions[at] = random.choice((-1, ends[at], 2**31, 2**40, -(2**63)))
    pair.slot_mapping(rows, positions)
    pair.slots_of(rows, positions, random.choice((INT32, INT64)))


def csr(pair: TablesPair, random: Random) -> None:
    rows, sequences = pair.some_rows(random), pair.cache_pair.cache_model.rows
    total = sum(len(sequences[row].pages) for row in rows if row in sequences)
    pair.page_table_csr(rows, max(0, total + random.choice((-1, 0, 1, 9))))


def some_new(pair: TablesPair, random: Random) -> tuple[list[int], Any]:
    """Rows, and how many of their tokens are new: sometimes too many, or one number for all."""
    rows, sequences = pair.some_rows(random), pair.cache_pair.cache_model.rows
    lengths = [sequences[row].length if row in sequences else 3 for row in rows]
    counts = [random.choice((0, min(1, n), n, random.randrange(n + 1))) for n in lengths]
    if rows and random.random() < 0.3:
        at = random.randrange(len(rows))
        counts[at] = random.choice((-1, lengths[at] + 1, 2**31, 2**40, -(2**63), 2**63 - 1))
    return rows, random.choice((counts, counts, counts, random.choice((0, 1))))


def attention(pair: TablesPair, random: Random) -> None:
    rows, new = some_new(pair, random)
    sizes = random.randrange(200), random.randrange(200)
    pair.attention_batch(rows, new, sizes, random.choice((INT32, INT64)))


def attention_sizes(pair: TablesPair, random: Random) -> None:
    pair.attention_batch(*some_new(pair, random), kind=random.choice((INT32, INT64)))


def total(pair: TablesPair, random: Random) -> None:
    pair.page_table_csr(pair.some_rows(random))


def lengths(pair: TablesPair, random: Random) -> None:
    pair.seq_lens(pair.some_rows(random))


def rename(pair: TablesPair, random: Random) -> None:
    """Both ends of a cached path move as well: rows that lock one say which."""
    names = list(range(pair.cache_pair.pool.num_pages))
    random.shuffle(names)
    columns = pair.cpu.arrays.columns
    before = columns.copy()
    columns[LOCKED] = [random.randrange(2) for _ in range(columns.shape[1])]
    columns[LOCK_END] = [random.choice(names) for _ in range(columns.shape[1])]
    pair.copy()
    pair.rename(names)
    pair.cpu._rename(np.argsort(names).astype(np.int32))
    columns[:] = before
    pair.copy()


CUDA_STEPS: dict[str, Step] = {
    "attention_export_cuda": attention,
    "attention_total_cuda": attention_sizes,
    "tables_csr_cuda": csr,
    "tables_lengths_cuda": lengths,
    "tables_padded_cuda": padded,
    "tables_rename_cuda": rename,
    "tables_slots_cuda": slots,
    "tables_total_cuda": total,
    "tables_width_cuda": width,
}
