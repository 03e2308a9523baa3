"""AttentionBatch: all that one paged attention call reads of a batch, and why there is none."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jitalloc.arguments import as_count, as_lengths, as_out
from jitalloc.errors import (
    OUT_SHORT,
    POSITION_RANGE,
    InvalidArgument,
    argument_error,
    pack_status,
    unpack_status,
)
from jitalloc.sequences.loops.attention import attention_total_cpu
from jitalloc.sequences.state import LENGTH, TableArrays
from jitalloc.state import INT32, INT32_MAX, INT64


class AttentionBatch(NamedTuple):
    """What a paged attention call reads: where new tokens go, and what they look at.

    `B` sequences with `T` new tokens on `P` pages. A caller's buffers may hold more than `T`
    tokens and `P` pages; behind these stand position 0, slot NULL and page NULL.

    Attributes
    ----------
    qo_indptr : int32[B + 1]
        The new tokens of sequence `i` are `qo_indptr[i] .. qo_indptr[i + 1] - 1`. FlashInfer's
        `qo_indptr`; vLLM and FlashAttention call it `query_start_loc` and `cu_seqlens_q`.
    positions : int64[T] or int32[T]
        Where they stand in their sequences.
    slots : int64[T] or int32[T]
        Where their keys and values go: vLLM's `slot_mapping`, SGLang's `out_cache_loc`.
    kv_indptr : int32[B + 1]
        The pages of sequence `i` are `kv_indices[kv_indptr[i] : kv_indptr[i + 1]]`.
    kv_indices : int32[P]
    kv_last_page_len : int32[B]
        Tokens in the last page, `1 .. page_size`; `page_size` for an empty sequence.
    seq_lens : int32[B]
        Tokens of each sequence, the new ones included.
    """

    qo_indptr: NDArray[np.int32]
    positions: NDArray[np.integer[Any]]
    slots: NDArray[np.integer[Any]]
    kv_indptr: NDArray[np.int32]
    kv_indices: NDArray[np.int32]
    kv_last_page_len: NDArray[np.int32]
    seq_lens: NDArray[np.int32]


def as_attention(out: Any) -> AttentionBatch:
    """Return `out` if it is an `AttentionBatch`, whatever its arrays are."""
    if not isinstance(out, AttentionBatch):
        raise InvalidArgument("out", type(out).__name__, "must be an AttentionBatch of buffers")
    return out


def as_slot_dtype(dtype: Any, out: Any = None) -> np.dtype[Any]:
    """Return the dtype of slots that is asked for; `out`: the buffer for them, or None.

    Without either it is int64.
    """
    given = getattr(out, "dtype", None)
    known = isinstance(given, np.dtype)  # else it is no array, or one of somebody else
    if dtype is None:
        return INT32 if known and given == INT32 else INT64
    try:
        asked = np.dtype(dtype)
    except TypeError:
        raise InvalidArgument("dtype", dtype, "must be int32 or int64") from None
    if asked != INT32 and asked != INT64:
        raise InvalidArgument("dtype", str(asked), "must be int32 or int64")
    if known and asked != given:
        raise InvalidArgument("dtype", str(asked), f"the buffer of slots is of {given}")
    return INT32 if asked == INT32 else INT64


def check_slots_fit(dtype: np.dtype[Any], num_pages: int, page_size: int) -> None:
    """Raise where a slot of a pool of this size may not fit `dtype`."""
    last = num_pages * page_size - 1
    if dtype == INT32 and last > INT32_MAX:
        raise InvalidArgument("dtype", "int32", f"slots of this pool go up to {last}")


def as_slots(
    slots: NDArray[np.int64], dtype: np.dtype[Any], out: NDArray[Any] | None = None
) -> NDArray[Any]:
    """Return slots in the dtype that is asked for, in the buffer `out` if given.

    Two microseconds for 256 slots: kernels of their own would not pay.
    """
    check_slots_fit(dtype, int(slots.max(initial=0)) + 1, 1)
    if out is None:
        return slots.astype(dtype)
    out[:] = slots
    return out


def check_slots_asked(dtype: Any, out: Any, num_pages: int, page_size: int) -> None:
    """Raise where slots are asked for, by dtype or by a buffer of them, that may not fit it."""
    if dtype is not None or out is not None:
        check_slots_fit(as_slot_dtype(dtype, out), num_pages, page_size)


def as_new(num_new: Any, batch: int) -> NDArray[np.int64]:
    """Return how many tokens of each of a batch are new: one number for all, or one for each."""
    if type(num_new) is int and 0 <= num_new <= INT32_MAX:
        return np.array([num_new])
    if np.ndim(num_new) == 0:
        return np.array([as_count("num_new", num_new)], INT64)
    return as_lengths("num_new", num_new, batch)


def check_buffers(out: AttentionBatch, batch: int) -> None:
    """Raise where a buffer of the CPU does not fit a batch, however many tokens and pages."""
    qo_indptr, positions, slots, kv_indptr, kv_indices, last_page_len, seq_lens = out
    as_out(qo_indptr, INT32, batch + 1, "out.qo_indptr")
    as_out(kv_indptr, INT32, batch + 1, "out.kv_indptr")
    as_out(kv_indices, INT32, None, "out.kv_indices")
    as_out(last_page_len, INT32, batch, "out.kv_last_page_len")
    as_out(seq_lens, INT32, batch, "out.seq_lens")
    dtype = as_slot_dtype(None, slots)
    as_out(slots, dtype, None, "out.slots")
    as_out(positions, dtype, slots.size, "out.positions")


def new_buffers(batch: int, tokens: int, pages: int) -> AttentionBatch:
    """Return buffers of the CPU of just these sizes, their slots int64."""
    empty = np.empty
    return AttentionBatch(
        empty(batch + 1, INT32),
        empty(tokens, INT64),
        empty(tokens, INT64),
        empty(batch + 1, INT32),
        empty(pages, INT32),
        empty(batch, INT32),
        empty(batch, INT32),
    )


def wide_buffers(out: AttentionBatch) -> AttentionBatch:
    """Return buffers with int64 in place of int32 for positions and slots: kernels write these."""
    size = out.slots.size
    return out._replace(positions=np.empty(size, INT64), slots=np.empty(size, INT64))


def parts_of(batch: AttentionBatch) -> tuple[tuple[NDArray[np.int32], ...], Any, Any]:
    """Return the buffers as `attention_export_cpu` takes them."""
    return (batch[0], *batch[3:]), batch[1], batch[2]


def narrowed(
    made: AttentionBatch, dtype: np.dtype[Any], out: AttentionBatch | None
) -> AttentionBatch:
    """Return a batch, positions and slots in a narrower dtype, in the buffers `out` if given."""
    wide: Any = made.slots
    slots = as_slots(wide, dtype, None if out is None else out.slots)
    if out is None:
        return made._replace(positions=made.positions.astype(dtype), slots=slots)
    out.positions[:] = made.positions
    return out


def attention_error(
    status: int,
    slab: NDArray[np.int64],
    table: TableArrays,
    rows: NDArray[np.int32],
    counts: NDArray[np.int64],
    buffers: AttentionBatch | None = None,
) -> InvalidArgument:
    """Return what a status word of the kernels says about a batch and its buffers."""
    code, position = unpack_status(status)
    if code == OUT_SHORT and buffers is not None:
        needed = np.zeros(2, INT64)
        attention_total_cpu.run(slab, rows, counts, needed)
        name = "kv_indices" if position else "slots"
        text = f"the call makes {needed[position]} elements"
        return InvalidArgument(f"out.{name}", getattr(buffers, name).size, text)
    if position < rows.size:
        return argument_error(status, "rows", rows, 0, table.columns.shape[1] - 1)
    position -= rows.size
    each = np.broadcast_to(counts, rows.size)
    if code != POSITION_RANGE:
        return argument_error(pack_status(code, position), "num_new", each)
    text = f"the sequence has {table.columns[LENGTH, rows[position]]} tokens"
    return InvalidArgument("num_new", int(each[position]), text, position)
