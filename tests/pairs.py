"""A pool or a cache of the library beside its model: every call runs on both and must agree."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jitalloc import PagePool, errors
from jitalloc._jit import JIT_DISABLED
from jitalloc.pool.state import ALLOCATED, FREE, FREED, HEAD, MERGES, PEAK_USED, STEP
from tests import oracle


def plain(result: Any) -> Any:
    """Lists and tuples for arrays and records, so that both sides can be compared."""
    if isinstance(result, np.ndarray) or hasattr(result, "__cuda_array_interface__"):
        return result.tolist()
    if dataclasses.is_dataclass(result):
        return tuple(plain(getattr(result, each.name)) for each in dataclasses.fields(result))
    if isinstance(result, tuple):
        return tuple(plain(each) for each in result)
    if isinstance(result, list):
        return [plain(each) for each in result]
    if isinstance(result, np.generic):  # kernels run as plain Python give what NumPy gives
        assert JIT_DISABLED, f"{result!r} should be a plain Python value"
        return result.item()
    return result


def outcome(call: Callable[[], Any]) -> tuple[Any, ...]:
    """What a call returned, or which error it raised and what that says."""
    try:
        return ("returned", plain(call()))
    except errors.InvalidArgument as error:
        return (type(error), error.argument, plain(error.value), plain(error.position))
    except errors.OutOfPages as error:
        return (type(error), *map(plain, (error.requested, error.available, error.longest_run)))
    except errors.JitallocError as error:
        return (type(error),)


def pool_state(pool: PagePool) -> dict[str, Any]:
    """The state of a pool, in the words of the model."""
    arrays = pool.arrays
    header = arrays.header.tolist()
    places = (header[HEAD] + np.arange(header[FREE])) % pool.num_pages
    bits = np.unpackbits(arrays.released.view(np.uint8), bitorder="little")
    assert not arrays.marks.any()
    return {
        "free_list": arrays.free_pages[places].tolist(),
        "released": np.flatnonzero(bits).tolist(),
        "owners": arrays.refcount.tolist(),
        "step": header[STEP],
        "peak": header[PEAK_USED],
        "allocated": header[ALLOCATED],
        "freed": header[FREED],
        "merges": header[MERGES],
    }


def model_state(model: oracle.Pool) -> dict[str, Any]:
    """The same of the model."""
    scalars = {name: getattr(model, name) for name in ("step", "peak", "allocated", "freed")}
    return {
        "free_list": model.free_list,
        "released": sorted(model.released),
        "owners": model.owners,
        "merges": model.merges,
        **scalars,
    }


class PoolPair:
    """A `PagePool` and its model."""

    def __init__(
        self, num_pages: int, page_size: int = 4, order: str = "sorted", null_page: bool = False
    ) -> None:
        self.pool = PagePool(num_pages, page_size, order=order, null_page=null_page)
        self.model = oracle.Pool(num_pages, page_size, order, null_page)

    def call(self, name: str, *args: Any, **options: Any) -> tuple[Any, ...]:
        """Call both sides, compare what comes back and what is left; return the outcome."""
        return self.compare(
            lambda: getattr(self.pool, name)(*args, **options),
            lambda: getattr(self.model, name)(*args, **options),
        )

    def compare(self, library: Callable[[], Any], model: Callable[[], Any]) -> tuple[Any, ...]:
        expected, got = outcome(model), outcome(library)
        assert got == expected
        self.agree()
        return got

    def result(self, name: str, *args: Any, **options: Any) -> Any:
        """Call both sides; the call must succeed."""
        got = self.call(name, *args, **options)
        assert got[0] == "returned", got
        return got[1]

    def free_group(self, calls: Sequence[Sequence[int]]) -> tuple[Any, ...]:
        """Free in several calls of one group."""

        def grouped() -> int:
            with self.pool.free_group() as group:
                for pages in calls:
                    assert self.pool.free(pages) == 0
            return group.released

        try:
            expected: tuple[Any, ...] = ("returned", self.model.free_group(calls))
        except errors.InvalidPage as error:
            # The model counts positions through the whole group, the library within the call.
            call, position = 0, error.position or 0
            while position >= len(calls[call]):
                position -= len(calls[call])
                call += 1
            name = f"pages (free call {call} of the group)"
            expected = (type(error), name, error.value, position)
        got = outcome(grouped)
        assert got == expected
        self.agree()
        return got

    def agree(self) -> None:
        """Both sides are in the same state, and the library's own check finds it sound."""
        assert pool_state(self.pool) == model_state(self.model)
        self.pool.check(held=self.held())

    def held(self) -> list[int]:
        """The pages that nobody but the caller holds, each as often as it is held."""
        owners = list(self.model.owners)
        if self.model.first:
            owners[0] = 0
        for cache in self.model.caches:
            for row in cache.rows.values():
                for page in row.pages:
                    owners[page] -= 1
        return [page for page, count in enumerate(owners) for _ in range(count)]

    def agree_on_figures(self) -> None:
        """Everything that a pool tells about itself."""
        pool, model, stats = self.pool, self.model, self.pool.stats()
        free, waiting = len(model.free_list), len(model.released)
        assert (pool.num_free, pool.num_released, pool.num_used) == (free, waiting, model.used)
        assert pool.available == model.available
        assert pool.utilization == stats.utilization == model.utilization
        assert (stats.free, stats.released, stats.used) == (free, waiting, model.used)
        assert stats.reserved == model.first
        assert (stats.num_pages, stats.page_size) == (model.num_pages, model.page_size)
        assert (stats.peak_used, stats.step, stats.merges) == (model.peak, model.step, model.merges)
        assert (stats.allocated, stats.freed) == (model.allocated, model.freed)
        assert stats.longest_run == model.longest_run()
        assert stats.fragmentation == model.fragmentation()
        without = dataclasses.replace(stats, longest_run=None, fragmentation=None)
        assert pool.stats(runs=False) == without
        assert pool.step == model.step
