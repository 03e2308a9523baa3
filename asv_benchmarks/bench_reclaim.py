"""Cached pages that give way: eviction by policy and by how many leaves there are."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

import jitalloc
from asv_benchmarks.baselines import LeafHeap

number = 1
repeat = 10
PREFIX_POLICIES = ("lru", "fifo", "mru", "lfu", "slru", "priority")
LEAVES_A_PARENT = 64


def grown(policy: str, leaves: int) -> jitalloc.PrefixCache:
    """Return a cache of so many leaves of one page; siblings were inserted far apart."""
    parents = max(leaves // LEAVES_A_PARENT, 1)
    pool = jitalloc.PagePool(leaves + parents)
    tree = jitalloc.PrefixCache(pool, policy=policy)
    pages = np.empty((leaves, 2), np.int32)
    first = pool.alloc(parents)
    pages[:, 0], pages[:, 1] = np.resize(first, leaves), pool.alloc(leaves)
    tokens = np.zeros((leaves, 2, pool.page_size), np.int32)
    tokens[:, 0, 0], tokens[:, 1, 0] = pages[:, 0], pages[:, 1]
    tokens = tokens.reshape(leaves, -1)
    for i in range(leaves):
        tree.insert(tokens[i], pages[i])
    pool.free(first)
    pool.free(pages[:, 1])
    return tree


@cache
def large(policy: str, leaves: int) -> jitalloc.PrefixCache:
    """Return the one such cache that the samples of a process share: they take little of it."""
    return grown(policy, leaves)


def grown_heap(leaves: int) -> LeafHeap:
    """Return the same tree as a `LeafHeap`."""
    tree, parents = LeafHeap(), max(leaves // LEAVES_A_PARENT, 1)
    for parent in range(parents):
        tree.insert(-1, parent)
    for i in range(leaves):
        tree.insert(i % parents, parents + i)
    return tree


class Evict:
    """640 pages in batches of 64, or 100 alone. Held to 0.1 and 1 us a page, flat in the leaves."""

    params = (PREFIX_POLICIES, (1024, 32_768, 1_048_576))
    param_names = ("policy", "leaves")
    timeout = 300
    warmup_time = 0  # else the warm-up alone would use the shared cache up

    def setup(self, policy: str, leaves: int) -> None:
        self.cache = (grown if leaves < 1_000_000 else large)(policy, leaves)
        self.cache.evict(64)

    def time_evict_64_x10(self, policy: str, leaves: int) -> None:
        evict = self.cache.evict
        for _ in range(10):
            evict(64)

    def time_evict_1_x100(self, policy: str, leaves: int) -> None:
        evict = self.cache.evict
        for _ in range(100):
            evict(1)


class EvictHeap:
    """The same for a heap that is rebuilt over all leaves at each call."""

    params = ((1024, 32_768),)
    param_names = ("leaves",)

    def setup(self, leaves: int) -> None:
        self.tree = grown_heap(leaves)

    def time_evict_64_x10(self, leaves: int) -> None:
        for _ in range(10):
            self.tree.evict(64)

    def time_evict_1_x10(self, leaves: int) -> None:
        for _ in range(10):
            self.tree.evict(1)


class Room:
    """New prompts of 4 pages, cached as they end, where others must give way; and the count.

    Before those that go free stand `others` leaves that the user owns too: they are passed over.
    """

    params = ((0, 100, 10_000),)
    param_names = ("others",)

    def setup(self, others: int) -> None:
        pool = jitalloc.PagePool(65_536)
        prefix = jitalloc.PrefixCache(pool)
        self.cache = jitalloc.PagedKVCache(pool, 8, 64, prefix_cache=prefix)
        tokens = np.arange(65_536 * 16, dtype=np.int32)
        for page in pool.alloc(others).tolist():
            prefix.insert(tokens[page * 16 : page * 16 + 16], [page])
        left = pool.alloc(65_536 - others)
        for four in np.split(left, left.size // 4):
            prefix.insert(tokens[four[0] * 16 : four[0] * 16 + 64], four)
        pool.free(left)
        self.prompt = np.arange(2**31 - 64, 2**31).astype(np.int32)

    def time_allocate_free_x100(self, others: int) -> None:
        for _ in range(100):
            self.prompt -= 64  # nobody has it yet
            self.cache.allocate("a", tokens=self.prompt)
            self.cache.free("a")

    def time_num_held(self, others: int) -> None:
        self.cache.num_held  # noqa: B018


class EvictLong:
    """`evict` of half of a prompt of 100,000 pages, and of 1,000 prompts of 100: whole runs go."""

    params = ((1, 1000),)
    param_names = ("prompts",)

    def setup(self, prompts: int) -> None:
        pool = jitalloc.PagePool(100_000, 1)
        self.cache = jitalloc.PrefixCache(pool)
        pages = pool.alloc(100_000)
        for part in np.split(pages, prompts):
            self.cache.insert(part, part)
        pool.free(pages)

    def time_evict_half(self, prompts: int) -> None:
        self.cache.evict(50_000)


class Parked:
    """Matches among 1,024 leaves are passed over by an eviction, then given back.

    So many leaves were inserted in between: giving back must not depend on them.
    """

    params = (PREFIX_POLICIES, (1024, 32_768))
    param_names = ("policy", "newer")

    def setup(self, policy: str, newer: int) -> None:
        pool = jitalloc.PagePool(1024 + newer)
        self.cache = jitalloc.PrefixCache(pool, policy=policy)
        pages = pool.alloc(1024 + newer)
        prompts = pages.repeat(pool.page_size).reshape(pages.size, -1)
        for i in range(1024):
            self.cache.insert(prompts[i], pages[i : i + 1])
        ours = range(924, 1024) if policy == "mru" else range(100)  # who would be next
        self.matches: list[Any] = [self.cache.match(prompts[i]) for i in ours]
        self.cache.evict(1)
        for i in range(1024, pages.size):
            self.cache.insert(prompts[i], pages[i : i + 1])

    def time_release_x100(self, policy: str, newer: int) -> None:
        for match in self.matches:
            self.cache.release(match)


class Metadata:
    """Bytes a page beside its tokens. Held to 64."""

    params = (PREFIX_POLICIES, (1, 16))
    param_names = ("policy", "page_size")

    def track_metadata_bytes(self, policy: str, page_size: int) -> float:
        pool = jitalloc.PagePool(65_536, page_size)
        slab = jitalloc.PrefixCache(pool, policy=policy).arrays.slab
        return round(slab.nbytes / pool.num_pages - 4 * page_size, 3)

    track_metadata_bytes.unit = "bytes"  # type: ignore[attr-defined]
