"""Block tables on the GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from jitalloc.state import table_arrays
from jitalloc.tables import BlockTables

if TYPE_CHECKING:
    from jitalloc.cuda.pool import CudaPagePool


class CudaBlockTables(BlockTables):
    """`BlockTables` whose arrays live on the GPU, beside those of a pool."""

    __slots__ = ("pool",)

    def __init__(
        self, pool: CudaPagePool, max_sequences: int, max_pages_per_sequence: int, pad: int
    ) -> None:
        self.pool = pool
        super().__init__(max_sequences, max_pages_per_sequence, pool.page_size, pad)

    def _install(self, slab: NDArray[np.int64]) -> None:
        self._slab = self.pool._gpu.upload(slab)
        self.arrays = table_arrays(self._slab, self.max_sequences, self.max_pages_per_sequence)
