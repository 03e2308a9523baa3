"""Sequences behind a prefix cache, on a pool of the GPU, beside their model.

The steps of `sharing_pairs.py` run on it as they are. Locks of rows that a batch changes are given
back in the order of rows, when the index follows: so such batches name their rows in that order.
"""

from __future__ import annotations

from typing import Any

from jitalloc import PagedKVCache, PagePool, PrefixCache
from tests import oracle_prefix
from tests.cuda_cache_pairs import HostCache, in_order
from tests.cuda_pairs import HostView
from tests.cuda_prefix_pairs import PrefixView
from tests.oracle_sharing import SharingCache
from tests.pairs import PoolPair
from tests.sharing_pairs import SharingPair


class CudaSharingPair(SharingPair):
    """A pool, a prefix cache and sequences on the GPU, each with its model."""

    def __init__(
        self,
        num_pages: int = 16,
        page_size: int = 4,
        order: str = "sorted",
        null_page: bool = False,
        max_sequences: int = 6,
        max_pages: int = 8,
        eviction: str = "lru",
        threshold: float = 0.9,
        sink: int = 4,
        window: int = 8,
        **options: Any,
    ) -> None:
        PoolPair.__init__(self, num_pages, page_size, order, null_page)
        pool: Any = PagePool(num_pages, page_size, order=order, null_page=null_page, device="cuda")
        prefix: Any = PrefixCache(pool, **options)
        cache: Any = PagedKVCache(
            pool,
            max_sequences,
            max_pages,
            eviction=eviction,
            eviction_threshold=threshold,
            sink_tokens=sink,
            window_tokens=window,
            prefix_cache=prefix,
        )
        self.pool: Any = HostView(pool)
        self.prefix: Any = PrefixView(prefix, 3)
        self.cache: Any = HostCache(cache)
        self.prefix_model = oracle_prefix.Prefixes(self.model, **options)
        sizes = max_sequences, max_pages, eviction, threshold, sink, window
        self.cache_model = SharingCache(self.model, self.prefix_model, *sizes)
        self.sides = [(self.cache, self.cache_model)]

    def do(self, name: str, *args: Any, **options: Any) -> tuple[Any, ...]:
        return super().do(name, *in_order(name, args), **options)

    def agree(self) -> None:
        self.cache.device_cache._follow()
        super().agree()
        shadow = self.pool._shadow
        assert not shadow.owners.any()
        assert shadow.there == self.model.step
        assert not self.cache.device_cache._here.arrays.taken.any()
