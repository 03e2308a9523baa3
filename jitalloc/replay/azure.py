"""Azure LLM inference traces: CSV with a time stamp and two lengths, nothing on sharing."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import BinaryIO, Final

from jitalloc.replay.lines import in_order, numbered_lines, trace_error
from jitalloc.replay.request import MAX_TOKENS, Request

COLUMNS: Final = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")

# `datetime` stops at microseconds; the recorded stamps have seven digits.
_STAMP = re.compile(r"(\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)?", re.A)


def _seconds(text: str, path: str, line: int) -> tuple[datetime, float]:
    """Return whole seconds and fraction of a time stamp; without an offset it is UTC."""
    found = _STAMP.fullmatch(text.strip())
    if found:
        whole, fraction, zone = found.groups()
        try:
            stamp = datetime.fromisoformat(whole + (zone or ""))
        except ValueError:
            pass  # a 13th month
        else:
            return stamp if zone else stamp.replace(tzinfo=UTC), float(f"0.{fraction or 0}")
    raise trace_error(
        path, line, f"TIMESTAMP: expected a time like 2023-11-16 18:15:46.6805900, got {text!r}"
    )


def _length(text: str, column: str, path: str, line: int) -> int:
    digits = text.strip()
    if digits.isascii() and digits.isdigit() and len(digits) <= 10 and int(digits) <= MAX_TOKENS:
        return int(digits)
    raise trace_error(
        path, line, f"{column}: expected a whole number of tokens, 0 .. {MAX_TOKENS}, got {text!r}"
    )


def _text_lines(file: BinaryIO, path: str) -> Iterator[str]:
    for number, line in numbered_lines(file, path):
        try:
            yield line.decode().strip(" \t")
        except UnicodeDecodeError as error:
            raise trace_error(path, number, f"not UTF-8 text: {error.reason}") from None


def read_azure(file: BinaryIO, path: str, scope: int) -> Iterator[Request]:
    """Yield the requests of an Azure trace, row by row."""
    rows = csv.reader(_text_lines(file, path), strict=True)
    first: tuple[datetime, float] | None = None
    before = 0.0
    try:
        header = [name.strip() for name in next(rows)]
        at, prompt, response = (header.index(name) for name in COLUMNS)
        for row in rows:
            if not row:
                continue  # a blank line
            line = rows.line_num
            if len(row) != len(header):
                raise trace_error(path, line, f"expected {len(header)} fields, got {len(row)}")
            stamp = _seconds(row[at], path, line)
            first = first or stamp
            arrival = (stamp[0] - first[0]).total_seconds() + (stamp[1] - first[1])
            in_order(path, line, "TIMESTAMP", arrival, before)
            before = arrival
            yield Request(
                arrival,
                _length(row[prompt], COLUMNS[1], path, line),
                _length(row[response], COLUMNS[2], path, line),
                scope=scope,
            )
    except csv.Error as error:
        raise trace_error(path, rows.line_num, f"malformed CSV: {error}") from None
