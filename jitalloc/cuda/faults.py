"""The first call that failed on the GPU, as the exception that it would have raised at once."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from jitalloc.errors import (
    LAST_SLOT_FREE,
    LAST_SLOT_MISALIGNED,
    LAST_SLOT_RANGE,
    NEGATIVE,
    NO_RUN,
    OUT_OF_PAGES,
    OUT_SHORT,
    PAGE_IN_USE,
    PAGE_REASONS,
    POSITION_RANGE,
    TABLE_WIDTH,
    InvalidArgument,
    JitallocError,
    OutOfPages,
    PageInUse,
    argument_error,
    page_error,
    unpack_status,
)
from jitalloc.state import (
    CALL_KINDS,
    FAULT_CALL,
    FAULT_KIND,
    FAULT_STATUS,
    FAULT_VALUE,
    FAULT_WANTED,
)

EXPORTS = ("block_tables", "slot_mapping", "page_table_csr", "seq_lens")
LAST_SLOT_CODES = (LAST_SLOT_FREE, LAST_SLOT_MISALIGNED, LAST_SLOT_RANGE)


def fault_error(
    record: NDArray[Any], page_size: int, null_page: bool, num_pages: int
) -> JitallocError:
    """Return the exception that a pool's record tells of, with a note on which call it was."""
    kind = CALL_KINDS[int(record[FAULT_KIND])]
    error = _error(record, kind, page_size, null_page, num_pages)
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
    if code == OUT_OF_PAGES:
        return OutOfPages(wanted, detail)
    if code == NO_RUN:
        return OutOfPages(wanted, value, longest_run=detail)
    if code == OUT_SHORT:
        return InvalidArgument("out", detail, f"the call makes {wanted} elements")
    if code == PAGE_IN_USE:
        return PageInUse("num_pages", wanted, f"page {value} is held and would be cut off")
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


def _argument(kind: str, code: int) -> str:
    if kind in ("alloc_batch", "admit"):
        return "counts"
    if kind == "free_slots":
        return "slots"
    if code in LAST_SLOT_CODES:
        return "last_slots"
    return "prefix_lens" if code == NEGATIVE else "seq_lens"
