"""PagedKVCache: sequences on a pool."""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jitalloc.arguments import as_count, as_integers, as_lengths, as_tokens
from jitalloc.errors import (
    NEGATIVE,
    NEGATIVE_TOKEN,
    OUT_OF_PAGES,
    REFCOUNT_OVERFLOW,
    TABLE_WIDTH,
    TOO_MANY,
    InvalidArgument,
    JitallocError,
    OutOfPages,
    argument_error,
    pack_status,
    unpack_status,
)
from jitalloc.ids import changes_ids
from jitalloc.kernels.pool import pool_total_cpu
from jitalloc.kernels.sequences import (
    INHERITED,
    sequences_append_cpu,
    sequences_fork_batch_cpu,
    sequences_reorder_cpu,
)
from jitalloc.moves import Moves
from jitalloc.state import INT32, INT32_MAX, LENGTH, NO_TOKENS
from jitalloc.truncation import SequenceTruncation


class Appended(NamedTuple):
    """Where new tokens go.

    Attributes
    ----------
    slots : int64[sum(n)]
        Slots of the new tokens, sequence after sequence.
    copies : Moves
        Pages to copy before anything is written: shared pages that the call replaced by pages
        of the sequence's own (copy-on-write). `dst[i]` becomes a copy of `src[i]`.
    """

    slots: NDArray[np.int64]
    copies: Moves


class PagedKVCache(SequenceTruncation):
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

    def append(
        self, seq_id: Hashable, n: int | None = None, *, tokens: ArrayLike | None = None
    ) -> Appended:
        """Grow a sequence by `n` tokens; see `append_batch`.

        Without `n` there are as many as `tokens`, or 1.
        """
        if tokens is not None:
            tokens = as_tokens(tokens)
        if n is None:
            n = 1 if tokens is None else tokens.size
        return self.append_batch(np.array([self.row(seq_id)], INT32), n, tokens=tokens)

    def append_batch(
        self, rows: ArrayLike, n: ArrayLike = 1, *, tokens: ArrayLike | None = None
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
            A row is out of range, free or repeated, a number is negative, or `tokens` are not
            `sum(n)` ids.
        """
        rows = as_integers("rows", rows, INT32)
        batch = rows.size
        if type(n) is int and 0 <= n <= INT32_MAX:
            counts, total = np.array([n]), n * batch
        else:
            scalar = np.ndim(n) == 0
            counts = as_lengths("n", [as_count("n", n)] if scalar else n, 1 if scalar else batch)
            total = pool_total_cpu.run(counts) * (batch if scalar else 1)
        if total < 0:
            raise argument_error(total, "n", counts)
        if total > INT32_MAX:
            raise argument_error(pack_status(TOO_MANY, 0), "n", counts)
        ids = NO_TOKENS if tokens is None else as_tokens(tokens)
        if tokens is not None and ids.size != total:
            raise InvalidArgument(
                "tokens", ids.size, f"must have {total} elements, one a new token"
            )
        with self.lock:
            # More slots than that cannot be had: the kernel then says why, and the buffer of a
            # mistaken call stays small.
            most = (batch + self.pool.num_pages) * self.pool.page_size
            slots, copied = np.empty(min(total, most), np.int64), np.empty((2, batch), np.int32)
            tables, prefix = self.tables._slab, self._prefix
            copies = self.pool._run(
                sequences_append_cpu, tables, prefix, rows, counts, ids, slots, copied
            )
            if copies < 0:
                raise self._append_error(copies, rows, np.broadcast_to(counts, batch), ids)
            return Appended(slots, Moves(copied[0, :copies], copied[1, :copies]))

    def _append_error(
        self,
        status: int,
        rows: NDArray[np.int32],
        counts: NDArray[np.int64],
        ids: NDArray[np.int32],
    ) -> JitallocError:
        code, position = unpack_status(status)
        size = self.pool.page_size
        if code == NEGATIVE:
            return argument_error(status, "n", counts)
        if code == NEGATIVE_TOKEN:
            return argument_error(status, "tokens", ids)
        if code not in (OUT_OF_PAGES, TABLE_WIDTH):
            return self.tables._row_error(status, "rows", rows)
        lengths = self.tables.arrays.columns[LENGTH, rows]
        before, after = -(-lengths // size), -(-(lengths + counts) // size)
        if code == TABLE_WIDTH:
            tokens, pages = int(counts[position]), int(after[position])
            return self._too_long("n", tokens, pages, position)
        writes = (lengths % size != 0) & (counts > 0)
        last = self.tables.arrays.pages[rows[writes], before[writes] - 1]
        shared, writers = np.unique(last, return_counts=True)
        copies = np.minimum(writers, self.pool.refcount(shared) - 1).sum()
        return OutOfPages(int((after - before).sum() + copies), position)

    @changes_ids
    def fork(self, src_id: Hashable, dst_id: Hashable) -> None:
        """Make a sequence that shares all pages of another one.

        The partly filled last page is shared too; whoever appends first gets a copy of it.
        The new sequence takes over the priority, and is not pinned.

        Parameters
        ----------
        src_id, dst_id : Hashable
            The sequence to fork, and the id of the new one.

        Raises
        ------
        UnknownSequence, DuplicateSequence
            `src_id` does not live, or `dst_id` does.
        OutOfRows
            All rows are taken.
        """
        src = self.row(src_id)
        self._ids.expect(dst_id)
        row = self._fork_row(src)
        if row < 0:
            raise self._shortage(row, 0)
        self._ids.enter(row)

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
        self._same_length("dst_rows", dst_rows, src_rows)
        with self.lock:
            tables, prefix = self.tables._slab, self._prefix
            status = self.pool._run(sequences_fork_batch_cpu, tables, prefix, src_rows, dst_rows)
            self._raise_pairs(status, "dst_rows", dst_rows, "src_rows", src_rows)

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
        self._same_length("parents", parents, rows)
        with self.lock:
            valid = parents[(parents >= 0) & (parents < self.tables.max_sequences)]
            tokens = int(self.tables.arrays.columns[LENGTH, valid].max(initial=0))
            pages = np.empty((rows.size, -(-tokens // self.pool.page_size)), np.int32)
            facts = np.empty((rows.size, len(INHERITED)), np.int64)
            tables, prefix = self.tables._slab, self._prefix
            status = self.pool._run(
                sequences_reorder_cpu, tables, prefix, rows, parents, facts, pages
            )
            self._raise_pairs(status, "rows", rows, "parents", parents)

    def _same_length(self, name: str, values: NDArray[np.int32], other: NDArray[np.int32]) -> None:
        if values.size != other.size:
            raise InvalidArgument(name, values.size, f"must have {other.size} elements")

    def _raise_pairs(
        self,
        status: int,
        first: str,
        first_rows: NDArray[np.int32],
        second: str,
        second_rows: NDArray[np.int32],
    ) -> None:
        """Raise what a status word says whose positions run through both arrays."""
        if status >= 0:
            return
        code, position = unpack_status(status)
        name, values = first, first_rows
        if position >= first_rows.size:
            position -= first_rows.size
            name, values = second, second_rows
        if code == REFCOUNT_OVERFLOW:
            text = "a page would have more owners than int32 holds"
            raise InvalidArgument(name, int(values[position]), text, position)
        raise self.tables._row_error(pack_status(code, position), name, values)
