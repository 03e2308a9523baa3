"""A mirror on the GPU of block tables on the CPU: what a step costs the host."""

from __future__ import annotations

from typing import Any

import numpy as np

import jitalloc
from asv_benchmarks.gpu import find_gpu
from jitalloc.gpu import slab

number = 1
repeat = 25
ROWS = 1024


class NoDriver:
    """A GPU that does nothing: what is left is the time of jitalloc itself."""

    threads = 512
    stream = None

    def on(self, _stream: Any) -> NoDriver:
        return self

    def empty(self, size: int, dtype: Any, _name: str = "out") -> Any:
        return np.empty(size, dtype)

    pinned = empty

    def keep(self, values: Any) -> Any:
        return values

    def wrap(self, _values: Any) -> Any:
        return b""

    def upload_async(self, _values: Any, _target: Any) -> Any:
        return self

    def wait_for(self, _event: Any) -> None:
        pass

    def launch(self, *_arguments: Any) -> None:
        pass


class Refresh:
    """`refresh` of 1,024 sequences after a step: none has changed, each grew, eight are new."""

    params = (("no driver", "GPU"), (32, 500), ("none", "tokens", "prompts"))
    param_names = ("driver", "pages", "change")

    def setup(self, driver: str, pages: int, change: str) -> None:
        if driver == "GPU":
            find_gpu()
        pool = jitalloc.PagePool(ROWS * (pages + 2))
        self.cache = cache = jitalloc.PagedKVCache(pool, ROWS, 512)
        for i in range(ROWS):
            cache.allocate(i, 16 * pages - i % 16)
        found = slab.device
        if driver != "GPU":
            slab.device = NoDriver  # type: ignore[assignment]
        try:
            self.mirror = cache.mirror("cuda")
        finally:
            slab.device = found
        self.mirror.refresh()
        if change == "tokens":
            cache.append_batch(cache.rows(range(ROWS)))
        elif change == "prompts":
            for i in range(8):
                cache.free(i)
            for i in range(8):
                cache.allocate(i, 16 * pages)

    def time_refresh(self, driver: str, pages: int, change: str) -> None:
        self.mirror.refresh()
