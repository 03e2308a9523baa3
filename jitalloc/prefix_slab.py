"""The arrays of a prefix cache, its namespaces and counters, and how kernels are run on it."""

from __future__ import annotations

import threading
from collections.abc import Hashable
from typing import Any, Final, Self, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jitalloc._jit import BUSY_STATUS, Kernel, wait_for_lock
from jitalloc.arguments import as_choice, as_count, as_fraction, as_tokens
from jitalloc.epochs import Epoch
from jitalloc.errors import InvalidArgument, WrongDevice
from jitalloc.kernels.prefix_upkeep import prefix_upkeep_roots_cpu
from jitalloc.moves import PageHolder, ranks
from jitalloc.on_device import OnDevice
from jitalloc.pool import PagePool
from jitalloc.prefix_state import (
    CAPACITY,
    DEFAULT,
    EPOCH,
    MOST_PRIORITY,
    NUM_CACHED,
    NUM_LOCKED,
    NUM_PINNED,
    PIN_BUDGET,
    PREFIX_POLICIES,
    PrefixArrays,
    empty_prefix,
    prefix_arrays,
    prefix_header,
)
from jitalloc.state import INT32, INT32_MAX

MAIN_ROOT: Final = -2  # the namespace None
UNKNOWN_ROOT: Final = -3  # a namespace in which nothing is ever cached
FIRST_NAMESPACE: Final = 2
LAST_NAMESPACE: Final = INT32_MAX - 2
SWEEP_AT: Final = 1024


class PrefixSlab(OnDevice):
    """The part of `PrefixCache` that owns the arrays and runs kernels on them."""

    def __new__(cls, pool: PagePool, **_options: Any) -> Self:
        """Return a cache of the class that manages the pool's device."""
        return cls._on(getattr(pool, "device", None))

    def __init__(
        self,
        pool: PagePool,
        *,
        policy: str = "lru",
        default_priority: int = 35,
        pin_budget: int | None = None,
        protected_share: float = 0.8,
    ) -> None:
        if not isinstance(pool, PagePool):
            raise InvalidArgument("pool", pool, "must be a PagePool")
        if pool.device != self.device:
            raise WrongDevice("pool.device", pool.device, f"needs a pool on {self.device!r}")
        self.pool = pool
        self.page_size = pool.page_size
        self.policy = as_choice("policy", policy, PREFIX_POLICIES)
        self.default_priority = as_count("default_priority", default_priority, 0, MOST_PRIORITY)
        self.pin_budget = None if pin_budget is None else as_count("pin_budget", pin_budget)
        self.protected_share = as_fraction("protected_share", protected_share)
        self.lock = threading.RLock()  # held by who changes the namespaces or replaces the arrays
        self.rank = next(ranks)
        self._namespaces: dict[Hashable, int] = {}
        self._next_namespace = FIRST_NAMESPACE  # the one given last
        self._wrapped = False
        self._sweep_at = SWEEP_AT
        self._epoch = Epoch(0)
        with pool._shape:
            self._install(self._new_slab(pool.num_pages))
            pool._holders.add(cast(PageHolder, self))  # which `PrefixUpkeep` makes it

    def _new_header(self, num_pages: int) -> NDArray[np.int64]:
        header = prefix_header(num_pages, self.page_size, PREFIX_POLICIES.index(self.policy))
        header[DEFAULT] = self.default_priority
        header[PIN_BUDGET] = num_pages // 2 if self.pin_budget is None else self.pin_budget
        header[CAPACITY] = int(self.protected_share * num_pages)
        header[EPOCH] = self._epoch.number
        return header

    def _new_slab(self, num_pages: int) -> NDArray[np.int64]:
        return empty_prefix(self._new_header(num_pages))

    def _install(self, slab: NDArray[np.int64]) -> None:
        self.arrays: PrefixArrays = prefix_arrays(slab)
        self._slab = slab

    def _header(self) -> NDArray[np.int64]:
        """Return the header of the slab, to be read."""
        return self.arrays.header

    def _run(self, kernel: Kernel, *args: Any) -> int:
        """Run `kernel` on the pool's slab and ours, waiting while another thread is inside."""
        # Who replaces both slabs installs ours first: no call sees a new pool with an old cache.
        status: int = kernel.run(self.pool._host, self._slab, *args)
        if status == BUSY_STATUS:
            status = wait_for_lock(lambda: kernel.run(self.pool._host, self._slab, *args))
        return status

    def _as_tokens(self, tokens: ArrayLike) -> NDArray[np.int32]:
        """Return token ids as a contiguous `int32[n]` on the host."""
        return as_tokens(tokens)

    def _root(self, namespace: Hashable) -> int:
        """Return the root of a namespace; that of an unknown one has no pages behind it."""
        if namespace is None:
            return MAIN_ROOT
        try:
            known = self._namespaces.get(namespace)
        except TypeError:
            raise InvalidArgument("namespace", namespace, "must be hashable") from None
        return UNKNOWN_ROOT if known is None else -2 - known

    def _make_root(self, namespace: Hashable) -> int:
        """Return the root of a namespace, which is made where it is unknown."""
        root = self._root(namespace)
        if root != UNKNOWN_ROOT:
            return root
        with self.lock:
            if self._root(namespace) == UNKNOWN_ROOT:
                if len(self._namespaces) >= self._sweep_at:
                    self._sweep()
                self._namespaces[namespace] = self._fresh_namespace()
            return self._root(namespace)

    def _sweep(self) -> None:
        """Forget the namespaces that hold nothing."""
        live = self._live_namespaces()
        self._namespaces = {name: key for name, key in self._namespaces.items() if key in live}
        self._sweep_at = max(SWEEP_AT, 2 * len(self._namespaces))

    def _live_namespaces(self) -> set[int]:
        with self.pool._shape:
            roots = np.empty(self.pool.num_pages, INT32)
            count = self._run(prefix_upkeep_roots_cpu, roots)
        in_use: list[NDArray[Any]] = [
            roots[:count],
            *(holder._roots_in_use() for holder in self.pool._holders),
        ]
        return set((-2 - np.unique(np.concatenate(in_use))).tolist())

    def _fresh_namespace(self) -> int:
        # Ids go up, so that a call that looked a namespace up before a sweep cannot meet the
        # pages of another one. After two billion they begin anew, past those in use.
        self._next_namespace += 1
        if self._next_namespace > LAST_NAMESPACE:
            self._wrapped = True
            self._next_namespace = FIRST_NAMESPACE
        if self._wrapped:
            taken = self._live_namespaces().union(self._namespaces.values())
            while self._next_namespace in taken:
                self._next_namespace += 1
        return self._next_namespace

    def __len__(self) -> int:
        return int(self._header()[NUM_CACHED])

    @property
    def num_cached(self) -> int:
        """Pages in the cache."""
        return int(self._header()[NUM_CACHED])

    @property
    def num_locked(self) -> int:
        """Cached pages that some match, pin or sequence holds a lock on."""
        return int(self._header()[NUM_LOCKED])

    @property
    def num_evictable(self) -> int:
        """Cached pages that `evict` could take now: `num_cached - num_locked`."""
        header = self._header()
        return int(header[NUM_CACHED] - header[NUM_LOCKED])

    @property
    def num_pinned(self) -> int:
        """Cached pages that are pinned."""
        return int(self._header()[NUM_PINNED])

    @property
    def nbytes_per_page(self) -> float:
        """Bytes that the cache keeps for each page of the pool, the page's tokens not counted."""
        tokens = self.arrays.tokens.nbytes
        return (self._slab.nbytes - tokens) / self.pool.num_pages

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(policy={self.policy!r}): {self.num_cached} pages cached, "
            f"{self.num_locked} locked, on {self.pool!r}"
        )
