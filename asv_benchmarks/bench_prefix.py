"""Prompts that begin alike: finding what is cached of them, and keeping more."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

import jitalloc
from asv_benchmarks.baselines import BlockHashCache

number = 1
repeat = 25
Tokens = NDArray[np.int32]


def some_tokens(count: int, seed: int = 0) -> Tokens:
    """Return random tokens, as `match` takes them without a copy."""
    return np.random.default_rng(seed).integers(0, 100_000, count).astype(np.int32)


def store(cache: jitalloc.PrefixCache, tokens: Tokens) -> None:
    """Cache a prompt in fresh pages of which nobody else holds any."""
    pages = cache.pool.alloc(tokens.size // cache.pool.page_size)
    cache.insert(tokens, pages)
    cache.pool.free(pages)


class Match:
    """`match` and `release` of a cached prompt. Held to 1.4, 6 and 45 us for `match`, page 16.

    Beside it the hash of each block and a dict, as serving engines do it.
    """

    params = (("jitalloc", "block hash"), (16, 1), (1024, 8192, 65_536))
    param_names = ("design", "page_size", "tokens")

    def setup(self, design: str, page_size: int, tokens: int) -> None:
        array = some_tokens(tokens)
        self.tokens: Any = array
        if design == "jitalloc":
            self.cache: Any = jitalloc.PrefixCache(
                jitalloc.PagePool(tokens // page_size, page_size)
            )
            store(self.cache, array)
        else:
            self.cache, self.tokens = BlockHashCache(page_size), array.tolist()
            self.cache.insert(self.tokens, range(tokens // page_size))
        self.cache.release(self.cache.match(self.tokens))

    def time_match_release_x10(self, design: str, page_size: int, tokens: int) -> None:
        cache, ids = self.cache, self.tokens
        for _ in range(10):
            cache.release(cache.match(ids))


class MatchShapes:
    """The same for 8,192 tokens by how they lie: branches, pages in no order, nothing found."""

    params = (("one run", "branches", "scattered", "nothing"), (16, 1))
    param_names = ("shape", "page_size")

    def setup(self, shape: str, page_size: int) -> None:
        pool = jitalloc.PagePool(4 * 8192 // page_size, page_size)
        self.cache = jitalloc.PrefixCache(pool)
        self.tokens = some_tokens(8192)
        if shape == "scattered":
            pages = pool.alloc(8192 // page_size)
            np.random.default_rng(1).shuffle(pages)
            self.cache.insert(self.tokens, pages)
        elif shape != "nothing":
            store(self.cache, self.tokens)
        if shape == "branches":  # a prompt leaves it at every 128th token
            for end in range(128, 8192, 128):
                store(self.cache, np.append(self.tokens[:end], some_tokens(page_size, end)))
        self.cache.release(self.cache.match(self.tokens))

    def time_match_release_x100(self, shape: str, page_size: int) -> None:
        cache, tokens = self.cache, self.tokens
        for _ in range(100):
            cache.release(cache.match(tokens))


class MatchBatch:
    """64 prompts of 1,024 tokens, half of them cached: by one `match_batch`, or one by one."""

    params = (("batch", "single"),)
    param_names = ("how",)

    def setup(self, how: str) -> None:
        self.cache = jitalloc.PrefixCache(jitalloc.PagePool(64 * 64))
        self.prompts = some_tokens(64 * 1024).reshape(64, 1024)
        for prompt in self.prompts:
            store(self.cache, prompt[:512])
        self.flat, self.indptr = self.prompts.ravel(), np.arange(65) * 1024
        self.time_match_release(how)

    def time_match_release(self, how: str) -> None:
        cache = self.cache
        if how == "batch":
            cache.release(cache.match_batch(self.flat, self.indptr))
        else:
            for match in [cache.match(prompt) for prompt in self.prompts]:
                cache.release(match)


class Insert:
    """`insert` of new leaves of 128 tokens behind so many cached ones. Held to 3 us behind none."""

    params = (("jitalloc", "block hash"), (16, 1), (0, 1024))
    param_names = ("design", "page_size", "behind")

    def setup(self, design: str, page_size: int, behind: int) -> None:
        pool = jitalloc.PagePool((behind + 101 * 128) // page_size, page_size)
        first = pool.alloc(behind // page_size)
        self.prompts: list[Any] = []
        for i in range(101):
            tokens = np.append(some_tokens(behind), some_tokens(128, 1 + i))
            pages = np.append(first, pool.alloc(128 // page_size))
            self.prompts.append((tokens, pages))
        self.cache: Any = jitalloc.PrefixCache(pool)
        if design != "jitalloc":
            self.cache = BlockHashCache(page_size)
            self.prompts = [(tokens.tolist(), pages.tolist()) for tokens, pages in self.prompts]
        self.cache.insert(*self.prompts.pop())

    def time_insert_x100(self, design: str, page_size: int, behind: int) -> None:
        insert = self.cache.insert
        for tokens, pages in self.prompts:
            insert(tokens, pages)


class InsertAgain:
    """`insert` of 8,192 tokens that are all cached already: every page is canonical."""

    params = ((16, 1),)
    param_names = ("page_size",)

    def setup(self, page_size: int) -> None:
        self.cache = jitalloc.PrefixCache(jitalloc.PagePool(8192 // page_size, page_size))
        self.tokens, self.pages = some_tokens(8192), self.cache.pool.alloc(8192 // page_size)
        self.cache.insert(self.tokens, self.pages)

    def time_insert_x100(self, page_size: int) -> None:
        for _ in range(100):
            self.cache.insert(self.tokens, self.pages)
