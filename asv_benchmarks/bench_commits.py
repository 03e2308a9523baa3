"""What sequences have computed: a batch of 256, nothing new, a chunk each, or all of a prompt."""

from __future__ import annotations

import numpy as np

import jitalloc

number = 1
repeat = 25

BATCH, PAGE_SIZE, CHUNK, CHUNKS = 256, 16, 64, 16


class CommitBatch:
    """16 calls of `commit_batch` on 256 sequences, 4,096 rows in all, beside `commit` by id.

    `decode`: all is computed already, and cached: what a call costs that has nothing to publish.
    `page`: each commits one page a call. `chunk`: each commits a chunk of four pages a call.
    """

    params = (("decode", "page", "chunk"), ("batch", "by id"))
    param_names = ("progress", "call")

    def setup(self, progress: str, call: str) -> None:
        pool = jitalloc.PagePool(20_000, PAGE_SIZE)
        prefix = jitalloc.PrefixCache(pool)
        self.cache = jitalloc.PagedKVCache(pool, BATCH, 128, prefix_cache=prefix)
        for i in range(BATCH):
            self.cache.allocate(i, tokens=np.arange(CHUNK * CHUNKS, dtype=np.int32) + i * 10_000)
        self.rows = np.arange(BATCH, dtype=np.int32)
        step = {"decode": 0, "page": PAGE_SIZE, "chunk": CHUNK}[progress]
        first = CHUNK * CHUNKS if progress == "decode" else step
        self.numbers = [np.full(BATCH, first + step * i, np.int32) for i in range(CHUNKS)]
        if progress == "decode":
            self.cache.commit_batch(self.rows)

    def time_commit_x4096(self, progress: str, call: str) -> None:
        cache, rows = self.cache, self.rows
        if call == "batch":
            for numbers in self.numbers:
                cache.commit_batch(rows, numbers)
            return
        for numbers in self.numbers:
            for i, n in enumerate(numbers.tolist()):
                cache.commit(i, n)
