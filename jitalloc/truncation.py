"""The part of `PagedKVCache` that cuts sequences short at their ends."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jitalloc.arguments import as_count, as_integers, as_lengths
from jitalloc.errors import (
    NEGATIVE,
    POSITION_RANGE,
    InvalidArgument,
    JitallocError,
    argument_error,
    unpack_status,
)
from jitalloc.eviction import SequenceEviction
from jitalloc.kernels.eviction import eviction_window_batch_cpu
from jitalloc.kernels.sequences import sequences_truncate_batch_cpu
from jitalloc.state import INT32, LENGTH


class SequenceTruncation(SequenceEviction):
    """The part of `PagedKVCache` that cuts sequences short, one by its id or a batch of rows."""

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
            row = self.row(seq_id)
            status = self._truncate(row, tokens)
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
        name, values = self._one_of(num_tokens, drop)
        rows = as_integers("rows", rows, INT32)
        scalar = np.ndim(values) == 0
        given = [as_count(name, values)] if scalar else values
        counts = as_lengths(name, given, 1 if scalar else rows.size)
        with self.lock:
            slabs = self.tables._slab, self._prefix
            drops = int(name == "drop")
            status = self.pool._run(sequences_truncate_batch_cpu, *slabs, rows, counts, drops)
            if status < 0:
                raise self._truncation_error(status, name, rows, counts)
        return status

    def _one_of(self, num_tokens: ArrayLike | None, drop: ArrayLike | None) -> tuple[str, Any]:
        """Return which of the arguments of `truncate_batch` is given, and what it is."""
        if (num_tokens is None) == (drop is None):
            given = "both are" if drop is not None else "neither is"
            raise InvalidArgument("num_tokens", None, f"needed, or else drop: {given} given")
        return ("num_tokens", num_tokens) if drop is None else ("drop", drop)

    def _truncation_error(
        self, status: int, name: str, rows: NDArray[np.int32], counts: NDArray[np.int64]
    ) -> JitallocError:
        code, position = unpack_status(status)
        if code not in (NEGATIVE, POSITION_RANGE):
            return self.tables._row_error(status, "rows", rows)
        each = np.broadcast_to(counts, rows.size)
        if code == NEGATIVE:
            return argument_error(status, name, each)
        length = int(self.tables.arrays.columns[LENGTH, rows[position]])
        text = f"the sequence has {length} tokens"
        return InvalidArgument(name, int(each[position]), text, position)

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
            slabs = self.tables._slab, self._prefix
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
