"""What the trace readers share: numbered lines, and errors that name file and line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO, Final

import msgspec

from jitalloc.errors import TraceError

MAX_LINE: Final = 64 * 2**20
"""Longest line in bytes: a file without line ends is refused instead of filling the memory."""

BOM: Final = b"\xef\xbb\xbf"
"""Mark that some editors put at the front of UTF-8 text."""


def trace_error(path: str, line: int, text: str) -> TraceError:
    """Return the error for one line of a trace."""
    return TraceError(f"{path}, line {line}: {text}")


def numbered_lines(file: BinaryIO, path: str) -> Iterator[tuple[int, bytes]]:
    """Yield line number (from 1) and content of each line, read one by one."""
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            raise trace_error(path, number, f"longer than {MAX_LINE:,} bytes")
        if number == 1:
            line = line.removeprefix(BOM)
        yield number, line


def in_order(path: str, line: int, field: str, time: float, before: float) -> None:
    """Refuse a time that lies before that of the record above."""
    if time < before:
        raise trace_error(path, line, f"{field} goes back in time: {time} follows {before}")


_FIELD = re.compile(r"(.*) - at `\$\.?(.*)`", re.DOTALL)
_BYTE = re.compile(r"\(byte (\d+)\)")


def decode_problem(error: Exception, place: str = "") -> str:
    """Return what a JSON decoder complained about, the field first; `place` is what holds it."""
    if isinstance(error, RecursionError):
        text, field = "JSON is nested too deep", ""
    elif "truncated" in str(error):
        text, field = "JSON ends too early (a truncated file?)", ""
    else:
        found = _FIELD.fullmatch(str(error))
        text, field = (found[1], found[2]) if found else (str(error), "")
    where = ".".join(filter(None, (place, field)))
    return f"{where}: {text}" if where else text


def byte_offset(error: msgspec.DecodeError) -> int | None:
    """Return the offset at which decoding failed, where the decoder tells it."""
    found = _BYTE.search(str(error))
    return int(found[1]) if found else None
