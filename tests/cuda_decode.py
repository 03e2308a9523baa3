"""Decode steps on the GPU in buffers that stay where they are, beside the same steps on the CPU.

What a step does on the GPU can be captured in a CUDA graph: `test_cuda_gpu.py` does. In numba's
simulator it is called again and again: `test_cuda_steps.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jitalloc import NULL, PagedKVCache, PagePool
from jitalloc.sequences.tables import PageTableCSR

INT32, INT64 = np.int32, np.int64


class PoolSteps:
    """Sequences that grow by a token a step, and `moving` pages that go and come in each."""

    def __init__(self, steps: int, order: str = "sorted", batch: int = 6, moving: int = 3) -> None:
        size = 4
        pages = batch * (steps // size + 2) + 2 * moving
        self.gpu: Any = PagePool(pages, size, order=order, device="cuda")
        self.cpu = PagePool(pages, size, order=order)
        lengths = np.arange(batch, dtype=INT64) % size  # one or two begin a page in each step
        prompts = np.zeros(batch, INT64), lengths, np.full(batch, NULL, INT64)
        self.seq, self.last = lengths.copy(), prompts[2].copy()
        slots, ends = self.cpu.alloc_extend(*prompts), np.cumsum(lengths)
        self.last[lengths > 0] = slots[ends[lengths > 0] - 1]
        self.held, self.freed = self.cpu.alloc(moving), 0
        device = self.gpu._gpu
        self.gpu.alloc_extend(*(device.upload(each) for each in prompts))
        self.gpu.alloc(moving)
        on_gpu = (self.seq, self.last, self.held, np.zeros(1, INT64))
        self.buffers = [device.upload(each) for each in on_gpu]

    def on_gpu(self) -> None:
        seq, last, held, freed = self.buffers
        seq += 1
        self.gpu.alloc_decode(seq, last, out=last)
        self.gpu.free(held, out=freed)
        self.gpu.alloc(held.size, out=held)

    def on_cpu(self) -> None:
        self.seq += 1
        self.cpu.alloc_decode(self.seq, self.last, out=self.last)
        self.freed = self.cpu.free(self.held)
        self.cpu.alloc(self.held.size, out=self.held)

    def agree(self) -> None:
        self.gpu._settled()
        there = [self.gpu._gpu.download(each).tolist() for each in self.buffers]
        assert there == [self.seq.tolist(), self.last.tolist(), self.held.tolist(), [self.freed]]
        assert (self.gpu._gpu.download(self.gpu._slab) == self.cpu._slab).all()


class CacheSteps:
    """Sequences of a `PagedKVCache`, one of them forked, and what attention reads of them."""

    def __init__(self, steps: int, batch: int = 4) -> None:
        size, width = 4, (steps + 2 * batch) // 4 + 3
        self.pools: list[Any] = [
            PagePool(batch * width, size, device=device) for device in ("cuda", "cpu")
        ]
        self.caches: list[Any] = [PagedKVCache(pool, batch, width) for pool in self.pools]
        for cache in self.caches:
            for i in range(batch - 1):
                cache.allocate(i, 2 * i + 1)
            cache.fork(batch - 2, "fork")  # its first token copies a page
        rows = self.caches[1].rows([*range(batch - 1), "fork"])
        lengths = [2 * i + 1 for i in range(batch - 1)]
        self.positions = np.array([*lengths, lengths[-1]], INT64) - 1
        self.rows, up = rows, self.pools[0]._gpu.upload
        self.there = [up(each) for each in (rows, self.positions)]
        self.slots, self.mapped = (up(np.zeros(batch, INT64)) for _ in range(2))
        self.copies = up(np.zeros((2, batch), INT32))
        sizes = (batch + 1, batch * width, batch)
        self.csr = PageTableCSR(*(up(np.zeros(each, INT32)) for each in sizes))
        self.wanted: list[Any] = []

    def on_gpu(self) -> None:
        rows, positions = self.there
        positions += 1
        cache = self.caches[0]
        cache.append_batch(rows, 1, out=self.slots, copies=self.copies)
        cache.slot_mapping(rows, positions, out=self.mapped)
        cache.page_table_csr(rows, out=self.csr)

    def on_cpu(self) -> None:
        self.positions += 1
        cache = self.caches[1]
        slots, copies = cache.append_batch(self.rows, 1)
        mapped = cache.slot_mapping(self.rows, self.positions)
        self.wanted = [slots, *copies, mapped, *cache.page_table_csr(self.rows)]

    def agree(self) -> None:
        """Results are padded with NULL; the states of pools and tables are the same words."""
        self.pools[0]._settled()
        down = self.pools[0]._gpu.download
        copies = down(self.copies)
        results = [down(self.slots), *copies, down(self.mapped), *(down(each) for each in self.csr)]
        for result, wanted in zip(results, self.wanted, strict=True):
            assert result[: wanted.size].tolist() == wanted.tolist()
            assert (result[wanted.size :] == NULL).all()
        for gpu, cpu in (self.pools, [each.tables for each in self.caches]):
            assert (down(gpu._slab) == cpu._slab).all()
