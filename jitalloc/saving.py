"""Checking, snapshots and files of a cache, its pool included."""

from __future__ import annotations

import ast
import os
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jitalloc.errors import CorruptState, InvalidArgument, SnapshotError, corrupt_error
from jitalloc.kernels.sharing import sharing_check_cpu, sharing_relock_cpu
from jitalloc.kernels.tables import tables_check_cpu
from jitalloc.pool import PagePool
from jitalloc.prefix import PrefixCache
from jitalloc.prefix_state import UNCACHED
from jitalloc.prefix_upkeep import PrefixSnapshot
from jitalloc.rows import SequenceRows
from jitalloc.snapshot import PoolSnapshot, read_state, write_state
from jitalloc.state import (
    LOCK_END,
    LOCKED,
    MAX_PAGES,
    NUM_ROWS,
    ROW_PAGE_SHIFT,
    ROW_PAGE_SIZE,
    page_shift,
    table_slab_words,
)

SAVED_IDS = (int, str, bytes, bool, float, type(None))


@dataclass(frozen=True, slots=True)
class CacheSnapshot:
    """The complete state of a `PagedKVCache` and its pool.

    Attributes
    ----------
    pool : PoolSnapshot
    tables : int64[...]
        Read-only copy of the block table's slab (see `jitalloc.state`).
    ids : tuple
        The sequence id of each row, None where it is free.
    prefix : PrefixSnapshot or None
        The prefix cache, where there is one. Restored, it has the locks of the sequences;
        matches and pins of the user are void.
    """

    pool: PoolSnapshot
    tables: NDArray[np.int64]
    ids: tuple[Hashable, ...]
    prefix: PrefixSnapshot | None


class SequenceSaving(SequenceRows):
    """The part of `PagedKVCache` that checks, copies and saves its complete state."""

    def _sizes(self) -> dict[int, int]:
        tables = self.tables
        return {
            NUM_ROWS: tables.max_sequences,
            MAX_PAGES: tables.max_pages_per_sequence,
            ROW_PAGE_SIZE: tables.page_size,
            ROW_PAGE_SHIFT: page_shift(tables.page_size),
        }

    def check(self, held: ArrayLike | None = None) -> None:
        """Verify the pool, the prefix cache and every row of the block table, page by page.

        Parameters
        ----------
        held : array_like of int32, optional
            As in `PagePool.check`: page ids that the caller holds beside the sequences.

        Raises
        ------
        CorruptState
            An invariant of `jitalloc.state` is broken; the message names it and the row or page.
        """
        with self.pool._everyone():
            header = self.tables.arrays.header
            for slot, value in self._sizes().items():
                if header[slot] != value:
                    raise CorruptState(
                        f"table header[{slot}] is {header[slot]}, the table has {value}"
                    )
            owners = np.zeros(self.pool.num_pages, np.int32)
            status = tables_check_cpu.run(self.pool._slab, self.tables._slab, owners)
            if status < 0:
                raise corrupt_error(status)
            if sorted(self._ids.rows.values()) != sorted(self._ids.live_rows()):
                raise CorruptState("the rows of the ids are not the rows in taken")
            for seq_id, row in self._ids.rows.items():
                if self._ids.by_row[row] != seq_id:
                    raise CorruptState(f"row {row} is not the row of {seq_id!r}")
            self._check_locks()
            self.pool.check(held)

    def _check_locks(self) -> None:
        if self.prefix_cache is None:
            if self._holds_locks():
                raise CorruptState("a row locks cached pages, but there is no prefix cache")
            return
        self.prefix_cache.check()
        locks = np.zeros(self.pool.num_pages, np.int32)
        status = self.pool._run(sharing_check_cpu, self.tables._slab, self._prefix, locks)
        if status < 0:
            raise corrupt_error(status)

    def _check_paths(self, prefix: PrefixCache) -> None:
        """Verify that rows from a file lock paths that are there, before these are walked."""
        columns = self.tables.arrays.columns
        following_pages = prefix.arrays.following_pages
        previous_pages = prefix.arrays.previous_pages
        for row in np.flatnonzero(columns[LOCKED]).tolist():
            depth, page = int(columns[LOCKED, row]), int(columns[LOCK_END, row])
            sound = 0 <= page < following_pages.size and UNCACHED != following_pages[page] < 0
            while sound and page >= 0:
                page, depth = int(previous_pages[page]), depth - 1
            if not sound or depth:
                raise CorruptState(f"row {row} locks a path of cached pages that is not there")

    def snapshot(self) -> CacheSnapshot:
        """Return a copy of the complete state, those of the pool and prefix cache included."""
        with self.pool._everyone():
            tables = self.tables._slab.copy()
            tables.flags.writeable = False
            prefix = None if self.prefix_cache is None else self.prefix_cache.snapshot()
            return CacheSnapshot(self.pool.snapshot(), tables, tuple(self._ids.by_row), prefix)

    def restore(self, snapshot: CacheSnapshot) -> None:
        """Take over the complete state of `snapshot`, the pool's included.

        Parameters
        ----------
        snapshot : CacheSnapshot
            From `snapshot()` of this cache or one of the same sizes.

        Raises
        ------
        InvalidArgument
            The snapshot's tables or pages have other sizes than this cache, only one of the
            two has a prefix cache, theirs differ in policy, or another cache holds pages of
            the pool.
        """
        if not isinstance(snapshot, CacheSnapshot):
            raise InvalidArgument("snapshot", snapshot, "must be a CacheSnapshot")
        for slot, value in self._sizes().items():
            if snapshot.tables[slot] != value:
                raise InvalidArgument("snapshot", int(snapshot.tables[slot]), f"must be {value}")
        mine = (self, self.prefix_cache)
        others = sum(len(holder) for holder in self.pool._holders if holder not in mine)
        if others:
            raise InvalidArgument("snapshot", others, "others hold pages of this pool")
        if (snapshot.prefix is None) != (self.prefix_cache is None):
            raise InvalidArgument("snapshot", snapshot.prefix, "one of two has no prefix cache")

        def rest() -> None:
            self.tables._install(snapshot.tables.copy())
            if self.prefix_cache is not None and snapshot.prefix is not None:
                self.prefix_cache._take_over(snapshot.prefix)
                self._relock()

        def work() -> None:
            self.pool._take_over(snapshot.pool, rest)
            self._ids.by_row = list(snapshot.ids)
            self._ids.reconcile()

        with self.pool._everyone():
            self.pool._fits(snapshot.pool)
            if self.prefix_cache is not None and snapshot.prefix is not None:
                self.prefix_cache._fits(snapshot.prefix, snapshot.pool.num_pages)
            self.pool._uninterrupted(work)

    def _relock(self) -> None:
        """Let the sequences lock their cached pages again, whose locks have been taken away."""
        sharing_relock_cpu.run(self.tables._slab, self._prefix)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the complete state, pool and prefix cache included, to one `.npz` file.

        In one step or not at all.

        Parameters
        ----------
        path : str or path-like
            Replaced where it exists.

        Raises
        ------
        SnapshotError
            A sequence id or a namespace is something else than an int, str, bytes, float, bool,
            None or a tuple of these.
        """
        snapshot = self.snapshot()
        ids = [_id_text(seq_id) for seq_id in snapshot.ids]
        facts: dict[str, Any] = {
            "ids": ids,
            "eviction": self.eviction,
            "eviction_threshold": self.eviction_threshold,
            "sink_tokens": self.sink_tokens,
            "window_tokens": self.window_tokens,
        }
        arrays = {"pool": snapshot.pool.slab, "tables": snapshot.tables}
        if snapshot.prefix is not None and self.prefix_cache is not None:
            arrays["prefix"] = snapshot.prefix.slab
            names = [[_id_text(name), number] for name, number in snapshot.prefix.namespaces]
            facts["prefix"] = {**self.prefix_cache._options(), "namespaces": names}
        write_state(path, "PagedKVCache", facts, arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Return a new cache, on a new pool, with the state that `save` wrote.

        Parameters
        ----------
        path : str or path-like

        Returns
        -------
        PagedKVCache
            Its pool is `cache.pool`, its prefix cache, where there was one,
            `cache.prefix_cache`.

        Raises
        ------
        SnapshotError
            The file is truncated, damaged, foreign or of another version.
        """
        facts, arrays = read_state(path, "PagedKVCache", ("pool", "tables"), ("prefix",))
        pool = PagePool._from_slab(arrays["pool"], path)
        slab: NDArray[Any] = arrays["tables"]
        try:
            ids = [ast.literal_eval(text) for text in facts.pop("ids")]
            if slab.dtype != np.int64 or slab.ndim != 1:
                raise ValueError("the table's array has the wrong type")
            rows, width = int(slab[NUM_ROWS]), int(slab[MAX_PAGES])
            if slab.size != table_slab_words(rows, width) or len(ids) != rows:
                raise ValueError("the table's array has the wrong length")
            options = {key: facts[key] for key in ("eviction", "eviction_threshold")}
            options |= {key: facts[key] for key in ("sink_tokens", "window_tokens")}
            prefix = None
            if "prefix" in facts:
                prefix = PrefixCache._from_slab(pool, arrays["prefix"], facts["prefix"])
            cache = cls(pool, rows, width, prefix_cache=prefix, **options)
            cache.tables._install(np.ascontiguousarray(slab))
            if prefix is not None:
                cache._check_paths(prefix)
                cache._relock()
            cache._ids.by_row = ids
            cache._ids.reconcile()
            cache.check()
        except (ValueError, KeyError, TypeError, IndexError, CorruptState) as error:
            raise SnapshotError(f"{path}: the tables do not fit: {error}") from error
        return cache


def _id_text(seq_id: Hashable) -> str:
    """Return `seq_id` as a Python literal."""
    simple = type(seq_id) in SAVED_IDS
    if type(seq_id) is tuple:
        return "(" + "".join(_id_text(part) + "," for part in seq_id) + ")"
    if not simple or (isinstance(seq_id, float) and not np.isfinite(seq_id)):
        raise SnapshotError(f"a sequence id of type {type(seq_id).__name__} cannot be saved")
    return repr(seq_id)
