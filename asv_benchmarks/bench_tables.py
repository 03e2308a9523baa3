"""The layouts that attention kernels read: padded block tables, slots, compressed rows, lengths."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

import jitalloc
from asv_benchmarks import baselines

number = 1
repeat = 25


def batch_of(
    sequences: int, tokens: int
) -> tuple[jitalloc.BlockTables, NDArray[np.int32], NDArray[np.int64]]:
    """Return tables, the rows of a batch in random order, and the last position of each.

    The sequences have `tokens` tokens or up to 31 less.
    """
    pool = jitalloc.PagePool(sequences * (tokens // 16 + 2))
    cache = jitalloc.PagedKVCache(pool, 512, tokens // 16 + 1)
    generator = np.random.default_rng(0)
    lengths = tokens - generator.integers(0, 32, sequences)
    for i, length in enumerate(lengths.tolist()):
        cache.allocate(i, length)
    rows = generator.permutation(sequences).astype(np.int32)
    return cache.tables, rows, lengths[rows] - 1


class BlockTables:
    """`block_tables`, as vLLM and TensorRT-LLM read them, beside an indexed copy by NumPy."""

    params = ((16, 256), (128, 8192), ("jitalloc", "numpy"))
    param_names = ("sequences", "tokens", "design")

    def setup(self, sequences: int, tokens: int, design: str) -> None:
        self.tables, self.rows, _positions = batch_of(sequences, tokens)

    def time_block_tables_x100(self, sequences: int, tokens: int, design: str) -> None:
        tables, rows = self.tables, self.rows
        if design == "numpy":
            for _ in range(100):
                baselines.numpy_block_tables(tables, rows)
        else:
            for _ in range(100):
                tables.block_tables(rows)


class PageTableCSR:
    """`page_table_csr`, as FlashInfer reads it, beside a mask over the padded table by NumPy."""

    params = ((16, 256), (128, 8192), ("jitalloc", "numpy"))
    param_names = ("sequences", "tokens", "design")

    def setup(self, sequences: int, tokens: int, design: str) -> None:
        self.tables, self.rows, _positions = batch_of(sequences, tokens)

    def time_page_table_csr_x100(self, sequences: int, tokens: int, design: str) -> None:
        tables, rows = self.tables, self.rows
        if design == "numpy":
            for _ in range(100):
                baselines.numpy_csr(tables, rows)
        else:
            for _ in range(100):
                tables.page_table_csr(rows)


class SlotMapping:
    """`slot_mapping` of each sequence's last token, beside indexing by NumPy."""

    params = ((16, 256), ("jitalloc", "numpy"))
    param_names = ("sequences", "design")

    def setup(self, sequences: int, design: str) -> None:
        self.tables, self.rows, self.positions = batch_of(sequences, 8192)

    def time_slot_mapping_x1000(self, sequences: int, design: str) -> None:
        tables, rows, positions = self.tables, self.rows, self.positions
        if design == "numpy":
            for _ in range(1000):
                baselines.numpy_slots(tables, rows, positions)
        else:
            for _ in range(1000):
                tables.slot_mapping(rows, positions)


class SeqLens:
    """`seq_lens` of a batch."""

    params = ((16, 256),)
    param_names = ("sequences",)

    def setup(self, sequences: int) -> None:
        self.tables, self.rows, _positions = batch_of(sequences, 8192)

    def time_seq_lens_x1000(self, sequences: int) -> None:
        tables, rows = self.tables, self.rows
        for _ in range(1000):
            tables.seq_lens(rows)


class Metadata:
    """Bytes of state a page of 1,024 rows: its id, and the row's share of what is known of it."""

    params = ((16, 128, 2048),)
    param_names = ("max_pages",)
    unit = "bytes/page"

    def track_bytes_a_page(self, max_pages: int) -> float:
        tables = jitalloc.BlockTables(1024, max_pages, page_size=16)
        return round(tables.arrays.slab.nbytes / (1024 * max_pages), 3)
