"""Slots for tokens: extending prompts and decoding, a whole batch in one call."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jitalloc._jit import BUSY_STATUS
from jitalloc.arguments import as_lengths, as_out
from jitalloc.errors import (
    LAST_SLOT_FREE,
    LAST_SLOT_MISALIGNED,
    LAST_SLOT_RANGE,
    NEGATIVE,
    OUT_OF_PAGES,
    JitallocError,
    OutOfPages,
    argument_error,
    unpack_status,
)
from jitalloc.kernels.tokens import tokens_decode_cpu, tokens_extend_cpu, tokens_total_cpu
from jitalloc.owners import PageOwners
from jitalloc.state import INT64

_empty, _ndarray = np.empty, np.ndarray

LAST_SLOT_CODES = (LAST_SLOT_FREE, LAST_SLOT_MISALIGNED, LAST_SLOT_RANGE)


class TokenSlots(PageOwners):
    """The part of `PagePool` that hands out slots for tokens."""

    __slots__ = ()

    def alloc_extend(
        self,
        prefix_lens: ArrayLike,
        seq_lens: ArrayLike,
        last_slots: ArrayLike,
        *,
        out: NDArray[np.int64] | None = None,
    ) -> NDArray[np.int64]:
        """Return slots for the tokens `prefix_lens[i] .. seq_lens[i] - 1` of each sequence.

        What fits goes into the partly filled last page of a sequence; the rest gets pages from
        the freelist, in batch order. All or nothing.

        Parameters
        ----------
        prefix_lens : array_like of int64[B]
            Tokens that each sequence has slots for already.
        seq_lens : array_like of int64[B]
            Tokens that it will have: `seq_lens >= prefix_lens`.
        last_slots : array_like of int64[B]
            Slot of token `prefix_lens[i] - 1`, or -1 where `prefix_lens[i] == 0`.
        out : int64[sum(seq_lens - prefix_lens)], optional
            Buffer for the result.

        Returns
        -------
        int64[sum(seq_lens - prefix_lens)]
            Slots of sequence 0, then of sequence 1, and so on.

        Raises
        ------
        OutOfPages
            The new pages are not there.
        InvalidArgument
            A length or a slot contradicts the others, or a last slot's page is not held.

        Notes
        -----
        The caller sees to it that no two sequences extend one shared, partly filled page
        (`PagedKVCache` copies it first).

        Examples
        --------
        >>> pool = jitalloc.PagePool(8, page_size=4)
        >>> pool.alloc_extend([0, 0], [3, 5], [-1, -1])
        array([0, 1, 2, 4, 5, 6, 7, 8])
        """
        prefix_lens = as_lengths("prefix_lens", prefix_lens)
        batch = prefix_lens.size
        seq_lens = as_lengths("seq_lens", seq_lens, batch)
        last_slots = as_lengths("last_slots", last_slots, batch)
        total = self._run(tokens_total_cpu, prefix_lens, seq_lens, last_slots)
        if total < 0:
            raise self._token_error(total, prefix_lens, seq_lens, last_slots)
        out = np.empty(total, np.int64) if out is None else as_out(out, INT64, total)
        status = self._run(tokens_extend_cpu, prefix_lens, seq_lens, last_slots, out)
        if status < 0:
            raise self._token_error(status, prefix_lens, seq_lens, last_slots)
        return out

    def alloc_decode(
        self,
        seq_lens: ArrayLike,
        last_slots: ArrayLike,
        *,
        out: NDArray[np.int64] | None = None,
    ) -> NDArray[np.int64]:
        """Return the slot of one new token for each sequence.

        A sequence whose last page is full takes the next page of the freelist, in batch order;
        every other one gets the slot behind its last. All or nothing.

        Parameters
        ----------
        seq_lens : array_like of int64[B]
            Tokens of each sequence, the new one counted. `int64` arrays are not converted.
        last_slots : array_like of int64[B]
            Slot of the token before, or -1 where `seq_lens[i] == 1`.
        out : int64[B], optional
            Buffer for the result; it may be `last_slots` itself, but must not overlap it otherwise.

        Returns
        -------
        int64[B]

        Raises
        ------
        OutOfPages
            The new pages are not there.
        InvalidArgument
            A length or a slot contradicts the others, or a last slot's page is not held.

        Examples
        --------
        >>> pool = jitalloc.PagePool(8, page_size=4)
        >>> slots = pool.alloc_extend([0, 0], [3, 4], [-1, -1])
        >>> pool.alloc_decode([4, 5], [2, 7])
        array([3, 8])
        """
        try:
            fast = (
                seq_lens.dtype is INT64  # type: ignore[union-attr]
                and last_slots.dtype is INT64  # type: ignore[union-attr]
                and seq_lens.ndim == 1 == last_slots.ndim  # type: ignore[union-attr]
                and len(seq_lens) == len(last_slots)  # type: ignore[arg-type]
            )
        except (AttributeError, TypeError):
            fast = False
        if not fast or type(seq_lens) is not _ndarray or type(last_slots) is not _ndarray:
            seq_lens = as_lengths("seq_lens", seq_lens)
            last_slots = as_lengths("last_slots", last_slots, seq_lens.size)
        batch = len(seq_lens)
        slots = _empty(batch, INT64) if out is None else as_out(out, INT64, batch)
        status: int = tokens_decode_cpu.run(self._slab, seq_lens, last_slots, slots)
        if status < 0:
            if status == BUSY_STATUS:
                status = self._run(tokens_decode_cpu, seq_lens, last_slots, slots)
            if status < 0:
                seq_lens = as_lengths("seq_lens", seq_lens)
                last_slots = as_lengths("last_slots", last_slots)
                raise self._token_error(status, seq_lens, seq_lens, last_slots)
        return slots

    def _token_error(
        self,
        status: int,
        prefix_lens: NDArray[np.int64],
        seq_lens: NDArray[np.int64],
        last_slots: NDArray[np.int64],
    ) -> JitallocError:
        code, detail = unpack_status(status)
        if code == OUT_OF_PAGES:
            size = self.page_size
            held = 0 if prefix_lens is seq_lens else -(-prefix_lens // size)
            pages = -(-seq_lens // size) - held
            if prefix_lens is seq_lens:
                pages = (seq_lens - 1) % size == 0
            return OutOfPages(int(pages.sum()), detail)
        if code in LAST_SLOT_CODES:
            return argument_error(status, "last_slots", last_slots, *self._slot_bounds())
        if code == NEGATIVE:
            return argument_error(status, "prefix_lens", prefix_lens)
        return argument_error(status, "seq_lens", seq_lens)
