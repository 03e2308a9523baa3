"""A prefix cache on a pool of the GPU beside one of the CPU and the model: each call runs on all.

`CudaPrefixPair` is a `PrefixPair` whose library is both: pools and caches are `Twins`, which make
each call on the CPU and on the GPU, and hold the answers and the words of both slabs together.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

from jitalloc import PagePool, PrefixBatch, PrefixCache, PrefixMatch, errors
from jitalloc.cuda import CudaPagePool, CudaPrefixCache
from jitalloc.gpu import device as _cuda_device
from jitalloc.pool.state import STEP
from jitalloc.prefix.state import (
    HASH_MASK,
    LOOKUPS,
    NUM_CACHED,
    STAMPS_AT,
    PrefixArrays,
    prefix_arrays,
)
from tests import oracle, oracle_prefix
from tests.cuda_pairs import HostView
from tests.pairs import outcome, plain, pool_state
from tests.prefix_pairs import Both, PrefixPair, cached, spell

INT32, INT64 = np.dtype(np.int32), np.dtype(np.int64)


class PrefixView:
    """Speaks like a prefix cache of the CPU; what it is given goes up, but for one in `spared`."""

    def __init__(self, cache: CudaPrefixCache, spared: int = 0) -> None:
        self.device_cache = cache
        self.spared = spared
        self.given = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.device_cache, name)

    def __len__(self) -> int:
        return len(self.device_cache)

    def up(self, values: Any, dtype: np.dtype[Any] = INT32) -> Any:
        self.given += 1
        if self.spared and self.given % self.spared == 0:
            return values
        return self.device_cache._gpu.upload(np.array(values, dtype))

    @property
    def words(self) -> Any:
        """The words of a cache of the CPU: the index, and the ids of tokens from the GPU."""
        cache = self.device_cache
        slab = cache._slab.copy()
        tokens = cache._gpu.download(cache._tokens)
        prefix_arrays(slab).tokens[:] = tokens.reshape(-1, cache.page_size)
        return slab

    @property
    def arrays(self) -> PrefixArrays:
        return prefix_arrays(self.words)

    def match(self, tokens: Any, namespace: Hashable = None, **options: Any) -> PrefixMatch:
        return self.device_cache.match(self.up(tokens), namespace, **options)

    def lookup(self, tokens: Any, namespace: Hashable = None) -> Any:
        return self.device_cache.lookup(self.up(tokens), namespace)

    def touch(self, tokens: Any, namespace: Hashable = None) -> int:
        return self.device_cache.touch(self.up(tokens), namespace)

    def invalidate(
        self, tokens: Any = None, namespace: Hashable = None, *, start: int = 0, pages: Any = None
    ) -> Any:
        tokens, pages = (each if each is None else self.up(each) for each in (tokens, pages))
        return self.device_cache.invalidate(tokens, namespace, start=start, pages=pages)

    def pin(self, tokens: Any, namespace: Hashable = None) -> PrefixMatch:
        return self.device_cache.pin(self.up(tokens), namespace)

    def match_batch(
        self, tokens: Any, indptr: Any, namespaces: Any = None, **options: Any
    ) -> PrefixBatch:
        bounds = self.up(indptr, INT64)
        return self.device_cache.match_batch(self.up(tokens), bounds, namespaces, **options)

    def insert(self, tokens: Any, pages: Any, namespace: Hashable = None, **options: Any) -> Any:
        return self.device_cache.insert(self.up(tokens), self.up(pages), namespace, **options)


def told(result: Any) -> Any:
    """What an answer says, of either side."""
    if isinstance(result, PrefixMatch):
        partial = (result.partial_page, result.partial_tokens)
        return result.pages.tolist(), result.num_tokens, partial, result.locked, result.pinned
    if isinstance(result, PrefixBatch):
        arrays = [result.num_tokens, result.indptr, result.partial_pages, result.partial_tokens]
        arrays.append(result.pages)
        return [(str(each.dtype), each.tolist()) for each in arrays], result.locked, len(result)
    return plain(result)


class Twins:
    """Something of the CPU and the view of its like on the GPU: each call goes to both."""

    def __init__(self, cpu: Any, view: Any) -> None:
        self.cpu, self.view = cpu, view
        self.of_cpu: dict[int, tuple[Any, Any]] = {}  # matches of both, by id of the GPU's

    def __getattr__(self, name: str) -> Any:
        mine, theirs = getattr(self.cpu, name), getattr(self.view, name)
        if not callable(mine) or name in ("check", "pool"):  # where all words agree, one is enough
            return theirs
        return lambda *args, **options: self._call(mine, theirs, args, options)

    def __len__(self) -> int:
        return len(self.view)

    def _call(
        self, mine: Callable[..., Any], theirs: Callable[..., Any], args: Any, options: Any
    ) -> Any:
        on_cpu = [self.of_cpu[id(each)][1] if id(each) in self.of_cpu else each for each in args]
        results: list[Any] = []

        def call() -> Any:
            results.append(mine(*on_cpu, **options))
            return told(results[0])

        expected = outcome(call)
        try:
            got = theirs(*args, **options)
        except errors.JitallocError as error:
            raised = error

            def again() -> None:
                raise raised

            assert outcome(again) == expected
            raise
        assert expected == ("returned", told(got))
        if isinstance(got, PrefixMatch | PrefixBatch):
            self.of_cpu[id(got)] = (got, results[0])
        return got


class CudaPrefixPair(PrefixPair):
    """A prefix cache on the GPU, one on the CPU, and the model; their pools too."""

    def __init__(
        self,
        num_pages: int = 16,
        page_size: int = 4,
        order: str = "fifo",
        null_page: bool = False,
        **options: Any,
    ) -> None:
        self.model = oracle.Pool(num_pages, page_size, order, null_page)
        arguments: Any = {"order": order, "null_page": null_page}
        pools = [
            PagePool(num_pages, page_size, device=where, **arguments) for where in ("cpu", "cuda")
        ]
        caches = [PrefixCache(pool, **options) for pool in pools]
        assert isinstance(pools[1], CudaPagePool)
        assert isinstance(caches[1], CudaPrefixCache)
        self.pool: Any = Twins(pools[0], HostView(pools[1]))
        self.cache: Any = Twins(caches[0], PrefixView(caches[1], 3))
        self.cache_model = oracle_prefix.Prefixes(self.model, **options)
        self.matches: list[Both] = []

    def agree(self) -> None:
        super().agree()
        assert np.array_equal(self.cache.view.words, self.cache.cpu._slab)
        assert pool_state(self.pool.view) == pool_state(self.pool.cpu)
        assert self.pool.view._shadow.slab[STEP] == self.pool.cpu.step

    def force_collisions(self, mask: int) -> None:
        self.cache.cpu.arrays.header[HASH_MASK] = mask
        self.cache.view.device_cache._slab[HASH_MASK] = mask


def up(values: Any, dtype: Any = np.int32) -> Any:
    return _cuda_device.device().upload(np.array(values, dtype))


def stored(num_pages: int = 16, page_size: int = 4, *texts: str, **options: Any) -> Any:
    """A cache on the GPU in which these prompts stand."""
    cache: Any = PrefixCache(PagePool(num_pages, page_size, device="cuda"), **options)
    for text in texts:
        pages = cache.pool.alloc(len(text))
        cache.insert(up(spell(text, page_size)), pages)
        cache.pool.free(pages)
    return cache


def state(cache: Any) -> tuple[Any, ...]:
    """All that is known of a cache and its pool; what failed before is not raised."""
    view, pool = PrefixView(cache), HostView(cache.pool)
    header = view.arrays.header.tolist()
    return cached(view), header[:NUM_CACHED], header[LOOKUPS:STAMPS_AT], pool_state(pool)
