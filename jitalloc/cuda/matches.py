"""What a prefix cache on the GPU answers with."""

from __future__ import annotations

from typing import Any

import numpy as np

from jitalloc._cuda_device import Device
from jitalloc.epochs import Epoch
from jitalloc.matches import Holder, PrefixBatch, PrefixMatch
from jitalloc.prefix_state import MATCH_FIELDS
from jitalloc.state import INT32, INT64


class CudaPrefixMatch(PrefixMatch):
    """A `PrefixMatch` whose pages lie on the GPU; its numbers have come down with the match."""

    # Whether it holds its locks is decided by the record on the GPU, which kernels read and write,
    # so that a call that is interrupted cannot make a lock be given back twice.
    __slots__ = ("_there",)

    def __init__(self, cache: Holder, epoch: Epoch, room: int, gpu: Device) -> None:
        super().__init__(cache, epoch, 0)
        self._there = gpu.empty(MATCH_FIELDS + room, INT32)
        gpu.clear(self._there[:MATCH_FIELDS])

    @property
    def pages(self) -> Any:
        """Pages of the prefix, `int32[num_pages]` on the GPU, by the ids of the match's time."""
        return self._there[MATCH_FIELDS : MATCH_FIELDS + self.num_pages]


class CudaPrefixBatch(PrefixBatch):
    """A `PrefixBatch` whose arrays lie on the GPU."""

    __slots__ = ("_gpu", "_there")

    def __init__(self, cache: Holder, epoch: Epoch, size: int, gpu: Device) -> None:
        super().__init__(cache, epoch, size)
        self._gpu = gpu
        self._there = gpu.upload(self._record)

    def _fill(self, pages: Any, page_size: int) -> None:
        super()._fill(pages, page_size)
        columns: list[Any] = [self.num_tokens.view(INT32), self.indptr]
        columns += [self.partial_pages, self.partial_tokens]
        there = self._gpu.upload(np.concatenate(columns))  # all four at once
        ends = np.cumsum([each.size for each in columns]).tolist()
        self.num_tokens = there[: ends[0]].view(INT64)
        self.indptr = there[ends[0] : ends[1]]
        self.partial_pages = there[ends[1] : ends[2]]
        self.partial_tokens = there[ends[2] :]
