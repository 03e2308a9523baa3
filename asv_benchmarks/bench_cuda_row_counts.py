"""What calls on 1,024 sequences of the GPU cost, counted: see `bench_cuda_counts.py`.

A sequence has 64 pages of 16 tokens, 50 of them full. Where a merge is `due`, the pool has a
million pages and almost none of them in its freelist.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from asv_benchmarks.counts import Counted
from jitalloc import NULL, AttentionBatch, PagedKVCache, PagePool, PageTableCSR, PrefixCache

PAGES = 1 << 20
SIZE = 16  # tokens of a page
ROWS = 1024
WIDTH = 64  # pages of a row
TOKENS = 50 * SIZE


class Cache:
    """1,024 sequences on the GPU, and what cases need to make calls on them."""

    def __init__(self, order: str = "sorted", *, prefix: bool = False, due: bool = False) -> None:
        made = [self._made(order, device, prefix) for device in ("cpu", "cuda")]
        cpu, self.cache = made
        for row in range(ROWS):
            cpu.allocate(row, TOKENS + row % SIZE)
        if due:
            cpu.pool.free(cpu.pool.alloc(cpu.pool.num_free - 5))
        self.cache.restore(cpu.snapshot())
        self.rows = self.up(range(ROWS))

    def _made(self, order: str, device: str, prefix: bool) -> Any:
        pool: Any = PagePool(PAGES, SIZE, order=order, device=device)
        behind = PrefixCache(pool) if prefix else None
        return PagedKVCache(pool, ROWS + 1, WIDTH, prefix_cache=behind)

    def up(self, values: Any, dtype: type = np.int32) -> Any:
        return self.cache.pool._gpu.upload(np.array(values, dtype))

    def every(self, n: int) -> Any:
        """A batch of all rows, of which all are NULL but every `n`-th one."""
        rows = np.full(ROWS, NULL)
        rows[::n] = np.arange(0, ROWS, n)
        return self.up(rows)


def append(at: Cache, tokens: bool = False) -> Callable[[], object]:
    out, copies = at.up(np.zeros(ROWS), np.int64), at.up(np.zeros((2, ROWS)))
    ids = at.up(range(ROWS)) if tokens else None
    return lambda: at.cache.append_batch(at.rows, 1, tokens=ids, out=out, copies=copies)


def prompts(at: Cache) -> Callable[[], object]:
    """256 sequences of 800 tokens grow by 200 more each."""
    rows, counts = at.rows[:256], at.up(np.full(256, 200))
    out, copies = at.up(np.zeros(51200), np.int64), at.up(np.zeros((2, 256)))
    return lambda: at.cache.append_batch(rows, counts, out=out, copies=copies)


def truncate(at: Cache) -> Callable[[], object]:
    drop, out = at.up(np.arange(ROWS) % 4), at.up([0], np.int64)
    return lambda: at.cache.truncate_batch(at.rows, drop=drop, out=out)


def end(at: Cache, every: int) -> Callable[[], object]:
    rows, out = at.every(every), at.up([0], np.int64)
    return lambda: at.cache.free_batch(rows, commit=False, out=out)


def reorder(at: Cache) -> Callable[[], object]:
    rows = at.rows[:512]
    parents = at.up(np.arange(512) // 2 * 2)
    at.cache.reorder(rows[:0], rows[:0])
    return lambda: at.cache.reorder(rows, parents)


def window(at: Cache) -> Callable[[], object]:
    rows, out = at.rows[:512], at.up(np.zeros(512), np.int64)
    return lambda: at.cache.apply_streaming_llm_batch(rows, SIZE, 256, out=out)


def csr(at: Cache) -> Callable[[], object]:
    sizes = ROWS + 1, ROWS * (TOKENS // SIZE + 1), ROWS
    out = PageTableCSR(*(at.up(np.zeros(size)) for size in sizes))
    return lambda: at.cache.page_table_csr(at.rows, out=out)


def attention(at: Cache) -> Callable[[], object]:
    """A step: the last token of each is new."""
    sizes = ROWS + 1, ROWS, ROWS, ROWS + 1, ROWS * (TOKENS // SIZE + 1), ROWS, ROWS
    buffers = [at.up(np.zeros(size)) for size in sizes]
    out = AttentionBatch(*buffers)
    return lambda: at.cache.attention_batch(at.rows, 1, out=out)


def room(at: Cache) -> Callable[[], object]:
    return lambda: at.cache.room_for(at.rows)


CASES: dict[str, tuple[dict[str, Any], Callable[[Cache], Callable[[], object]]]] = {
    "append 1,024": ({}, append),
    "append 1,024, merge due": ({"due": True}, append),
    "append 1,024 with tokens": ({"prefix": True}, lambda at: append(at, tokens=True)),
    "append 256 x 200": ({}, prompts),
    "truncate 1,024": ({}, truncate),
    "free 21 of 1,024": ({}, lambda at: end(at, 50)),
    "free 1,024": ({}, lambda at: end(at, 1)),
    "free 1,024, fifo": ({"order": "fifo"}, lambda at: end(at, 1)),
    "reorder 512": ({}, reorder),
    "windows of 512": ({}, window),
    "allocate 1,000": ({}, lambda at: lambda: at.cache.allocate("new", 1_000)),
    "allocate 1,000, merge due": ({"due": True}, lambda at: lambda: at.cache.allocate("it", 1_000)),
    "page_table_csr 1,024": ({}, csr),
    "attention_batch 1,024": ({}, attention),
    "room_for 1,024": ({}, room),
}


def launches_of(case: str) -> Any:
    """Return what the launches of a case have counted."""
    from tests.ptx.machine import counted

    options, made = CASES[case]
    at = Cache(**options)
    call = made(at)
    with counted() as launches:
        call()
    at.cache.pool.check()
    return launches


class RowCounts(Counted):
    """A call on 1,024 sequences, on a pool of a million pages."""

    params = tuple(CASES)
    param_names = ("call",)

    def setup(self, case: str) -> None:
        from tests.ptx.install import install

        install()
        self.launches = launches_of(case)


if __name__ == "__main__":
    for case in CASES:
        found = RowCounts()
        found.setup(case)
        print(f"{case:36s}", found)
