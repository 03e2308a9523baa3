"""Sequences as a whole: their ids and rows, what is known of them, their state in files."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from jitalloc.arguments import as_choice, as_count, as_fraction
from jitalloc.choices import Device, EvictionPolicy
from jitalloc.errors import (
    CorruptState,
    InvalidArgument,
    OutOfPages,
    SnapshotError,
    WrongDevice,
    unpack_status,
)
from jitalloc.forking import keep_quiet
from jitalloc.on_device import OnDevice, called
from jitalloc.pool.holders import Moves, ranks
from jitalloc.pool.pool import PagePool
from jitalloc.prefix.prefix import PrefixCache
from jitalloc.sequences.attention import AttentionBatch, as_attention, check_slots_asked
from jitalloc.sequences.check import check_paths, check_sequences
from jitalloc.sequences.eviction import most_held
from jitalloc.sequences.files import (
    OPTIONS,
    CacheSnapshot,
    read_cache,
    saved_ids,
    saved_sizes,
    write_cache,
)
from jitalloc.sequences.ids import SequenceIds
from jitalloc.sequences.mirror import BlockTableMirror, mirror_of
from jitalloc.sequences.records import SequenceInfo, SequenceStats
from jitalloc.sequences.rows import SequenceRows
from jitalloc.sequences.state import (
    ACTIVE,
    COMPUTED,
    EVICTION_POLICIES,
    EVICTIONS,
    LAST_USED,
    LENGTH,
    LOCKED,
    NAMESPACE,
    PAGE_COPIES,
    PEAK_ACTIVE,
    PINNED,
    PRIORITY,
    SEQ_ALLOCATIONS,
    SEQ_FORKS,
    SEQ_FREES,
    TOKENS_DROPPED,
    USES,
)
from jitalloc.sequences.tables import BlockTables, PageTableCSR
from jitalloc.snapshot import check_step, shallow
from jitalloc.state import INT64, NULL


class SequenceUpkeep(OnDevice):
    """What `PagedKVCache` is made of, and what it knows: all but how sequences come and go.

    To its pool it is a `PageHolder`.
    """

    @called("PagedKVCache")
    def __new__(cls, pool: PagePool, *_sizes: int, **_options: Any) -> Self:
        """Return a cache of the class that manages the pool's device."""
        return cls._on(getattr(pool, "device", None))

    @called("PagedKVCache")
    def __init__(
        self,
        pool: PagePool,
        max_sequences: int,
        max_pages_per_sequence: int,
        *,
        eviction: EvictionPolicy = "lru",
        eviction_threshold: float = 0.9,
        sink_tokens: int = 4,
        window_tokens: int = 1024,
        prefix_cache: PrefixCache | None = None,
    ) -> None:
        if not isinstance(pool, PagePool):
            raise InvalidArgument("pool", pool, "must be a PagePool")
        if pool.device != self.device:
            raise WrongDevice("pool.device", pool.device, f"needs a pool on {self.device!r}")
        if prefix_cache is not None and not isinstance(prefix_cache, PrefixCache):
            raise InvalidArgument("prefix_cache", prefix_cache, "must be a PrefixCache or None")
        if prefix_cache is not None and prefix_cache.pool is not pool:
            raise InvalidArgument("prefix_cache", prefix_cache, "stands on another pool")
        self.sink_tokens = as_count("sink_tokens", sink_tokens)
        self.window_tokens = as_count("window_tokens", window_tokens, 1)
        self.pool = pool
        self.eviction = as_choice("eviction", eviction, EVICTION_POLICIES)
        self.eviction_threshold = as_fraction("eviction_threshold", eviction_threshold)
        self.prefix_cache = prefix_cache
        self.rank = next(ranks)
        pad = 0 if pool.null_page else NULL
        self._make(max_sequences, max_pages_per_sequence, pad)
        self.lock = self._ids.lock
        pool._holders.add(self)
        keep_quiet(self, -self.rank, self.lock)

    def _make(self, max_sequences: int, max_pages_per_sequence: int, pad: int) -> None:
        """Make the block table, its ids, and what works on its rows."""
        size = self.pool.page_size
        self.tables = BlockTables(max_sequences, max_pages_per_sequence, size, pad)
        self._ids = SequenceIds(self.tables)
        self._rows = SequenceRows(self.pool, self.tables, self._ids, self.prefix_cache)

    def __len__(self) -> int:
        return len(self._ids.rows)

    def __iter__(self) -> Iterator[Hashable]:
        """Iterate over the ids of the sequences that live now, in the order of their making."""
        return iter(self.ids)

    def __contains__(self, seq_id: Hashable) -> bool:
        return seq_id in self._ids.rows

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(max_sequences={self.tables.max_sequences}, "
            f"max_pages_per_sequence={self.tables.max_pages_per_sequence}, "
            f"eviction={self.eviction!r}): {len(self)} sequences on {self.pool!r}"
        )

    # Ids and rows.

    @property
    def ids(self) -> list[Hashable]:
        """Ids of all live sequences, in the order in which they were made."""
        return list(self._ids.rows)

    def row(self, seq_id: Hashable) -> int:
        """Return the row of a sequence.

        Parameters
        ----------
        seq_id : Hashable

        Returns
        -------
        int

        Raises
        ------
        UnknownSequence
            No live sequence has this id.
        """
        return self._ids.row(seq_id)

    def rows(self, seq_ids: Iterable[Hashable]) -> NDArray[np.int32]:
        """Return the rows of sequences, for the batch calls.

        Parameters
        ----------
        seq_ids : iterable of Hashable

        Returns
        -------
        int32[B]

        Raises
        ------
        UnknownSequence
            No live sequence has one of these ids; the text says which.
        """
        if isinstance(seq_ids, str | bytes):  # whose elements would be looked up
            expected = "is one id: row(id) gives its row, or put it in a list"
            raise InvalidArgument("seq_ids", seq_ids, expected)
        if not isinstance(seq_ids, Iterable):
            raise InvalidArgument("seq_ids", seq_ids, "must be an iterable of sequence ids")
        return self._ids.rows_of(seq_ids)

    # Facts.

    def sequence(self, seq_id: Hashable) -> SequenceInfo:
        """Return what is known of a sequence, as a copy.

        Parameters
        ----------
        seq_id : Hashable

        Returns
        -------
        SequenceInfo

        Raises
        ------
        UnknownSequence
            No live sequence has this id.
        """
        with self.lock:
            row = self._ids.row(seq_id)
            facts, pages, shared = self._rows.facts(row)
        return SequenceInfo(
            seq_id=seq_id,
            row=row,
            num_tokens=facts[LENGTH],
            num_computed=facts[COMPUTED],
            pages=pages,
            shared_pages=shared,
            last_used=facts[LAST_USED],
            uses=facts[USES],
            priority=facts[PRIORITY],
            pinned=bool(facts[PINNED]),
        )

    def stats(self) -> SequenceStats:
        """Return totals and counters; `pool.stats()` has those of pages.

        In O(max_sequences), and in O(num_pages) behind a prefix cache.
        """
        with self.lock:
            header, tokens = self._rows.totals()
            free, reclaimable, held = self._rows.page_counts()
        return SequenceStats(
            active=header[ACTIVE],
            peak_active=header[PEAK_ACTIVE],
            tokens=tokens,
            allocations=header[SEQ_ALLOCATIONS],
            frees=header[SEQ_FREES],
            forks=header[SEQ_FORKS],
            copies=header[PAGE_COPIES],
            evictions=header[EVICTIONS],
            tokens_dropped=header[TOKENS_DROPPED],
            free_pages=free,
            reclaimable_pages=reclaimable,
            held_pages=held,
        )

    @property
    def num_free(self) -> int:
        """Pages of the pool that are free or released."""
        return self._rows.page_counts()[0]

    @property
    def num_reclaimable(self) -> int:
        """Pages that only the prefix cache holds and nobody locks: on demand they go free."""
        return self._rows.page_counts()[1]

    @property
    def num_held(self) -> int:
        """Pages that are neither free nor reclaimable."""
        return self._rows.page_counts()[2]

    @property
    def over_threshold(self) -> bool:
        """Whether the share of held pages is above `eviction_threshold`.

        Pages that can be reclaimed from the prefix cache do not count: they give way by
        themselves when an allocation needs them.
        """
        return self.num_held > self._most_held(self.eviction_threshold)

    def make_room(self, num_pages: int) -> int:
        """Let cached pages give way until so many pages are free, by the policy of their cache.

        Only if that suffices: else nothing gives way. On the CPU all calls make the room that they
        need; on the GPU a call on a batch does not, since it waits for nothing. So whoever drives
        it keeps enough pages free: for each sequence that an append may begin a page or copy its
        last one for, one page.

        Parameters
        ----------
        num_pages : int

        Returns
        -------
        int
            How many cached pages have given way; 0 where enough were free.

        Raises
        ------
        OutOfPages
            Free and reclaimable pages are fewer than `num_pages`.
        InvalidArgument
            `num_pages` is no count.
        """
        need = as_count("num_pages", num_pages)
        with self.lock:
            gone = self._rows.make_room(need)
        if gone < 0:
            raise OutOfPages(need, unpack_status(gone)[1])
        return gone

    def _most_held(self, utilization: float) -> int:
        return most_held(utilization, self.pool.num_pages - self.pool.null_page)

    # What attention kernels read.

    def block_tables(
        self,
        rows: ArrayLike,
        *,
        width: int | None = None,
        out: NDArray[np.int32] | None = None,
    ) -> NDArray[np.int32]:
        """Return padded page ids, `int32[B, width]`; see `BlockTables.block_tables`.

        To index arrays of NumPy by it, give the pool a `null_page`: -1 is its last page there.
        """
        with self.lock:
            return self.tables.block_tables(rows, width=width, out=out)

    def slot_mapping(
        self,
        rows: ArrayLike,
        positions: ArrayLike,
        *,
        dtype: DTypeLike | None = None,
        out: NDArray[Any] | None = None,
    ) -> NDArray[Any]:
        """Return the slots of tokens, `int64[B]`; see `BlockTables.slot_mapping`.

        They are refused as int32 where some of this pool would not fit.
        """
        if dtype is not None or (out is not None and getattr(out, "dtype", None) is not INT64):
            check_slots_asked(dtype, out, self.pool.num_pages, self.pool.page_size)
        with self.lock:
            return self.tables.slot_mapping(rows, positions, dtype=dtype, out=out)

    def page_table_csr(self, rows: ArrayLike, *, out: PageTableCSR | None = None) -> PageTableCSR:
        """Return page ids in compressed sparse rows; see `BlockTables.page_table_csr`."""
        with self.lock:
            return self.tables.page_table_csr(rows, out=out)

    def seq_lens(
        self, rows: ArrayLike, *, out: NDArray[np.int32] | None = None
    ) -> NDArray[np.int32]:
        """Return the tokens of each sequence, `int32[B]`; see `BlockTables.seq_lens`."""
        with self.lock:
            return self.tables.seq_lens(rows, out=out)

    def attention_batch(
        self,
        rows: ArrayLike,
        num_new: ArrayLike,
        *,
        dtype: DTypeLike | None = None,
        out: AttentionBatch | None = None,
    ) -> AttentionBatch:
        """Return all that one paged attention call reads; see `BlockTables.attention_batch`.

        Slots are refused as int32 where some of this pool would not fit.

        Examples
        --------
        >>> cache = jitalloc.PagedKVCache(jitalloc.PagePool(64, page_size=4), 8, 16)
        >>> cache.allocate("a", 6), cache.allocate("b", 3)  # "a" was computed before
        (0, 0)
        >>> rows = cache.rows(["a", "b"])
        >>> slots, copies = cache.append_batch(rows[:1])
        >>> batch = cache.attention_batch(rows, [1, 3])  # a step of "a", the prompt of "b"
        >>> batch.qo_indptr, batch.positions, batch.slots
        (array([0, 1, 4], dtype=int32), array([6, 0, 1, 2]), array([ 6,  8,  9, 10]))
        >>> batch.kv_indptr, batch.kv_indices, batch.kv_last_page_len, batch.seq_lens.tolist()
        (array([0, 2, 3], dtype=int32), array([0, 1, 2], dtype=int32), array([3, 3], dtype=int32),
        [7, 3])
        """
        slots = None if out is None else as_attention(out).slots
        check_slots_asked(dtype, slots, self.pool.num_pages, self.pool.page_size)
        with self.lock:
            return self.tables.attention_batch(rows, num_new, dtype=dtype, out=out)

    def mirror(self, device: Device = "cuda", *, stream: Any = None) -> BlockTableMirror:
        """Return a copy of the block tables on a GPU, which follows them by its `refresh`.

        Reads them under the lock of this cache; see `BlockTables.mirror`.
        """
        return mirror_of(self.tables, device, stream, self.lock)

    # What the pool asks of a holder of pages.

    def _rename_pages(self, moves: Moves) -> None:
        names = np.arange(self.pool.num_pages, dtype=np.int32)
        names[moves.src] = moves.dst
        self.tables._rename(names)

    def _resize_pages(self, num_pages: int) -> Callable[[], None]:
        return lambda: None  # block tables do not depend on the size of the pool

    def _give_up_past(self, num_pages: int) -> None:
        """Sequences give no page up."""

    def _holds_locks(self) -> bool:
        return bool(self.tables.arrays.columns[LOCKED].any())

    def _roots_in_use(self) -> NDArray[np.int64]:
        roots: NDArray[np.int64] = -2 - self.tables.arrays.columns[NAMESPACE]
        return roots

    def _held_pages(self) -> NDArray[np.int32]:
        pages = self.tables.arrays.pages
        held: NDArray[np.int32] = pages[pages >= 0]
        return held

    # The complete state.

    def check(self, held: ArrayLike | None = None) -> None:
        """Verify the pool, the prefix cache and every row of the block table, page by page.

        Parameters
        ----------
        held : array_like of int32, optional
            As in `PagePool.check`: page ids that the caller holds beside the sequences.

        Raises
        ------
        CorruptState
            An invariant of `jitalloc.sequences.state` is broken; the message names it, and the row
            or page.
        """
        with self.pool._everyone():
            check_sequences(self._rows)
            self.pool.check(held)

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
        for slot, value in self.tables._sizes().items():
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
                self._rows.relock()

        def work() -> None:
            self.pool._take_over(snapshot.pool, rest)
            self._ids.by_row = list(snapshot.ids)
            self._ids.reconcile()

        with self.pool._everyone():
            self.pool._fits(snapshot.pool)
            if self.prefix_cache is not None and snapshot.prefix is not None:
                self.prefix_cache._fits(snapshot.prefix, snapshot.pool.num_pages)
            self.pool._uninterrupted(work)

    def _options(self) -> dict[str, Any]:
        """Return what another cache like this one is made with."""
        return {name: getattr(self, name) for name in OPTIONS}

    __copy__ = shallow

    def __reduce__(self) -> tuple[Any, ...]:
        with self.pool._everyone():
            facts = self.tables._slab.copy(), tuple(self._ids.by_row), self.pool.step
        return type(self)._revive, (self.pool, self.prefix_cache, self._options(), *facts)

    @classmethod
    def _revive(
        cls,
        pool: PagePool,
        prefix_cache: PrefixCache | None,
        options: dict[str, Any],
        slab: NDArray[np.int64],
        ids: tuple[Hashable, ...],
        step: int,
    ) -> Self:
        """Return a copy of a cache on copies of what it stands on, for `pickle` and `copy`."""
        check_step(pool.step, step)
        sizes = saved_sizes(slab, len(ids))
        cache = cls(pool, *sizes, prefix_cache=prefix_cache, **options)
        cache.tables._install(slab.copy())
        if prefix_cache is not None:
            cache._rows.relock()
        cache._ids.by_row = list(ids)
        cache._ids.reconcile()
        return cache

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
            A sequence id or a namespace is something else than an int (one of NumPy comes back as
            Python's), str, bytes, float, bool, UUID, None or a tuple of these.
        """
        prefix = {} if self.prefix_cache is None else self.prefix_cache._options()
        write_cache(path, self.snapshot(), self._options(), prefix)

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
        facts, arrays = read_cache(path)
        pool = PagePool._from_slab(arrays["pool"], path)
        slab = arrays["tables"]
        try:
            ids = saved_ids(facts)
            rows, width = saved_sizes(slab, len(ids))
            options = {key: facts[key] for key in OPTIONS}
            prefix = None
            if "prefix" in facts:
                prefix = PrefixCache._from_slab(pool, arrays["prefix"], facts["prefix"])
            cache = cls(pool, rows, width, prefix_cache=prefix, **options)
            cache.tables._install(np.ascontiguousarray(slab))
            if prefix is not None:
                check_paths(cache.tables, prefix)
                cache._rows.relock()
            cache._ids.by_row = ids
            cache._ids.reconcile()
            cache.check()
        except (ValueError, KeyError, TypeError, IndexError, CorruptState) as error:
            raise SnapshotError(f"{path}: the tables do not fit: {error}") from error
        return cache
