"""The first call that failed on the GPU, as the exception that it would have raised at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from jitalloc.errors import (
    NEGATIVE,
    NEGATIVE_TOKEN,
    NO_RUN,
    OUT_OF_PAGES,
    OUT_SHORT,
    PAGE_IN_USE,
    PAGE_REASONS,
    POSITION_RANGE,
    REFCOUNT_OVERFLOW,
    TABLE_WIDTH,
    TOKENS_MISFIT,
    TOO_MANY,
    InvalidArgument,
    InvalidPage,
    JitallocError,
    OutOfPages,
    PageInUse,
    SequenceTooLong,
    argument_error,
    pack_status,
    page_error,
    unpack_status,
)
from jitalloc.gpu.record import (
    CALL_KINDS,
    FAULT_CALL,
    FAULT_KIND,
    FAULT_STATUS,
    FAULT_VALUE,
    FAULT_WANTED,
)
from jitalloc.pool.pool import LAST_SLOT_CODES, group_error
from jitalloc.state import INT32_MAX

EXPORTS = ("block_tables", "slot_mapping", "page_table_csr", "seq_lens")
# The arguments of calls on sequences: what a code is about, and 0 and 1 for the two sorts of rows.
SEQUENCE_CALLS = {
    "append_batch": {0: "rows", NEGATIVE: "n", TOO_MANY: "n", NEGATIVE_TOKEN: "tokens"},
    "fork_batch": {0: "dst_rows", 1: "src_rows"},
    "reorder": {0: "rows", 1: "parents"},
    "free_batch": {0: "rows"},
    "truncate_batch": {0: "rows"},
    "apply_streaming_llm_batch": {0: "rows"},
    "allocate_batch": {0: "rows"},
    "room_for": {0: "rows", NEGATIVE: "n", TOO_MANY: "n"},
    "commit_batch": {0: "rows"},
}


def fault_error(
    record: NDArray[Any],
    page_size: int,
    null_page: bool,
    num_pages: int,
    calls: Sequence[int] | None = None,
) -> JitallocError:
    """Return the exception that a pool's record tells of, with a note on which call it was.

    `calls`: the sizes of the frees of the group numbered in the record, if it was a group's.
    """
    kind = CALL_KINDS[int(record[FAULT_KIND])]
    error = _error(record, kind, page_size, null_page, num_pages)
    if kind == "free" and calls is not None and isinstance(error, InvalidPage):
        error = group_error(error, calls)
    error.add_note(f"raised late: it is call {int(record[FAULT_CALL])} of the pool ({kind})")
    return error


def _error(
    record: NDArray[Any], kind: str, page_size: int, null_page: bool, num_pages: int
) -> JitallocError:
    status, value = int(record[FAULT_STATUS]), int(record[FAULT_VALUE])
    wanted = int(record[FAULT_WANTED])
    code, detail = unpack_status(status)
    if kind in EXPORTS:
        return _export_error(status, value, wanted)
    if kind == "attention_batch":
        return _attention_error(code, detail, value, wanted)
    if code == OUT_OF_PAGES:
        return OutOfPages(wanted, detail)
    if code == NO_RUN:
        return OutOfPages(wanted, value, longest_run=detail)
    if code == OUT_SHORT:
        return InvalidArgument("out", detail, f"the call makes {wanted} elements")
    if code == PAGE_IN_USE:
        return PageInUse("num_pages", wanted, f"page {value} is held and would be cut off")
    if kind in SEQUENCE_CALLS:
        return _sequence_error(kind, code, detail, value, wanted)
    values = {detail: value}
    if code in PAGE_REASONS:
        return page_error(status, values, int(null_page), num_pages - 1)
    slots = (page_size if null_page else 0, num_pages * page_size - 1)
    return argument_error(status, _argument(kind, code), values, *slots)


def _export_error(status: int, value: int, wanted: int) -> InvalidArgument:
    code, detail = unpack_status(status)
    if code == OUT_SHORT:
        return InvalidArgument("out.indices", detail, f"the call makes {wanted} elements")
    if code == TABLE_WIDTH:
        text = f"the sequence of rows[{detail}] has more pages"
        return InvalidArgument("width", wanted, text)
    argument = "positions" if code == POSITION_RANGE else "rows"
    return argument_error(status, argument, {detail: value}, 0, wanted - 1)  # wanted: the rows


def _attention_error(code: int, detail: int, value: int, wanted: int) -> InvalidArgument:
    """Return the exception for `attention_batch`.

    `wanted` holds how many rows the table has, or how many tokens the sequence, and above it the
    size of the batch; where a buffer is short, which `value` tells, how much the call makes.
    """
    if code == OUT_SHORT:
        name = "out.kv_indices" if value else "out.slots"
        return InvalidArgument(name, detail, f"the call makes {wanted} elements")
    batch, size = wanted >> 32, wanted & INT32_MAX
    if detail < batch:
        return argument_error(pack_status(code, detail), "rows", {detail: value}, 0, size - 1)
    if code == POSITION_RANGE:
        text = f"the sequence has {size} tokens"
        return InvalidArgument("num_new", value, text, detail - batch)
    return argument_error(pack_status(code, detail - batch), "num_new", {detail - batch: value})


def _sequence_error(kind: str, code: int, detail: int, value: int, wanted: int) -> InvalidArgument:
    """Return the exception for a call of `SEQUENCE_CALLS`.

    `wanted` holds how many rows the table has, and above, for calls of pairs, the size of the
    batch; for a row that would be too long its width, and above the pages needed; for one that is
    cut short, or computed so far, its tokens, and above 1 where so many were to go.
    """
    if code == TOKENS_MISFIT:
        text = f"must have {wanted} elements, one a new token"
        return InvalidArgument("tokens", detail, text, fact="size")
    if code == TABLE_WIDTH:
        pages, width = wanted >> 31, wanted & INT32_MAX
        text = f"the sequence would need {pages} pages; a row holds {width}, a length fits int32"
        return SequenceTooLong("n", value, text, detail)
    if kind in ("truncate_batch", "commit_batch") and code in (NEGATIVE, POSITION_RANGE):
        name = "drop" if wanted >> 32 else "num_tokens"
        if code == NEGATIVE:
            return argument_error(pack_status(code, detail), name, {detail: value})
        text = f"the sequence has {wanted & INT32_MAX} tokens"
        return InvalidArgument(name, value, text, detail)
    names = SEQUENCE_CALLS[kind]
    batch, height = wanted >> 32, wanted & INT32_MAX
    name = names.get(code, names[0])
    if 0 < batch <= detail:
        name, detail = names[1], detail - batch
    if code == REFCOUNT_OVERFLOW:
        text = "a page would have more owners than int32 holds"
        return InvalidArgument(name, value, text, detail)
    return argument_error(pack_status(code, detail), name, {detail: value}, 0, height - 1)


def _argument(kind: str, code: int) -> str:
    if kind in ("alloc_batch", "admit"):
        return "counts"
    if kind == "free_slots":
        return "slots"
    if code in LAST_SLOT_CODES:
        return "last_slots"
    return "prefix_lens" if code == NEGATIVE else "seq_lens"
