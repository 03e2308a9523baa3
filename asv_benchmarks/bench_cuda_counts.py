"""What calls on the GPU execute, counted: the longest thread, memory, barriers, launches.

The compiled kernels run on the CPU for it, in the launches of an H200 (`tests/ptx`); no GPU is
needed, and the figures are the same each time. Where a merge is `due`, the pool has a million pages
and almost none of them in its freelist.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from asv_benchmarks.counts import Counted
from jitalloc import NULL, PagePool

PAGES = 1 << 20
SIZE = 16  # tokens of a page
SEQUENCES = 1024


class Pool:
    """A pool of a million pages on the GPU, and what cases need to make calls on it."""

    def __init__(self, order: str) -> None:
        self.random = np.random.default_rng(5)
        self.pool: Any = PagePool(PAGES, SIZE, order=order, device="cuda")

    def up(self, values: Any, dtype: type = np.int32) -> Any:
        return self.pool._gpu.upload(np.ascontiguousarray(values, dtype))

    def ids(self, n: int) -> Any:
        """Ids of `n` pages in a random order."""
        return self.up(self.random.permutation(PAGES)[:n])

    def prompts(self, sequences: int, tokens: int) -> tuple[Any, Any, Any]:
        """New sequences of so many tokens each: what `alloc_extend` takes."""
        lengths = self.up(np.full(sequences, tokens))
        last = self.up(np.full(sequences, NULL), np.int64)
        return self.up(np.zeros(sequences)), lengths, last

    def use_up(self) -> None:
        """Let half of the pages wait for a merge, and leave five in the freelist."""
        self.pool.free(self.pool.alloc(PAGES // 2 - 5))


def share(at: Pool, n: int) -> Callable[[], object]:
    at.pool.alloc(PAGES)
    pages = at.ids(n)
    return lambda: at.pool.share(pages)


def free(at: Pool, n: int) -> Callable[[], object]:
    at.pool.alloc(PAGES)
    pages = at.ids(n)
    return lambda: at.pool.free(pages)


def merge(at: Pool) -> Callable[[], object]:
    at.pool.alloc(PAGES)
    at.pool.free(at.ids(PAGES))
    return at.pool.merge


def alloc(at: Pool, n: int, due: bool = False) -> Callable[[], object]:
    if due:
        at.pool.alloc(PAGES // 2)
        at.use_up()
    return lambda: at.pool.alloc(n)


def batch(at: Pool) -> Callable[[], object]:
    counts, out = at.up(np.ones(PAGES)), at.up(np.zeros(PAGES))
    return lambda: at.pool.alloc_batch(counts, out=out)


def admit(at: Pool) -> Callable[[], object]:
    counts = at.up(np.ones(PAGES))
    return lambda: at.pool.admit(counts)


def decode(at: Pool, due: bool = False) -> Callable[[], object]:
    slots = at.pool.alloc_extend(*at.prompts(SEQUENCES, SIZE))
    last = at.up(at.pool._gpu.download(slots)[SIZE - 1 :: SIZE], np.int64)
    lengths = at.up(np.full(SEQUENCES, SIZE + 1))
    if due:
        at.pool.alloc(PAGES // 2 - SEQUENCES)
        at.use_up()
    return lambda: at.pool.alloc_decode(lengths, last)


def extend(at: Pool, sequences: int, tokens: int, due: bool = False) -> Callable[[], object]:
    if due:
        at.pool.alloc(PAGES // 2)
        at.use_up()
    prompts, out = at.prompts(sequences, tokens), at.up(np.zeros(sequences * tokens), np.int64)
    return lambda: at.pool.alloc_extend(*prompts, out=out)


CASES: dict[str, Callable[[Pool], Callable[[], object]]] = {
    "alloc 1 M": lambda at: alloc(at, PAGES),
    "alloc 10, merge due": lambda at: alloc(at, 10, due=True),
    "alloc_batch of 1 M single pages": batch,
    "admit 1 M": admit,
    "merge 1 M": merge,
    "share 4,096": lambda at: share(at, 4096),
    "share 1 M": lambda at: share(at, PAGES),
    "free 4,096": lambda at: free(at, 4096),
    "free 1 M": lambda at: free(at, PAGES),
    "decode 1,024": decode,
    "decode 1,024, merge due": lambda at: decode(at, due=True),
    "extend 256 x 256": lambda at: extend(at, 256, 256),
    "extend 1 x 65,536": lambda at: extend(at, 1, 65_536),
    "extend 256 x 256, merge due": lambda at: extend(at, 256, 256, due=True),
}
RING = ("share 4,096", "free 4,096", "free 1 M", "decode 1,024", "extend 256 x 256")


def launches_of(case: str, order: str) -> Any:
    """Return what the launches of a case have counted."""
    from tests.ptx.machine import counted

    at = Pool(order)
    call = CASES[case](at)
    with counted() as launches:
        call()
    at.pool.check()
    return launches


class Counts(Counted):
    """A call on a pool of a million pages."""

    params = (tuple(CASES), ("sorted", "fifo", "lifo"))
    param_names = ("call", "order")

    def setup(self, case: str, order: str) -> None:
        if order != "sorted" and case not in RING:
            raise NotImplementedError("as in a sorted pool, without a merge")
        from tests.ptx.install import install

        install()
        self.launches = launches_of(case, order)


if __name__ == "__main__":
    for case in CASES:
        found = Counts()
        found.setup(case, "sorted")
        print(f"{case:36s}", found)
