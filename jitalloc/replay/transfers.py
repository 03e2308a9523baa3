"""Where the arrays of a replay go: nowhere, or to the GPU that the pool lives on."""

from __future__ import annotations

from typing import Any

from jitalloc.gpu.device import device
from jitalloc.pool import PagePool


class Transfers:
    """Hands arrays of the host to the device of a pool, and brings results back.

    Parameters
    ----------
    pool : PagePool
    """

    __slots__ = ("_gpu", "_pool")

    def __init__(self, pool: PagePool) -> None:
        self._pool = pool
        self._gpu = device() if pool.device == "cuda" else None

    def up(self, values: Any) -> Any:
        """Return an array where the pool is; it may be the same."""
        return values if self._gpu is None else self._gpu.upload(values)

    def down(self, values: Any) -> Any:
        """Return a result of the pool's device on the host; it may be the same."""
        return values if self._gpu is None else self._gpu.download(values)

    def settle(self) -> None:
        """Raise what has failed on the GPU since the last call that waited for it."""
        if self._gpu is not None:
            self._pool.num_free  # noqa: B018  (waits)
