"""Sequences behind a prefix cache, on a pool of the GPU, beside their model.

The steps of `sharing_pairs.py` run on it as they are. Locks of rows that a batch changes are given
back in the order of rows, when the index follows: so such batches name their rows in that order.
"""

from __future__ import annotations

from typing import Any

from tests.cuda_cache_pairs import HostCache, in_order, on_gpu
from tests.cuda_pairs import HostView
from tests.cuda_prefix_pairs import PrefixView
from tests.sharing_pairs import SharingPair


class CudaSharingPair(SharingPair):
    """A pool, a prefix cache and sequences on the GPU, each with its model."""

    def __init__(self, *sizes: Any, **options: Any) -> None:
        super().__init__(*sizes, **options)
        cache = on_gpu(self.cache)
        self.pool: Any = HostView(cache.pool)
        self.prefix: Any = PrefixView(cache.prefix_cache, 3)
        self.cache: Any = HostCache(cache)
        self.sides = [(self.cache, self.cache_model)]

    def do(self, name: str, *args: Any, **options: Any) -> tuple[Any, ...]:
        return super().do(name, *in_order(name, args), **options)

    def agree(self) -> None:
        self.cache.device_cache._follow()
        super().agree()
        shadow = self.pool._shadow
        assert not shadow.owners.any()
        assert shadow.there == self.model.step
        assert not self.cache.device_cache._rows.host.table.arrays.taken.any()
