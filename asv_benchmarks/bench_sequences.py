"""Sequences that grow: decode steps, prefill, forks and their copies, beams, speculation."""

from __future__ import annotations

import numpy as np

import jitalloc
from asv_benchmarks.baselines import ListSequences

number = 1
repeat = 25


def cache_of(
    max_sequences: int, max_pages: int = 2048, num_pages: int = 200_000
) -> jitalloc.PagedKVCache:
    """Return an empty cache of pages of 16 tokens."""
    return jitalloc.PagedKVCache(jitalloc.PagePool(num_pages), max_sequences, max_pages)


class Decode:
    """100 decode steps `append_batch(rows)`; sequences cross into new pages in turn.

    Beside it the same steps by a list of pages for each sequence and a dict of counts.
    """

    params = ((1, 16, 256, 1024), ("jitalloc", "lists"))
    param_names = ("sequences", "design")

    def setup(self, sequences: int, design: str) -> None:
        self.rows = np.arange(sequences, dtype=np.int32)
        lengths = (np.arange(sequences) % 16 + 64).tolist()
        if design == "lists":
            self.cache = ListSequences(200_000, 16)
            self.rows = self.rows.tolist()
            for length in lengths:
                self.cache.allocate(length)
        else:
            self.cache = cache_of(sequences, 16)
            for i, length in enumerate(lengths):
                self.cache.allocate(i, length)
        self.cache.append_batch(self.rows)

    def time_append_batch_x100(self, sequences: int, design: str) -> None:
        cache, rows = self.cache, self.rows
        for _ in range(100):
            cache.append_batch(rows)


class Append:
    """`append` of one token to one sequence by its id, 1,000 times."""

    def setup(self) -> None:
        self.cache = cache_of(1)
        self.cache.allocate("it", 1)
        self.cache.append("it")

    def time_append_x1000(self) -> None:
        cache = self.cache
        for _ in range(1000):
            cache.append("it")


class Prefill:
    """16 prompts of 8,192 tokens, read in chunks."""

    params = ((512, 8192),)
    param_names = ("chunk",)

    def setup(self, chunk: int) -> None:
        self.cache = cache_of(16, 512)
        for i in range(16):
            self.cache.allocate(i, 0)
        self.rows = np.arange(16, dtype=np.int32)
        self.cache.append_batch(self.rows, 0)

    def time_append_batch(self, chunk: int) -> None:
        for _ in range(8192 // chunk):
            self.cache.append_batch(self.rows, chunk)


class Fork:
    """`fork` of a sequence and the `free` of the fork, by length."""

    params = ((100, 2048, 32_768),)
    param_names = ("tokens",)

    def setup(self, tokens: int) -> None:
        self.cache = cache_of(2)
        self.cache.allocate("parent", tokens)
        self.cache.fork("parent", "child")
        self.cache.free("child")

    def time_fork_free_x100(self, tokens: int) -> None:
        cache = self.cache
        for _ in range(100):
            cache.fork("parent", "child")
            cache.free("child")


class ForkBatch:
    """`fork_batch` of 32 prompts of 1,024 tokens, 8 samples of each."""

    def setup(self) -> None:
        self.cache = cache_of(32 * 9, 80)
        for i in range(32 * 9):
            self.cache.allocate(i, 1024 if i < 32 else 0)
        self.sources = np.repeat(np.arange(32, dtype=np.int32), 8)
        self.samples = np.arange(32, 32 * 9, dtype=np.int32)
        self.cache.fork_batch(self.sources[:0], self.samples[:0])

    def time_fork_batch(self) -> None:
        self.cache.fork_batch(self.sources, self.samples)


class CopyOnWrite:
    """Fork, one token to each of both (the first to write copies the last page), free the fork."""

    def setup(self) -> None:
        self.cache = cache_of(2)
        self.cache.allocate("parent", 100)
        self.rows = np.array([0, 1], np.int32)
        self.step()
        self.cache.truncate("parent", 100)

    def step(self) -> None:
        self.cache.fork("parent", "child")
        self.cache.append_batch(self.rows)
        self.cache.free("child")
        self.cache.truncate("parent", 100)

    def time_fork_append_free_truncate_x100(self) -> None:
        for _ in range(100):
            self.step()


class Reorder:
    """One step of beam search, `reorder`: 16 groups of 4 beams of 1,024 tokens.

    `shuffled` beams only change places; of `pruned` ones two of four end, two go on twice.
    """

    params = (("shuffled", "pruned"),)
    param_names = ("beams",)

    def setup(self, beams: str) -> None:
        self.cache = cache_of(64, 80)
        for i in range(64):
            self.cache.allocate(i, 1024)
        self.rows = np.arange(64, dtype=np.int32)
        parents = {"shuffled": [1, 2, 3, 0], "pruned": [0, 0, 1, 1]}[beams]
        self.parents = (np.arange(0, 64, 4)[:, None] + parents).ravel().astype(np.int32)
        self.cache.reorder(self.rows, self.parents)

    def time_reorder_x100(self, beams: str) -> None:
        cache, rows, parents = self.cache, self.rows, self.parents
        for _ in range(100):
            cache.reorder(rows, parents)


class Speculation:
    """Five speculative tokens, of which `truncate` rejects four, for one sequence."""

    def setup(self) -> None:
        self.cache = cache_of(1)
        self.cache.allocate("it", 0)
        self.cache.append("it", 5)
        self.cache.truncate("it", 1)

    def time_append_truncate_x1000(self) -> None:
        cache = self.cache
        for length in range(2, 1002):
            cache.append("it", 5)
            cache.truncate("it", length)


class SpeculationBatch:
    """Two tokens more for each of 256 sequences, which `truncate_batch` rejects."""

    def setup(self) -> None:
        self.cache = cache_of(256)
        for i in range(256):
            self.cache.allocate(i, 100)
        self.rows = self.cache.rows(range(256))
        self.drop = np.full(256, 2)
        self.time_append_truncate_batch_256()

    def time_append_truncate_batch_256(self) -> None:
        self.cache.append_batch(self.rows, 2)
        self.cache.truncate_batch(self.rows, drop=self.drop)
