"""What attention kernels read of sequences: the exports of the block tables, under the lock."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jitalloc.holding import SequencePages
from jitalloc.mirror import BlockTableMirror, mirror_of
from jitalloc.tables import PageTableCSR


class SequenceExports(SequencePages):
    """The part of `PagedKVCache` that hands out copies of its block tables."""

    def block_tables(
        self,
        rows: ArrayLike,
        *,
        width: int | None = None,
        out: NDArray[np.int32] | None = None,
    ) -> NDArray[np.int32]:
        """Return padded page ids, `int32[B, width]`; see `BlockTables.block_tables`."""
        with self.lock:
            return self.tables.block_tables(rows, width=width, out=out)

    def slot_mapping(
        self, rows: ArrayLike, positions: ArrayLike, *, out: NDArray[np.int64] | None = None
    ) -> NDArray[np.int64]:
        """Return the slots of tokens, `int64[B]`; see `BlockTables.slot_mapping`."""
        with self.lock:
            return self.tables.slot_mapping(rows, positions, out=out)

    def page_table_csr(self, rows: ArrayLike, *, out: PageTableCSR | None = None) -> PageTableCSR:
        """Return page ids in compressed sparse rows; see `BlockTables.page_table_csr`."""
        with self.lock:
            return self.tables.page_table_csr(rows, out=out)

    def seq_lens(
        self, rows: ArrayLike, *, out: NDArray[np.int32] | None = None
    ) -> NDArray[np.int32]:
        """Return the tokens of each sequence, `int32[B]`; see `BlockTables.seq_lens`."""
        with self.lock:
            return self.tables.seq_lens(rows, out=out)

    def mirror(self, device: str = "cuda", *, stream: Any = None) -> BlockTableMirror:
        """Return a copy of the block tables on a GPU, which follows them by its `refresh`.

        Reads them under the lock of this cache; see `BlockTables.mirror`.
        """
        return mirror_of(self.tables, device, stream, self.lock)
