"""Which format a trace has, told by its content, and several traces as one stream."""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from io import BufferedReader, FileIO
from os import PathLike, fspath
from typing import BinaryIO, Final

from jitalloc.errors import TraceError
from jitalloc.replay.agents import read_agents
from jitalloc.replay.azure import COLUMNS, read_azure
from jitalloc.replay.lines import BOM, trace_error
from jitalloc.replay.mooncake import read_mooncake
from jitalloc.replay.request import Request

Reader = Callable[[BinaryIO, str, int], Iterator[Request]]

HEAD_BYTES: Final = 1 << 16
MOONCAKE_FIELDS: Final = frozenset({"timestamp", "input_length", "output_length", "hash_ids"})

_TOKEN = re.compile(rb'"((?:[^"\\]|\\.)*)"\s*(:?)|[{}\[\]]', re.DOTALL)


def _top_level_fields(head: bytes) -> set[str]:
    """Return the field names of the JSON object that `head` begins with, as far as it goes."""
    fields: set[str] = set()
    depth = 0
    for token in _TOKEN.finditer(head):
        name, colon = token.groups()
        if name is None:
            depth += 1 if token[0] in b"{[" else -1
            if depth == 0:
                break
        elif depth == 1 and colon:
            fields.add(name.decode(errors="replace"))
    return fields


def _reader_of(head: bytes, path: str) -> Reader:
    if not head:
        raise TraceError(f"{path}: the file is empty")
    if head.startswith(b"\x1f\x8b"):
        raise trace_error(path, 1, "gzip data: unpack the trace first")
    if b"\0" in head:
        raise trace_error(path, 1, "binary data: expected a trace in text form")
    text = head.removeprefix(BOM).lstrip()
    if text.startswith(b"{"):
        fields = _top_level_fields(text)
        if "requests" in fields:
            return read_agents
        if fields & MOONCAKE_FIELDS:
            return read_mooncake
    header = text.split(b"\n", 1)[0].decode(errors="replace")
    if set(COLUMNS) <= {name.strip().strip('"') for name in header.split(",")}:
        return read_azure
    raise trace_error(
        path,
        1,
        "expected a Mooncake record (a JSON object with timestamp, input_length, ...), an agent "
        f"session (a JSON object with requests) or the CSV header {','.join(COLUMNS)}",
    )


def read_trace(path: str | PathLike[str], scope: int = 0) -> Iterator[Request]:
    """Yield the requests of one trace, its format told by its content.

    Parameters
    ----------
    path : str or path-like
        A Mooncake JSON lines file, an Azure CSV file or an agent session in JSON.
    scope : int
        Scope of the block ids: ids of different scopes never stand for the same block.

    Yields
    ------
    Request
        In the order of their arrival, the first one at second 0.

    Raises
    ------
    TraceError
        For anything that is no such trace, with file, line and what was expected.
    """
    name = fspath(path)
    start: float | None = None
    try:
        with BufferedReader(FileIO(name), HEAD_BYTES) as file:
            for request in _reader_of(file.peek(HEAD_BYTES), name)(file, name, scope):
                if start is None:
                    start = request.arrival
                yield replace(request, arrival=request.arrival - start) if start else request
    except IsADirectoryError:
        raise TraceError(f"{name}: a directory; name the trace files in it") from None
    except OSError as error:
        raise TraceError(f"{name}: {error.strerror or error}") from None
    if start is None:
        raise TraceError(f"{name}: holds no request")


def read_traces(paths: Sequence[str | PathLike[str]]) -> Iterator[Request]:
    """Yield the requests of several traces, merged by time as if all had begun at once.

    Parameters
    ----------
    paths : sequence of str or path-like
        The files. Each gets a scope of its own for its block ids.

    Yields
    ------
    Request
        By arrival; requests that arrive together in the order of `paths`.
    """
    streams = [read_trace(path, scope) for scope, path in enumerate(paths)]
    return heapq.merge(*streams, key=lambda request: request.arrival)
