"""Who gives way when pages run short."""

from __future__ import annotations

import jitalloc

number = 1
repeat = 25
EVICTION_POLICIES = ("lru", "lfu", "longest", "priority", "streaming")


def full_cache(policy: str, sequences: int) -> jitalloc.PagedKVCache:
    """Return a cache that fills its pool with sequences of 1,024 to 1,279 tokens."""
    pool = jitalloc.PagePool(sequences * 80)
    cache = jitalloc.PagedKVCache(
        pool, sequences, 80, eviction=policy, sink_tokens=16, window_tokens=512
    )
    for i in range(sequences):
        cache.allocate(i, 1024 + i * 37 % 256, priority=i * 37 % 8)
    return cache


class Select:
    """`select_eviction_target`: a scan over the rows."""

    params = (EVICTION_POLICIES, (64, 4096))
    param_names = ("policy", "sequences")

    def setup(self, policy: str, sequences: int) -> None:
        self.cache = full_cache(policy, sequences)
        self.cache.select_eviction_target()

    def time_select_x100(self, policy: str, sequences: int) -> None:
        for _ in range(100):
            self.cache.select_eviction_target()


class Evict:
    """`evict` of one sequence after the other, 100 of 1,024 sequences."""

    params = (EVICTION_POLICIES,)
    param_names = ("policy",)

    def setup(self, policy: str) -> None:
        self.cache = full_cache(policy, 1024)
        self.cache.evict()

    def time_evict_x100(self, policy: str) -> None:
        for _ in range(100):
            self.cache.evict()


class EvictTo:
    """`evict_to(0.5)`: half of the pages of 64 or 1,024 sequences go, by one call."""

    params = (EVICTION_POLICIES, (64, 1024))
    param_names = ("policy", "sequences")

    def setup(self, policy: str, sequences: int) -> None:
        self.cache = full_cache(policy, sequences)
        self.cache.evict_to(1.0)

    def time_evict_to_half(self, policy: str, sequences: int) -> None:
        self.cache.evict_to(0.5)


class Streaming:
    """A sequence that never ends: a page of tokens, then `apply_streaming_llm`, by its window."""

    params = ((1024, 16_384),)
    param_names = ("window_tokens",)

    def setup(self, window_tokens: int) -> None:
        pool = jitalloc.PagePool(10_000)
        self.cache = jitalloc.PagedKVCache(pool, 1, 2048)
        self.cache.allocate("it", window_tokens + 64)
        self.step(window_tokens)

    def step(self, window_tokens: int) -> None:
        self.cache.append("it", 16)
        self.cache.apply_streaming_llm("it", 4, window_tokens)

    def time_append_cut_x100(self, window_tokens: int) -> None:
        for _ in range(100):
            self.step(window_tokens)
