"""A prefix cache as a whole: its arrays, statistics, checks, copies, and what follows its pool."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from jitalloc._jit import BUSY_STATUS, Kernel, wait_for_lock
from jitalloc.arguments import as_choice, as_count, as_fraction
from jitalloc.choices import PrefixPolicy
from jitalloc.errors import CorruptState, InvalidArgument, WrongDevice, corrupt_error
from jitalloc.forking import keep_quiet
from jitalloc.on_device import OnDevice, called
from jitalloc.pool.holders import Moves, ranks
from jitalloc.pool.pool import PagePool
from jitalloc.prefix.loops.reclaim import reclaim_past_cpu
from jitalloc.prefix.loops.upkeep import (
    prefix_upkeep_check_cpu,
    prefix_upkeep_copy_cpu,
    prefix_upkeep_rename_cpu,
    prefix_upkeep_resize_cpu,
    prefix_upkeep_roots_cpu,
    prefix_upkeep_unlock_cpu,
)
from jitalloc.prefix.matches import Epoch
from jitalloc.prefix.namespaces import UNKNOWN_ROOT, Namespaces
from jitalloc.prefix.records import PrefixStats
from jitalloc.prefix.state import (
    CAPACITY,
    CLEARED,
    DEFAULT,
    EPOCH,
    EVICTED,
    HASH_MASK,
    HIT_PAGES,
    INSERTED,
    LOOKUPS,
    MOST_PRIORITY,
    NUM_CACHED,
    NUM_LOCKED,
    NUM_PINNED,
    PAGES,
    PAGES_ASKED,
    PIN_BUDGET,
    POLICY,
    PREFIX_PAGE_SIZE,
    PREFIX_POLICIES,
    PREFIX_SLOTS,
    PRESSURE,
    REQUESTED,
    SLAB_END,
    STAMPS_AT,
    TOKENS_ASKED,
    UNCACHED,
    PrefixArrays,
    empty_prefix,
    prefix_arrays,
    prefix_header,
)
from jitalloc.snapshot import check_step, id_of_text, shallow
from jitalloc.state import INT32, words


@dataclass(frozen=True, slots=True)
class PrefixSnapshot:
    """The complete state of a `PrefixCache`, without its pool.

    Attributes
    ----------
    slab : int64[...]
        Read-only copy of the cache's slab (see `jitalloc.prefix.state`).
    namespaces : tuple of (Hashable, int)
        The namespaces and their numbers.
    """

    slab: NDArray[np.int64]
    namespaces: tuple[tuple[Hashable, int], ...]


class PrefixUpkeep(OnDevice):
    """A prefix cache as a whole: what it does with pages is told by `PrefixCache`."""

    @called("PrefixCache")
    def __new__(cls, pool: PagePool, **_options: Any) -> Self:
        """Return a cache of the class that manages the pool's device."""
        return cls._on(getattr(pool, "device", None))

    @called("PrefixCache")
    def __init__(
        self,
        pool: PagePool,
        *,
        policy: PrefixPolicy = "lru",
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
        self._namespaces = Namespaces()
        self._epoch = Epoch(0)
        with pool._shape:
            if any(isinstance(holder, PrefixUpkeep) for holder in pool._holders):
                raise InvalidArgument(
                    "pool", pool, "has a prefix cache: a second one could not reclaim its pages"
                )
            self._install(self._new_slab(pool.num_pages))
            pool._holders.add(self)
        keep_quiet(self, -self.rank, self.lock)

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

    def _run(self, kernel: Kernel, *args: Any) -> int:
        """Run `kernel` on the pool's slab and ours, waiting while another thread is inside."""
        # Who replaces both slabs installs ours first: no call sees a new pool with an old cache.
        status: int = kernel.run(self.pool._host, self._slab, *args)
        if status == BUSY_STATUS:
            status = wait_for_lock(self._once, kernel, *args)
        return status

    def _once(self, kernel: Kernel, *args: Any) -> int:
        status: int = kernel.run(self.pool._host, self._slab, *args)
        return status

    def _make_root(self, namespace: Hashable) -> int:
        """Return the root of a namespace, which is made where it is unknown."""
        root = self._namespaces.root(namespace)
        if root == UNKNOWN_ROOT:
            with self.lock:
                root = self._namespaces.make_root(namespace, self._used_roots)
        return root

    def _used_roots(self) -> NDArray[np.int64]:
        """Return the roots that have pages, or that holders may yet insert pages into."""
        with self.pool._shape:
            roots = np.empty(self.pool.num_pages, INT32)
            count = self._run(prefix_upkeep_roots_cpu, roots)
        held = (holder._roots_in_use() for holder in self.pool._holders)
        return np.concatenate([roots[:count], *held])

    def __len__(self) -> int:
        return int(self.arrays.header[NUM_CACHED])

    @property
    def num_cached(self) -> int:
        """Pages in the cache."""
        return int(self.arrays.header[NUM_CACHED])

    @property
    def num_locked(self) -> int:
        """Cached pages that some match, pin or sequence holds a lock on."""
        return int(self.arrays.header[NUM_LOCKED])

    @property
    def num_evictable(self) -> int:
        """Cached pages that `evict` could take now: `num_cached - num_locked`."""
        header = self.arrays.header
        return int(header[NUM_CACHED] - header[NUM_LOCKED])

    @property
    def num_pinned(self) -> int:
        """Cached pages that are pinned."""
        return int(self.arrays.header[NUM_PINNED])

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

    def stats(self) -> PrefixStats:
        """Return what was looked up, found, inserted and evicted since the cache was made.

        Returns
        -------
        PrefixStats
            A copy: it does not follow the cache.
        """
        header = self.arrays.header.tolist()
        return PrefixStats(
            lookups=header[LOOKUPS],
            tokens=header[TOKENS_ASKED],
            pages=header[PAGES_ASKED],
            hit_tokens=header[HIT_PAGES] * self.page_size,
            hit_pages=header[HIT_PAGES],
            inserted_pages=header[INSERTED],
            evicted_requested=header[EVICTED + REQUESTED],
            evicted_pressure=header[EVICTED + PRESSURE],
            evicted_cleared=header[EVICTED + CLEARED],
        )

    def check(self) -> None:
        """Verify every link, record, list and count, in O(num_pages * page_size).

        Raises
        ------
        CorruptState
            An invariant of `jitalloc.prefix.state` is broken; the message names the page or node.
        """
        with self.pool._everyone():
            self._check_header()
            self._check_slab(self._slab)
            self._namespaces.check(self._used_roots())

    def _check_slab(self, slab: NDArray[np.int64]) -> None:
        seen = np.zeros(words(self.pool.num_pages), np.uint64)
        status = self.pool._run(prefix_upkeep_check_cpu, slab, seen)
        if status < 0:
            raise corrupt_error(status)

    def _check_owners(self, slab: NDArray[np.int64]) -> None:
        owners = (prefix_arrays(slab).following_pages != UNCACHED).astype(np.int64)
        for holder in self.pool._holders:
            if holder is not self:
                owners += np.bincount(holder._held_pages(), minlength=owners.size)
        short = self._refcounts() < owners
        if short.any():
            raise CorruptState(f"page {np.argmax(short)} has fewer owners than hold it")

    def _refcounts(self) -> NDArray[np.int32]:
        """Return how many owners each page of the pool has."""
        return self.pool.arrays.refcount

    def _check_header(self) -> None:
        right = self._new_header(self.pool.num_pages)
        wrong = right != self._slab[:PREFIX_SLOTS]
        wrong[HASH_MASK:STAMPS_AT] = False  # what the cache counts is the kernel's to check
        if wrong.any():
            slot = int(np.argmax(wrong))
            raise CorruptState(
                f"prefix header[{slot}] is {self._slab[slot]}, the cache has {right[slot]}"
            )

    def snapshot(self) -> PrefixSnapshot:
        """Return a copy of the complete state; the pool is not part of it.

        Returns
        -------
        PrefixSnapshot
        """
        with self.lock, self.pool._shape:
            slab = np.empty_like(self._slab)
            self._run(prefix_upkeep_copy_cpu, slab)
            slab.flags.writeable = False
            return PrefixSnapshot(slab, tuple(self._namespaces.numbers.items()))

    def restore(self, snapshot: PrefixSnapshot) -> None:
        """Take over the complete state of `snapshot`, without its locks and pins.

        Matches made before are void.

        Parameters
        ----------
        snapshot : PrefixSnapshot
            From `snapshot()` of this cache, or of one of the same policy and sizes.

        Raises
        ------
        InvalidArgument
            The snapshot has another policy or other sizes than this cache, or does not fit the
            pool as it is: the pool must be in the state that it had at the snapshot. Or
            sequences lock pages: restore their `PagedKVCache`, which does all of it.
        """
        if not isinstance(snapshot, PrefixSnapshot):
            raise InvalidArgument("snapshot", snapshot, "must be a PrefixSnapshot")
        with self.pool._everyone():
            if any(holder._holds_locks() for holder in self.pool._holders):
                raise InvalidArgument(
                    "snapshot", snapshot, "sequences lock cached pages: restore their PagedKVCache"
                )
            self._fits(snapshot, self.pool.num_pages)
            try:
                self._check_slab(snapshot.slab)
                self._check_owners(snapshot.slab)
            except CorruptState as error:
                raise InvalidArgument("snapshot", snapshot, f"does not fit: {error}") from error
            self.pool._uninterrupted(lambda: self._take_over(snapshot, alone=True))

    def _fits(self, snapshot: PrefixSnapshot, num_pages: int) -> None:
        right = self._new_header(num_pages)
        for slot in (PAGES, PREFIX_PAGE_SIZE, POLICY, SLAB_END):
            if snapshot.slab[slot] != right[slot]:
                raise InvalidArgument(
                    "snapshot", int(snapshot.slab[slot]), f"must be {right[slot]}"
                )

    def _options(self) -> dict[str, Any]:
        """Return the arguments of the constructor, but for the pool."""
        return {
            "policy": self.policy,
            "default_priority": self.default_priority,
            "pin_budget": self.pin_budget,
            "protected_share": self.protected_share,
        }

    __copy__ = shallow

    def __reduce__(self) -> tuple[Any, ...]:
        with self.pool._everyone():
            saved = self.snapshot()
            facts = self._options(), saved.slab, saved.namespaces, self.pool.step
        return type(self)._revive, (self.pool, *facts)

    @classmethod
    def _revive(
        cls,
        pool: PagePool,
        options: dict[str, Any],
        slab: NDArray[np.int64],
        namespaces: tuple[tuple[Hashable, int], ...],
        step: int,
    ) -> Self:
        """Return a copy of a cache on a copy of its pool: what `pickle` and `copy` call."""
        check_step(pool.step, step)
        cache = cls(pool, **options)
        with pool._everyone():
            cache._take_over(PrefixSnapshot(slab, namespaces), alone=True)
        return cache

    @classmethod
    def _from_slab(cls, pool: PagePool, slab: NDArray[Any], facts: dict[str, Any]) -> Self:
        """Return a new cache with a state from a file; ValueError where that makes no sense."""
        facts = dict(facts)
        names = {id_of_text(text): int(number) for text, number in facts.pop("namespaces")}
        cache = cls(pool, **facts)
        if slab.dtype != np.int64 or slab.shape != cache._slab.shape:
            raise ValueError("the prefix cache's array has the wrong shape")
        slab = np.ascontiguousarray(slab)
        fixed = (*range(EPOCH), *range(STAMPS_AT, PREFIX_SLOTS))
        if (slab[list(fixed)] != cache._slab[list(fixed)]).any():
            raise ValueError("the prefix cache's header does not fit its options")
        cache._check_slab(slab)
        with pool._everyone():
            cache._take_over(PrefixSnapshot(slab, tuple(names.items())))
        return cache

    def _take_over(self, snapshot: PrefixSnapshot, alone: bool = False) -> None:
        """Take over what has been found to fit; the caller has locked everyone.

        Not `alone`: sequences will lock their pages again (`sharing_relock_cpu`).
        """
        slab = snapshot.slab.copy()
        self._epoch = self._epoch.end(None)
        slab[:HASH_MASK] = self._new_header(int(slab[PAGES]))[:HASH_MASK]
        prefix_upkeep_unlock_cpu.run(slab, int(alone))
        self._namespaces.replace(dict(snapshot.namespaces))
        self._install(slab)

    # What the pool calls, being locked.

    def _rename_pages(self, moves: Moves) -> None:
        names = np.arange(self.pool.num_pages, dtype=INT32)
        names[moves.src] = moves.dst
        self._epoch = self._epoch.end(moves)
        self._slab[EPOCH] = self._epoch.number
        prefix_upkeep_rename_cpu.run(self._slab, names, moves.src, moves.dst)

    def _resize_pages(self, num_pages: int) -> Callable[[], None]:
        slab = self._new_slab(num_pages)
        prefix_upkeep_resize_cpu.compile()  # so that nothing can fail once the pool has changed

        def follow() -> None:
            prefix_upkeep_resize_cpu.run(self._slab, slab)
            self._install(slab)

        return follow

    def _give_up_past(self, num_pages: int) -> None:
        self._run(reclaim_past_cpu, num_pages, np.empty(self.pool.num_pages, INT32), 1)

    def _holds_locks(self) -> bool:
        return False

    def _roots_in_use(self) -> NDArray[np.int64]:
        return np.empty(0, np.int64)

    def _held_pages(self) -> NDArray[np.int32]:
        return np.flatnonzero(self.arrays.following_pages != UNCACHED).astype(INT32)
