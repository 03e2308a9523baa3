"""Sequences that share cached pages: prompts known and unknown, commits, decoding with tokens."""

from __future__ import annotations

import numpy as np

import jitalloc

number = 1
repeat = 25

PAGE_SIZE = 16


def cache_of(sequences: int, num_pages: int = 100_000) -> jitalloc.PagedKVCache:
    """Return an empty cache with a prefix cache, pages of 16 tokens."""
    pool = jitalloc.PagePool(num_pages, PAGE_SIZE)
    prefix = jitalloc.PrefixCache(pool)
    return jitalloc.PagedKVCache(pool, sequences, 4096, prefix_cache=prefix)


class AllocateFree:
    """`allocate(tokens=...)` and `free` of a prompt that is cached but for its last page.

    Beside it (`fresh`) one that is not cached at all: allocated, committed, freed, and its
    pages evicted by the next one, in a pool of just that size.
    """

    params = ((1024, 8192, 32_768), ("cached", "fresh"))
    param_names = ("tokens", "prompt")

    def setup(self, tokens: int, prompt: str) -> None:
        pages = tokens // PAGE_SIZE
        self.cache = cache_of(2, 2 * pages if prompt == "cached" else pages)
        count = 1 if prompt == "cached" else 2
        self.prompts = [np.arange(tokens, dtype=np.int32) + i for i in range(count)] * (
            100 // count
        )
        if prompt == "cached":
            self.cache.allocate("before", tokens=self.prompts[0][:-PAGE_SIZE])
            self.cache.commit("before")
            self.cache.free("before")
        self.prompts, prompts = self.prompts[:2], self.prompts
        self.time_allocate_free_x100(tokens, prompt)
        self.prompts = prompts

    def time_allocate_free_x100(self, tokens: int, prompt: str) -> None:
        cache, commit = self.cache, prompt == "fresh"
        for each in self.prompts:
            cache.allocate("it", tokens=each)
            if commit:
                cache.commit("it")
            cache.free("it", commit=commit)


class Decode:
    """100 decode steps of `append_batch` with token ids, with and without a prefix cache."""

    params = ((16, 256, 1024), (True, False))
    param_names = ("sequences", "prefix_cache")

    def setup(self, sequences: int, prefix_cache: bool) -> None:
        pool = jitalloc.PagePool(200_000, PAGE_SIZE)
        prefix = jitalloc.PrefixCache(pool) if prefix_cache else None
        self.cache = jitalloc.PagedKVCache(pool, sequences, 64, prefix_cache=prefix)
        for i in range(sequences):
            tokens = np.arange(64 + i % 16, dtype=np.int32) + i
            self.cache.allocate(i, tokens=tokens)
        self.rows = np.arange(sequences, dtype=np.int32)
        self.tokens = np.arange(sequences, dtype=np.int32)
        self.cache.append_batch(self.rows, tokens=self.tokens)

    def time_append_batch_x100(self, sequences: int, prefix_cache: bool) -> None:
        cache, rows, tokens = self.cache, self.rows, self.tokens
        for _ in range(100):
            cache.append_batch(rows, tokens=tokens)


class Commit:
    """`commit` of a prompt of 8,192 tokens that nobody has cached, and of one that is cached."""

    params = (("new", "duplicate"),)
    param_names = ("prompt",)

    def setup(self, prompt: str) -> None:
        self.cache = cache_of(101)
        base = np.arange(8192, dtype=np.int32)
        for i in range(100):
            tokens = base + i if prompt == "new" else base
            self.cache.allocate(i, tokens=tokens)
        if prompt == "duplicate":
            self.cache.allocate("first", tokens=base)
            self.cache.commit("first")

    def time_commit_x100(self, prompt: str) -> None:
        cache = self.cache
        for i in range(100):
            cache.commit(i)
