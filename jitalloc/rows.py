"""Which sequence lives in which row: ids, facts, statistics, checking and saving."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jitalloc.arguments import as_choice, as_count, as_fraction
from jitalloc.errors import (
    NEGATIVE_TOKEN,
    OUT_OF_PAGES,
    OUT_OF_ROWS,
    REFCOUNT_OVERFLOW,
    InvalidArgument,
    JitallocError,
    OutOfPages,
    OutOfRows,
    SequenceTooLong,
    WrongDevice,
    argument_error,
    unpack_status,
)
from jitalloc.ids import changes_ids
from jitalloc.moves import ranks
from jitalloc.pool import PagePool
from jitalloc.prefix import PrefixCache
from jitalloc.row_calls import SequenceCalls
from jitalloc.state import (
    ACTIVE,
    EVICTION_POLICIES,
    EVICTIONS,
    INT32,
    INT32_MAX,
    LAST_USED,
    LENGTH,
    NULL,
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
from jitalloc.stats import SequenceInfo, SequenceStats
from jitalloc.tables import BlockTables


class SequenceRows(SequenceCalls):
    """The part of `PagedKVCache` that knows which sequence lives in which row."""

    def __init__(
        self,
        pool: PagePool,
        max_sequences: int,
        max_pages_per_sequence: int,
        *,
        eviction: str = "lru",
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
        self.tables = self._make_tables(max_sequences, max_pages_per_sequence)
        self._ids = self._make_ids()
        self.lock = self._ids.lock
        self.rank = next(ranks)
        self.prefix_cache = prefix_cache
        pool._holders.add(self)

    def _make_tables(self, max_sequences: int, max_pages_per_sequence: int) -> BlockTables:
        pad = 0 if self.pool.null_page else NULL
        return BlockTables(max_sequences, max_pages_per_sequence, self.pool.page_size, pad)

    def __contains__(self, seq_id: Hashable) -> bool:
        return seq_id in self._ids.rows

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(max_sequences={self.tables.max_sequences}, "
            f"max_pages_per_sequence={self.tables.max_pages_per_sequence}, "
            f"eviction={self.eviction!r}): {len(self)} sequences on {self.pool!r}"
        )

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
            No live sequence has one of these ids.
        """
        if not isinstance(seq_ids, Iterable):
            raise InvalidArgument("seq_ids", seq_ids, "must be an iterable of sequence ids")
        return np.array([self.row(seq_id) for seq_id in seq_ids], INT32)

    @changes_ids
    def allocate(
        self,
        seq_id: Hashable,
        num_tokens: int | None = None,
        *,
        tokens: ArrayLike | None = None,
        namespace: Hashable = None,
        priority: int = 0,
    ) -> int:
        """Make a sequence, in the lowest free row.

        With a prefix cache and `tokens`, whole pages that are cached already are shared: the
        sequence holds and locks them, and only the rest is allocated. The first tokens stay
        known, so that `commit` and `free` can let full pages enter the cache.

        Parameters
        ----------
        seq_id : Hashable
        num_tokens : int
            How many tokens; may be 0. Needed where there are no `tokens`.
        tokens : array_like of int32[num_tokens], optional
            Their ids, 0 .. 2**31 - 1.
        namespace : Hashable
            Prefixes of different namespaces are never shared.
        priority : int
            With the policy `priority` the lowest goes first.

        Returns
        -------
        int
            How many of the tokens are cached: whole pages, perhaps all of them. 0 without a
            prefix cache.

        Raises
        ------
        DuplicateSequence
            A live sequence has this id.
        OutOfPages, OutOfRows
            Pages or rows are not there. Cached pages that nobody locks give way first, but
            only if that suffices.
        SequenceTooLong
            The sequence needs more pages than a row has.
        InvalidArgument
            `num_tokens` is no count or not the length of `tokens`, a token is out of range, or
            `seq_id` or `namespace` is not hashable.

        Examples
        --------
        >>> pool = jitalloc.PagePool(num_pages=64, page_size=4)
        >>> prefix = jitalloc.PrefixCache(pool)
        >>> cache = jitalloc.PagedKVCache(pool, 8, 16, prefix_cache=prefix)
        >>> cache.allocate("a", tokens=[1, 2, 3, 4, 5, 6, 7, 8, 9])
        0
        >>> cache.free("a")  # one page goes free, two stay in the prefix cache
        1
        >>> cache.allocate("b", tokens=[1, 2, 3, 4, 5, 6, 7, 8, 3, 2, 1])
        8
        """
        priority = as_count("priority", priority, -INT32_MAX, INT32_MAX)
        if tokens is None:
            if num_tokens is None:
                raise InvalidArgument("num_tokens", None, "needed where there are no tokens")
            length = as_count("num_tokens", num_tokens)
        else:
            tokens = self._as_tokens(tokens)
            length = tokens.size
            if num_tokens is not None and as_count("num_tokens", num_tokens) != length:
                raise InvalidArgument("num_tokens", num_tokens, f"there are {length} tokens")
        self._ids.expect(seq_id)
        number = self._namespace(namespace)
        if tokens is None or self.prefix_cache is None:
            if tokens is not None:
                self._refuse_negative(tokens)
            row = self._open(length, number, priority)
        else:
            row = self._open_on_prefix(tokens, number, priority)
            if row < 0 and unpack_status(row)[0] == NEGATIVE_TOKEN:
                raise argument_error(row, "tokens", tokens)
        if row < 0:
            raise self._shortage(row, length)
        self._ids.enter(row)
        return self._locked_pages(row) * self.pool.page_size

    def _namespace(self, namespace: Hashable) -> int:
        """Return the number of a namespace, for the rows of the block table."""
        if self.prefix_cache is not None:
            return -2 - self.prefix_cache._make_root(namespace)
        try:
            hash(namespace)
        except TypeError:
            raise InvalidArgument("namespace", namespace, "must be hashable") from None
        return 0

    def _shortage(self, status: int, tokens: int) -> JitallocError:
        code, detail = unpack_status(status)
        pages = -(-tokens // self.pool.page_size)
        if code == OUT_OF_PAGES:
            return OutOfPages(pages, detail)
        if code == OUT_OF_ROWS:
            return OutOfRows(f"all {self.tables.max_sequences} rows hold sequences")
        if code == REFCOUNT_OVERFLOW:
            text = "a page would have more owners than int32 holds"
            return InvalidArgument("src_id", None, text)
        return self._too_long("num_tokens", tokens, pages, None)

    def _too_long(
        self, argument: str, tokens: int, pages: int, position: int | None
    ) -> SequenceTooLong:
        width = self.tables.max_pages_per_sequence
        text = f"the sequence would need {pages} pages; a row holds {width}, a length fits int32"
        return SequenceTooLong(argument, tokens, text, position)

    @changes_ids
    def free(self, seq_id: Hashable, *, commit: bool = True) -> int:
        """End a sequence: each of its pages has one owner less.

        Parameters
        ----------
        seq_id : Hashable
        commit : bool
            Let its full pages of known tokens enter the prefix cache first. Not right where
            the keys and values of some have not been computed: `truncate` to those that have,
            or give False.

        Returns
        -------
        int
            How many pages went free.

        Raises
        ------
        UnknownSequence
            No live sequence has this id.
        """
        return self._free_rows(np.array([self.row(seq_id)], INT32), commit)

    @changes_ids
    def free_batch(self, rows: ArrayLike, *, commit: bool = True) -> int:
        """End sequences, all or nothing; their ids are forgotten.

        Parameters
        ----------
        rows : array_like of int32[B]
            Rows of live sequences, each once.
        commit : bool
            As in `free`.

        Returns
        -------
        int
            How many pages went free.

        Raises
        ------
        InvalidArgument
            A row is out of range, free or repeated.
        """
        return self._free_rows(self._as_rows("rows", rows), commit)

    def _free_rows(self, rows: NDArray[np.int32], commit: bool) -> int:
        if not isinstance(commit, bool):
            raise InvalidArgument("commit", commit, "must be a bool")
        status = self._end_rows(rows, commit, False)
        if status < 0:
            raise self.tables._row_error(status, "rows", rows)
        for row in rows.tolist():
            self._ids.leave(row)
        return status

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
            row = self.row(seq_id)
            facts, pages, shared = self._row_state(row)
        return SequenceInfo(
            seq_id=seq_id,
            row=row,
            num_tokens=facts[LENGTH],
            pages=pages,
            shared_pages=shared,
            last_used=facts[LAST_USED],
            uses=facts[USES],
            priority=facts[PRIORITY],
            pinned=bool(facts[PINNED]),
        )

    def stats(self) -> SequenceStats:
        """Return totals and counters, in O(max_sequences); `pool.stats()` has those of pages."""
        with self.lock:
            header, tokens = self._totals()
            free, reclaimable, held = self._pages()
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

    @changes_ids
    def clear(self) -> None:
        """End every sequence; pages that nobody else holds go free, and none enter the cache."""
        self._free_rows(np.array(list(self._ids.rows.values()), INT32), commit=False)
