"""PagedKVCache: sequences on a pool."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from jitalloc.arguments import as_count, as_fraction, as_integers, as_lengths, as_tokens, check_bool
from jitalloc.errors import InvalidArgument, unpack_status
from jitalloc.pool.holders import Moves
from jitalloc.sequences.arguments import (
    adopting_error,
    append_error,
    as_computed,
    as_growth,
    check_page_count,
    check_same_length,
    check_token_count,
    commit_error,
    kept_or_dropped,
    lengths_error,
    opening_error,
    pairs_error,
)
from jitalloc.sequences.attention import check_slots_asked
from jitalloc.sequences.batches import Allocated, Plan, listed
from jitalloc.sequences.eviction import Eviction, EvictionRule
from jitalloc.sequences.ids import changes_ids
from jitalloc.sequences.loops.commits import commits_batch_cpu
from jitalloc.sequences.loops.eviction import eviction_window_batch_cpu
from jitalloc.sequences.loops.room import room_count_cpu
from jitalloc.sequences.loops.sequences import (
    INHERITED,
    sequences_append_ahead_cpu,
    sequences_append_cpu,
    sequences_fork_batch_cpu,
    sequences_reorder_cpu,
    sequences_truncate_batch_cpu,
)
from jitalloc.sequences.state import LENGTH, PINNED, PRIORITY
from jitalloc.sequences.upkeep import SequenceUpkeep
from jitalloc.state import INT32, INT32_MAX, NO_TOKENS


class Appended(NamedTuple):
    """Where new tokens go.

    Attributes
    ----------
    slots : int64[sum(n)] or int32[sum(n)]
        Slots of the new tokens, sequence after sequence.
    copies : Moves
        Pages to copy before anything is written: shared pages that the call replaced by pages
        of the sequence's own (copy-on-write). `dst[i]` becomes a copy of `src[i]`.
    """

    slots: NDArray[Any]
    copies: Moves


class PagedKVCache(SequenceUpkeep):
    """Sequences on a pool: they grow, fork, give way and end, and their block tables follow.

    Parameters
    ----------
    pool : PagePool
        Where the pages come from; several caches may share one.
    max_sequences : int
        Rows of the block table: sequences that can live at once.
    max_pages_per_sequence : int
        Its width: a sequence holds at most `max_pages_per_sequence * page_size` tokens.
    eviction : {"lru", "lfu", "longest", "priority", "streaming"}
        Which sequence gives way first (see `select_eviction_target`).
    eviction_threshold : float
        Utilization that `over_threshold` and `evict_to` compare with.
    sink_tokens, window_tokens : int
        What the policy `streaming` keeps of a sequence.
    prefix_cache : PrefixCache, optional
        On the same pool. Sequences share its pages and leave their own to it, and its pages
        give way when sequences need more than is free.

    Attributes
    ----------
    pool : PagePool
    tables : BlockTables
    prefix_cache : PrefixCache or None

    Raises
    ------
    InvalidArgument
        A size, a policy or a threshold is out of range.

    Notes
    -----
    A sequence has an id, any hashable, and a row of the block table. Batch calls take arrays of
    rows (`rows` translates) and are all or nothing. Calls from several threads are serialised.

    Examples
    --------
    >>> pool = jitalloc.PagePool(num_pages=64, page_size=4)
    >>> cache = jitalloc.PagedKVCache(pool, max_sequences=8, max_pages_per_sequence=16)
    >>> cache.allocate("a", 6)
    0
    >>> cache.append("a").slots
    array([6])
    >>> cache.fork("a", "b")
    >>> slots, copies = cache.append("b")
    >>> slots, copies.src, copies.dst
    (array([11]), array([1], dtype=int32), array([2], dtype=int32))
    >>> cache.block_tables(cache.rows(["a", "b"]))
    array([[0, 1],
           [0, 2]], dtype=int32)
    >>> cache.free("a"), cache.free("b")
    (1, 2)
    """

    # Beginning and ending.

    @changes_ids
    def allocate(
        self,
        seq_id: Hashable,
        num_tokens: int | None = None,
        *,
        tokens: ArrayLike | None = None,
        namespace: Hashable = None,
        priority: int = 0,
        compute: int = 1,
    ) -> int:
        """Make a sequence, in the lowest free row.

        With a prefix cache and `tokens`, whole pages that are cached already are shared: the
        sequence holds and locks them, and only the rest is allocated. The first tokens stay
        known, so that `commit` and `free` can let full pages enter the cache. What was found there
        is computed; the rest is not, until `commit` or `append` says so.

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
        compute : int
            So many `tokens` at least are left to be computed. With one, the default, there are
            logits to go on from even where all of the prompt is cached: its last page is then a
            page of the sequence's own. 0 where nobody asks for them.

        Returns
        -------
        int
            How many of the tokens are cached: whole pages. 0 without a prefix cache.

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
            `num_tokens` or `compute` is no count, or `num_tokens` not the length of `tokens`, a
            token is out of range, or `seq_id` or `namespace` is not hashable.

        Examples
        --------
        >>> pool = jitalloc.PagePool(num_pages=64, page_size=4)
        >>> prefix = jitalloc.PrefixCache(pool)
        >>> cache = jitalloc.PagedKVCache(pool, 8, 16, prefix_cache=prefix)
        >>> cache.allocate("a", tokens=[1, 2, 3, 4, 5, 6, 7, 8, 9])
        0
        >>> cache.commit("a")  # all of it has been computed
        8
        >>> cache.free("a")  # one page goes free, two stay in the prefix cache
        1
        >>> cache.allocate("b", tokens=[1, 2, 3, 4, 5, 6, 7, 8, 3, 2, 1])
        8
        """
        priority = as_count("priority", priority, -INT32_MAX, INT32_MAX)
        left = as_count("compute", compute)
        if tokens is None:
            if num_tokens is None:
                raise InvalidArgument("num_tokens", None, "needed where there are no tokens")
            length = as_count("num_tokens", num_tokens)
        else:
            tokens = self._rows.as_tokens(tokens)
            length = tokens.size
            if num_tokens is not None and as_count("num_tokens", num_tokens) != length:
                raise InvalidArgument("num_tokens", num_tokens, f"there are {length} tokens")
        self._ids.expect(seq_id)
        number = self._rows.namespace(namespace)
        if tokens is None:
            row = self._rows.open(length, number, priority)
        else:
            row = self._rows.open_with(tokens, number, priority, left)
        if row < 0:
            raise opening_error(row, length, tokens, self.tables)
        self._ids.enter(row)
        return self._rows.locked_pages(row) * self.pool.page_size

    def plan(
        self,
        tokens: ArrayLike,
        indptr: ArrayLike,
        *,
        namespaces: Iterable[Hashable] | None = None,
        reserve: int = 0,
        compute: int = 1,
    ) -> Plan:
        """Say how many of the first prompts of a batch fit, and what each finds in the cache.

        Nothing is taken, and nothing counts as used. Where `k` are admitted, `allocate_batch` of
        the first `k` succeeds, and of one more it is refused: for want of pages or of rows, or
        because that prompt needs more pages than a row has. Pages that cached ones make room for
        count as there, but those that a prompt before shares do not: they stay.

        Parameters
        ----------
        tokens : array_like of int32[n]
            The prompts, one behind the other, the most urgent first.
        indptr : array_like of int64[B + 1]
            Prompt `i` is `tokens[indptr[i] : indptr[i + 1]]`; from 0 to n.
        namespaces : iterable of Hashable, optional
            One a prompt; by default None for all.
        reserve : int
            Pages that have to be left of those that are free, or that cached ones make room for,
            now (a watermark). Who takes none fits even where there are fewer already.
        compute : int
            So many tokens of each are left to be computed: see `allocate`.

        Returns
        -------
        Plan
            `(admitted, num_cached, num_pages)`, of prompts that do not fit too.

        Raises
        ------
        InvalidArgument
            `indptr` or `namespaces` do not fit the rest, or a number is negative.

        Examples
        --------
        >>> cache = jitalloc.PagedKVCache(jitalloc.PagePool(4, page_size=4), 8, 16)
        >>> cache.plan(range(18), [0, 6, 12, 18])
        Plan(admitted=2, num_cached=array([0, 0, 0]), num_pages=array([2, 2, 2]))
        """
        left, kept = as_count("compute", compute), as_count("reserve", reserve)
        with self.lock:
            prompts = self._rows.prompts(tokens, indptr, namespaces, makes=False)
            return self._rows.plan(prompts, kept, left)

    @changes_ids
    def allocate_batch(
        self,
        tokens: ArrayLike,
        indptr: ArrayLike,
        *,
        ids: Iterable[Hashable],
        namespaces: Iterable[Hashable] | None = None,
        priority: int = 0,
        compute: int = 1,
    ) -> Allocated:
        """Make a sequence of each prompt, in the lowest free rows, all or nothing.

        All of them find what is cached before any begins, and keep it: none gives way for another.
        So they share nothing that is not cached yet: of prompts that begin alike and come
        together, all but one may better wait until that one is committed.

        Parameters
        ----------
        tokens, indptr : array_like of int32[n], array_like of int64[B + 1]
            The prompts: see `plan`.
        ids : iterable of Hashable
            One a prompt, each new.
        namespaces : iterable of Hashable, optional
            One a prompt; by default None for all.
        priority : int
            Of all of them: see `allocate`.
        compute : int
            So many tokens of each are left to be computed: see `allocate`.

        Returns
        -------
        Allocated
            `(rows, num_cached, copies)`.

        Raises
        ------
        DuplicateSequence
            A live sequence has one of the ids, or one stands there twice.
        OutOfPages, OutOfRows
            Pages or rows are not there for all, and evicting cached pages would not do: nothing is
            evicted. `position` tells of pages which prompt is the first that does not fit.
        SequenceTooLong
            A prompt needs more pages than a row has.
        InvalidArgument
            `indptr`, `ids` or `namespaces` do not fit the rest, a token is out of range, a number
            is no count, or an id or a namespace is not hashable.

        Examples
        --------
        >>> cache = jitalloc.PagedKVCache(jitalloc.PagePool(4, page_size=4), 8, 16)
        >>> cache.allocate_batch(range(12), [0, 6, 12], ids=["a", "b"]).rows
        array([0, 1], dtype=int32)
        >>> cache.block_tables(cache.rows(["a", "b"]))
        array([[0, 1],
               [2, 3]], dtype=int32)
        """
        priority = as_count("priority", priority, -INT32_MAX, INT32_MAX)
        left = as_count("compute", compute)
        prompts = self._rows.prompts(tokens, indptr, namespaces, makes=True)
        self._ids.expect_all(listed("ids", ids, prompts.roots.size))
        rows, num_cached = self._rows.open_batch(prompts, priority, left)
        self._ids.enter_all(rows.tolist())
        return self._rows.allocated(rows, num_cached)

    @changes_ids
    def adopt(
        self,
        seq_id: Hashable,
        tokens: ArrayLike,
        pages: ArrayLike,
        *,
        namespace: Hashable = None,
        priority: int = 0,
        computed: int | None = None,
    ) -> None:
        """Make a sequence of pages computed elsewhere: by another engine, or read from a tier.

        The caller, who took the pages from the pool and filled them, gives them to the sequence:
        their owners are as many as before, and only if the call fails are they still to be freed by
        the caller. `commit` and `free` let them enter the prefix cache.

        Parameters
        ----------
        seq_id : Hashable
        tokens : array_like of int32[n]
            Ids of its tokens, 0 .. 2**31 - 1.
        pages : array_like of int32[ceil(n / page_size)]
            Pages that the caller holds, in the order of the tokens, each once.
        namespace : Hashable
            Prefixes of different namespaces are never shared.
        priority : int
            With the policy `priority` the lowest goes first.
        computed : int, optional
            How many of the first tokens are computed; by default all.

        Raises
        ------
        DuplicateSequence
            A live sequence has this id.
        OutOfRows
            All rows are taken.
        SequenceTooLong
            The sequence needs more pages than a row has.
        InvalidPage
            A page is out of range, reserved or free.
        PageCached
            A page is named twice, or stands in the prefix cache: `allocate` shares it.
        InvalidArgument
            The pages are not as many as the tokens need, a token is out of range, `computed` is no
            count or more than there are tokens, or `seq_id` or `namespace` is not hashable.

        Examples
        --------
        >>> pool = jitalloc.PagePool(num_pages=64, page_size=4)
        >>> cache = jitalloc.PagedKVCache(pool, 8, 16, prefix_cache=jitalloc.PrefixCache(pool))
        >>> cache.adopt("a", range(10), pool.alloc(3))
        >>> cache.commit("a")
        8
        >>> cache.allocate("b", tokens=range(10))
        8
        """
        priority = as_count("priority", priority, -INT32_MAX, INT32_MAX)
        tokens = self._rows.as_tokens(tokens)
        pages = self._rows.as_pages(pages)
        check_page_count(pages, tokens.size, self.pool.page_size)
        done = tokens.size if computed is None else as_count("computed", computed)
        if done > tokens.size:
            raise InvalidArgument("computed", done, f"there are {tokens.size} tokens")
        self._ids.expect(seq_id)
        facts = self._rows.namespace(namespace), priority, done
        row = self._rows.adopt(tokens, pages, facts)
        if row < 0:
            raise adopting_error(row, self.pool, self.tables, tokens, pages)
        self._ids.enter(row)

    @changes_ids
    def fork(self, src_id: Hashable, dst_id: Hashable, num_tokens: int | None = None) -> None:
        """Make a sequence that shares the pages of another one, all or those of its first tokens.

        The last page is shared too, even where it holds more than the new sequence has; whoever
        writes to a shared page first gets a copy of it. What is computed of the one is computed of
        the other. The new sequence takes over the priority, and is not pinned. It is as if the
        whole sequence had been forked and then cut short by `truncate`, in one call.

        Parameters
        ----------
        src_id, dst_id : Hashable
            The sequence to fork, and the id of the new one.
        num_tokens : int, optional
            So many of the first tokens are shared; by default all.

        Raises
        ------
        UnknownSequence, DuplicateSequence
            `src_id` does not live, or `dst_id` does.
        OutOfRows
            All rows are taken.
        InvalidArgument
            `num_tokens` is no count, or more than the sequence has.

        Examples
        --------
        >>> cache = jitalloc.PagedKVCache(jitalloc.PagePool(64, page_size=4), 8, 16)
        >>> cache.allocate("a", 11)
        0
        >>> cache.fork("a", "b", 6)  # another answer from the sixth token on
        >>> cache.append("b").copies  # its second page holds tokens of "a" behind
        Moves(src=array([1], dtype=int32), dst=array([3], dtype=int32))
        """
        count = -1 if num_tokens is None else as_count("num_tokens", num_tokens)
        src = self._ids.row(src_id)
        self._ids.expect(dst_id)
        row = self._rows.fork(src, count)
        if row < 0:
            raise opening_error(row, count, None, self.tables)
        self._ids.enter(row)

    @changes_ids
    def free(self, seq_id: Hashable, *, commit: bool = True) -> int:
        """End a sequence: each of its pages has one owner less.

        Parameters
        ----------
        seq_id : Hashable
        commit : bool
            Let its full pages enter the prefix cache first, as far as its tokens are known and
            computed (see `commit`). So the token appended last, which nothing has been computed
            for since, does not count, unless it is committed before.

        Returns
        -------
        int
            How many pages went free.

        Raises
        ------
        UnknownSequence
            No live sequence has this id.
        """
        return self._free_rows(np.array([self._ids.row(seq_id)], INT32), commit)

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
        return self._free_rows(as_integers("rows", rows, INT32), commit)

    def _free_rows(self, rows: NDArray[np.int32], commit: bool) -> int:
        check_bool("commit", commit)
        status = self._rows.end(rows, commit, False)
        if status < 0:
            raise self.tables._row_error(status, "rows", rows)
        for row in rows.tolist():
            self._ids.leave(row)
        return status

    @changes_ids
    def clear(self) -> None:
        """End every sequence; pages that nobody else holds go free, and none enter the cache."""
        self._free_rows(np.array(list(self._ids.rows.values()), INT32), commit=False)

    # Growing and beams.

    def append(
        self,
        seq_id: Hashable,
        n: int | None = None,
        *,
        tokens: ArrayLike | None = None,
        computed: bool = True,
    ) -> Appended:
        """Grow a sequence by `n` tokens; see `append_batch`.

        Without `n` there are as many as `tokens`, or 1.
        """
        if tokens is not None:
            tokens = as_tokens(tokens)
        if n is None:
            n = 1 if tokens is None else tokens.size
        rows = np.array([self._ids.row(seq_id)], INT32)
        return self.append_batch(rows, n, tokens=tokens, computed=computed)

    def append_batch(
        self,
        rows: ArrayLike,
        n: ArrayLike = 1,
        *,
        tokens: ArrayLike | None = None,
        dtype: DTypeLike | None = None,
        computed: bool = True,
    ) -> Appended:
        """Grow sequences by `n` tokens each, all or nothing.

        A partly filled last page that somebody else holds too is replaced by a page of the
        sequence's own first (copy-on-write). Sequences take their turn in batch order, so of
        two that share such a page the first one copies it and the second may keep it.

        Nothing enters a prefix cache: `commit` and `free` publish what has been computed.

        Parameters
        ----------
        rows : array_like of int32[B]
            Rows of live sequences, each at most once.
        n : int or array_like of int64[B]
            New tokens, for all or for each.
        tokens : array_like of int32[sum(n)], optional
            Ids of the new tokens, sequence after sequence. Where all before them are known,
            they are known as well.
        dtype : {int64, int32}, optional
            Of the slots, int64 by default.
        computed : bool
            What stood before new tokens counts as computed from now on, as in decoding, where the
            new token follows from all others. False leaves that to `commit`.

        Returns
        -------
        Appended
            `(slots int64[sum(n)], copies)`; copy the pages before you write to the slots.

        Raises
        ------
        OutOfPages
            The new pages and copies are not there, and evicting cached pages would not do.
        SequenceTooLong
            A sequence would need more pages than a row has.
        InvalidArgument
            A row is out of range, free or repeated, a number is negative, `tokens` are not
            `sum(n)` ids, slots of the pool may not fit `dtype`, or `computed` is no bool.
        """
        if dtype is not None:
            check_slots_asked(dtype, None, self.pool.num_pages, self.pool.page_size)
        check_bool("computed", computed)
        rows = as_integers("rows", rows, INT32)
        batch = rows.size
        if type(n) is int and 0 <= n <= INT32_MAX and n * batch <= INT32_MAX:
            counts, total = np.array([n]), n * batch
        else:
            counts, total = as_growth(n, batch)
        ids = NO_TOKENS if tokens is None else as_tokens(tokens)
        if tokens is not None:
            check_token_count(ids, total)
        with self.lock:
            # More slots than that cannot be had: the kernel then says why, and the buffer of a
            # mistaken call stays small.
            most = (batch + self.pool.num_pages) * self.pool.page_size
            slots, copied = np.empty(min(total, most), np.int64), np.empty((2, batch), np.int32)
            tables, prefix = self.tables._slab, self._rows.index._slab
            loop = sequences_append_cpu if computed else sequences_append_ahead_cpu
            copies = self.pool._run(loop, tables, prefix, rows, counts, ids, slots, copied)
            if copies < 0:
                raise append_error(copies, self.pool, self.tables, rows, counts, ids)
            moves = Moves(copied[0, :copies], copied[1, :copies])
            return Appended(slots if dtype is None else slots.astype(dtype), moves)

    def room_for(self, rows: ArrayLike, n: ArrayLike = 1, *, reserve: int = 0) -> int:
        """Return how many of the first sequences of a batch can grow by `n` tokens each.

        Nothing is taken, and nothing counts as used. Where it returns `k`, `append_batch` of the
        first `k` succeeds, and of one more it is refused: for want of pages, of which those that
        are copied and those that cached pages make room for count as there, or because that row
        has room for no more.

        Parameters
        ----------
        rows : array_like of int32[B]
            Rows of live sequences, each at most once, the most urgent first.
        n : int or array_like of int64[B]
            New tokens, for all or for each.
        reserve : int
            Pages that have to be left of those that are free, or that cached ones make room for,
            now (a watermark). Who takes none can grow even where there are fewer already.

        Returns
        -------
        int

        Raises
        ------
        InvalidArgument
            A row is out of range, free or repeated, or a number is negative.

        Examples
        --------
        >>> cache = jitalloc.PagedKVCache(jitalloc.PagePool(4, page_size=4), 8, 16)
        >>> for seq_id in "abc":
        ...     _ = cache.allocate(seq_id, 4)
        >>> rows = cache.rows(list("abc"))
        >>> cache.room_for(rows), cache.room_for(rows, 0), cache.room_for(rows, reserve=1)
        (1, 3, 0)
        """
        rows = as_integers("rows", rows, INT32)
        counts, _total = as_growth(n, rows.size)
        left = as_count("reserve", reserve)
        with self.lock:
            copies = np.empty(rows.size, INT32)
            slabs = self.tables._slab, self._rows.index._slab
            status = self.pool._run(room_count_cpu, *slabs, rows, counts, copies, left)
            if status < 0:
                raise append_error(status, self.pool, self.tables, rows, counts, NO_TOKENS)
            return status

    def fork_batch(self, src_rows: ArrayLike, dst_rows: ArrayLike) -> None:
        """Let empty sequences share all pages of others, all or nothing.

        All sources are read before any destination is written.

        Parameters
        ----------
        src_rows : array_like of int32[B]
            Rows of live sequences; a row may stand there many times.
        dst_rows : array_like of int32[B]
            Rows of live sequences without tokens (`allocate(seq_id, 0)`), each once.

        Raises
        ------
        InvalidArgument
            A row is out of range, free or repeated, or a destination is not empty.
        """
        src_rows = as_integers("src_rows", src_rows, INT32)
        dst_rows = as_integers("dst_rows", dst_rows, INT32)
        check_same_length("dst_rows", dst_rows, src_rows)
        with self.lock:
            slabs = self.tables._slab, self._rows.index._slab
            status = self.pool._run(sequences_fork_batch_cpu, *slabs, src_rows, dst_rows)
            if status < 0:
                named = ("dst_rows", dst_rows), ("src_rows", src_rows)
                raise pairs_error(status, self.tables, *named)

    def reorder(self, rows: ArrayLike, parents: ArrayLike) -> None:
        """Let each sequence continue another one: one step of a beam search.

        All at once: `rows[i]` takes the tokens and pages that `parents[i]` had before the call.
        What nobody continues goes free.

        Parameters
        ----------
        rows : array_like of int32[B]
            Rows of live sequences, each once.
        parents : array_like of int32[B]
            Rows of live sequences; a row may stand there many times.

        Raises
        ------
        InvalidArgument
            A row is out of range or free, or `rows` names one twice.
        """
        rows = as_integers("rows", rows, INT32)
        parents = as_integers("parents", parents, INT32)
        check_same_length("parents", parents, rows)
        with self.lock:
            valid = parents[(parents >= 0) & (parents < self.tables.max_sequences)]
            tokens = int(self.tables.arrays.columns[LENGTH, valid].max(initial=0))
            pages = np.empty((rows.size, -(-tokens // self.pool.page_size)), np.int32)
            facts = np.empty((rows.size, len(INHERITED)), np.int64)
            slabs = self.tables._slab, self._rows.index._slab
            status = self.pool._run(sequences_reorder_cpu, *slabs, rows, parents, facts, pages)
            if status < 0:
                raise pairs_error(status, self.tables, ("rows", rows), ("parents", parents))

    # Shrinking.

    def truncate(self, seq_id: Hashable, num_tokens: int) -> int:
        """Drop the tail of a sequence, for example rejected speculative tokens.

        Parameters
        ----------
        seq_id : Hashable
        num_tokens : int
            Tokens that stay.

        Returns
        -------
        int
            How many pages went free.

        Raises
        ------
        UnknownSequence
            No live sequence has this id.
        InvalidArgument
            The sequence has fewer tokens than `num_tokens`.
        """
        tokens = as_count("num_tokens", num_tokens)
        with self.lock:
            row = self._ids.row(seq_id)
            status = self._rows.truncate(row, tokens)
            if status < 0:
                length = unpack_status(status)[1]
                raise InvalidArgument("num_tokens", tokens, f"the sequence has {length} tokens")
        return status

    def truncate_batch(
        self,
        rows: ArrayLike,
        num_tokens: ArrayLike | None = None,
        *,
        drop: ArrayLike | None = None,
    ) -> int:
        """Drop the tails of sequences, all or nothing: those of rejected drafts, say.

        Parameters
        ----------
        rows : array_like of int32[B]
            Rows of live sequences, each once.
        num_tokens : int or array_like of int64[B]
            Tokens that stay, for all or of each.
        drop : int or array_like of int64[B]
            Tokens that go, in place of `num_tokens`.

        Returns
        -------
        int
            How many pages went free.

        Raises
        ------
        InvalidArgument
            A row is out of range, free or repeated, a number is negative or more than the
            sequence has, or not one of `num_tokens` and `drop` is given.

        Examples
        --------
        >>> pool = jitalloc.PagePool(num_pages=64, page_size=4)
        >>> cache = jitalloc.PagedKVCache(pool, max_sequences=8, max_pages_per_sequence=16)
        >>> cache.allocate("a", 6), cache.allocate("b", 9)
        (0, 0)
        >>> rows = cache.rows(["a", "b"])
        >>> cache.append_batch(rows, 4).slots  # the next token and three drafts, for each
        array([ 6,  7, 20, 21, 17, 18, 19, 24])
        >>> cache.truncate_batch(rows, drop=[3, 1])  # none of three accepted, two of three
        2
        >>> cache.seq_lens(rows)
        array([ 7, 12], dtype=int32)
        """
        name, values = kept_or_dropped(num_tokens, drop)
        rows = as_integers("rows", rows, INT32)
        scalar = np.ndim(values) == 0
        given = [as_count(name, values)] if scalar else values
        counts = as_lengths(name, given, 1 if scalar else rows.size)
        with self.lock:
            slabs = self.tables._slab, self._rows.index._slab
            drops = int(name == "drop")
            status = self.pool._run(sequences_truncate_batch_cpu, *slabs, rows, counts, drops)
            if status < 0:
                raise lengths_error(status, self.tables, name, rows, counts)
        return status

    def apply_streaming_llm(self, seq_id: Hashable, sink_tokens: int, window_tokens: int) -> int:
        """Keep the first and the last tokens of a sequence, and drop whole pages between.

        Kept are the first `ceil(sink_tokens / page_size)` pages and every page that holds one
        of the last `window_tokens` tokens; the tokens behind the gap move up in the sequence.

        Parameters
        ----------
        seq_id : Hashable
        sink_tokens : int
            Tokens at the start (attention sinks).
        window_tokens : int
            Tokens at the end; with 0 all pages behind the sinks go.

        Returns
        -------
        int
            Tokens dropped.

        Raises
        ------
        UnknownSequence
            No live sequence has this id.
        InvalidArgument
            A number is negative.

        Notes
        -----
        Xiao et al., "Efficient Streaming Language Models with Attention Sinks", ICLR 2024.
        """
        sink = as_count("sink_tokens", sink_tokens)
        window = as_count("window_tokens", window_tokens)
        with self.lock:
            return self._rows.cut(self._ids.row(seq_id), sink, window, 0)[0]

    def apply_window(self, seq_id: Hashable, window_tokens: int) -> int:
        """Keep the pages of the last `window_tokens` tokens: `apply_streaming_llm` without sinks.

        Parameters
        ----------
        seq_id : Hashable
        window_tokens : int
            Tokens at the end.

        Returns
        -------
        int
            Tokens dropped.
        """
        return self.apply_streaming_llm(seq_id, 0, window_tokens)

    def apply_streaming_llm_batch(
        self, rows: ArrayLike, sink_tokens: int, window_tokens: int
    ) -> NDArray[np.int64]:
        """Keep the first and the last tokens of sequences, all or nothing.

        Parameters
        ----------
        rows : array_like of int32[B]
            Rows of live sequences, each once.
        sink_tokens, window_tokens : int
            As in `apply_streaming_llm`.

        Returns
        -------
        int64[B]
            Tokens dropped of each.

        Raises
        ------
        InvalidArgument
            A row is out of range, free or repeated, or a number is negative.
        """
        rows = as_integers("rows", rows, INT32)
        rule = as_count("sink_tokens", sink_tokens), as_count("window_tokens", window_tokens)
        dropped = np.empty(rows.size, np.int64)
        with self.lock:
            slabs = self.tables._slab, self._rows.index._slab
            status = self.pool._run(eviction_window_batch_cpu, *slabs, rows, dropped, *rule)
            if status < 0:
                raise self.tables._row_error(status, "rows", rows)
        return dropped

    def apply_window_batch(self, rows: ArrayLike, window_tokens: int) -> NDArray[np.int64]:
        """Keep the pages of the last `window_tokens` tokens of sequences, all or nothing.

        Parameters
        ----------
        rows : array_like of int32[B]
            Rows of live sequences, each once.
        window_tokens : int
            Tokens at the end.

        Returns
        -------
        int64[B]
            Tokens dropped of each.
        """
        return self.apply_streaming_llm_batch(rows, 0, window_tokens)

    # Giving way.

    def pin(self, seq_id: Hashable) -> None:
        """Protect a sequence from eviction until `unpin`; a second pin changes nothing.

        Parameters
        ----------
        seq_id : Hashable

        Raises
        ------
        UnknownSequence
            No live sequence has this id.
        """
        with self.lock:
            self._rows.mark(self._ids.row(seq_id), PINNED, 1)

    def unpin(self, seq_id: Hashable) -> None:
        """Let a sequence be evicted again.

        Parameters
        ----------
        seq_id : Hashable

        Raises
        ------
        UnknownSequence
            No live sequence has this id.
        """
        with self.lock:
            self._rows.mark(self._ids.row(seq_id), PINNED, 0)

    def set_priority(self, seq_id: Hashable, priority: int) -> None:
        """Set the priority of a sequence: with the policy `priority` the lowest goes first.

        Parameters
        ----------
        seq_id : Hashable
        priority : int
            Within int32.

        Raises
        ------
        UnknownSequence
            No live sequence has this id.
        InvalidArgument
            `priority` is no integer, or out of range.
        """
        value = as_count("priority", priority, -INT32_MAX, INT32_MAX)
        with self.lock:
            self._rows.mark(self._ids.row(seq_id), PRIORITY, value)

    def select_eviction_target(self) -> Hashable | None:
        """Return the id of the sequence that `evict` would take, or None; nothing changes.

        By the policy `eviction`: `lru` (written to longest ago), `lfu` (written to least
        often), `longest`, `priority` (the lowest), `streaming` (the longest of those that have
        something to cut). Ties go to the one written to longest ago, then to the older one,
        then to the lower row. Pinned sequences are never taken.
        """
        with self.lock:
            row = self._rule().victim(self._rows)
            return None if row < 0 else self._ids.by_row[row]

    def _rule(self) -> EvictionRule:
        return EvictionRule.of(self.eviction, self.sink_tokens, self.window_tokens)

    @changes_ids
    def evict(self, seq_id: Hashable = None) -> Eviction | None:
        """Let one sequence give way; what it has not committed does not enter the prefix cache.

        Parameters
        ----------
        seq_id : Hashable, optional
            Which; by default the one that `select_eviction_target` names.

        Returns
        -------
        Eviction or None
            None where no sequence can be evicted.

        Raises
        ------
        UnknownSequence
            No live sequence has this id.
        InvalidArgument
            The sequence is pinned.
        """
        return self._rule().evict(self._rows, seq_id)

    @changes_ids
    def evict_to(self, utilization: float | None = None) -> list[Eviction]:
        """Let sequences give way until the share of held pages is at most `utilization`.

        Pages that can be reclaimed from the prefix cache are not held. Sequences go by the
        policy. One whose eviction could free no page, because somebody who
        does not give way (a pinned sequence, the caller) holds all of them too, stays. Ends
        when the target is reached or nothing more can be freed.

        Parameters
        ----------
        utilization : float, optional
            0.0 to 1.0; by default `eviction_threshold`.

        Returns
        -------
        list of Eviction
            In the order in which they went.

        Raises
        ------
        InvalidArgument
            `utilization` is out of range.
        """
        if utilization is None:
            utilization = self.eviction_threshold
        target = self._most_held(as_fraction("utilization", utilization))
        return self._rule().evict_down(self._rows, target)

    # What is computed, and the prefix cache.

    def commit(
        self, seq_id: Hashable, num_tokens: int | None = None, *, tokens: ArrayLike | None = None
    ) -> int:
        """Say how far a sequence is computed; its full pages enter the prefix cache.

        To be called when their keys and values have been written: after each chunk of a prompt,
        so that others share it while the rest is still to come. Pages enter as far as their tokens
        are known and computed. Where the cache has such a page already, because another sequence
        was faster, the sequence takes that one over and its own goes free: read the block table
        anew. The pages stay locked until the sequence ends. Without a prefix cache the call counts
        what is computed, and that is all.

        Parameters
        ----------
        seq_id : Hashable
        num_tokens : int, optional
            So many of the first tokens are computed. Fewer than it knows of change nothing. By
            default as many as `tokens`, and without these all that the sequence has.
        tokens : array_like of int32[n], optional
            Ids of the first `n` tokens of the sequence, where it was not told them before.
            Without them, those that are known.

        Returns
        -------
        int
            How many tokens of the sequence stand in the cache now: whole pages, and of one that
            `truncate` has cut what is left. Never more than the sequence has.

        Raises
        ------
        UnknownSequence
            No live sequence has this id.
        InvalidArgument
            `num_tokens` is no count, it or the number of `tokens` is more than the sequence has,
            or one of these is not what is known of the sequence. Nothing has changed.

        Examples
        --------
        >>> pool = jitalloc.PagePool(num_pages=64, page_size=4)
        >>> cache = jitalloc.PagedKVCache(pool, 8, 16, prefix_cache=jitalloc.PrefixCache(pool))
        >>> cache.allocate("a", tokens=range(10)), cache.allocate("b", tokens=range(10))
        (0, 0)
        >>> cache.commit("a", 6)  # a chunk of six tokens is done: one page is full
        4
        >>> cache.commit("a"), cache.commit("b")  # the second finds the pages of the first
        (8, 8)
        >>> cache.block_tables(cache.rows(["a", "b"]))
        array([[0, 1, 2],
               [0, 1, 5]], dtype=int32)
        """
        ids = NO_TOKENS if tokens is None else self._rows.as_tokens(tokens)
        if num_tokens is not None:
            count = as_count("num_tokens", num_tokens)
        else:
            count = -1 if tokens is None else ids.size
        with self.lock:
            cached = self._rows.commit(self._ids.row(seq_id), count, ids)
        if cached < 0:
            raise commit_error(cached, count, ids)
        return cached

    def commit_batch(
        self, rows: ArrayLike, num_tokens: ArrayLike | None = None
    ) -> NDArray[np.int64]:
        """Say how far sequences are computed, all or nothing: see `commit`.

        They enter the prefix cache in batch order.

        Parameters
        ----------
        rows : array_like of int32[B]
            Rows of live sequences, each once.
        num_tokens : int or array_like of int32[B] or int64[B], optional
            So many of the first tokens are computed, of all or of each. By default all that each
            has.

        Returns
        -------
        int64[B]
            How many tokens of each stand in the cache now.

        Raises
        ------
        InvalidArgument
            A row is out of range, free or repeated, or a number is negative or more than the
            sequence has.

        Examples
        --------
        >>> pool = jitalloc.PagePool(num_pages=64, page_size=4)
        >>> cache = jitalloc.PagedKVCache(pool, 8, 16, prefix_cache=jitalloc.PrefixCache(pool))
        >>> cache.allocate("a", tokens=range(10)), cache.allocate("b", tokens=range(50, 70))
        (0, 0)
        >>> cache.commit_batch(cache.rows(["a", "b"]), [10, 16])  # all of the one, half the other
        array([ 8, 16])
        """
        rows = as_integers("rows", rows, INT32)
        counts = as_computed(num_tokens, rows.size)
        cached = np.empty(rows.size, np.int64)
        with self.lock:
            slabs = self.tables._slab, self._rows.index._slab
            status = self.pool._run(commits_batch_cpu, *slabs, rows, counts, cached)
            if status < 0:
                raise lengths_error(status, self.tables, "num_tokens", rows, counts)
        return cached
