"""Agent traces: one JSON document a session, subagents nested inside the request that began them.

Times of a subagent's requests count from the entry that holds them. Ids stand for whole blocks:
the partly filled block at the end of a prompt has none.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, BinaryIO, Final

import msgspec
import numpy as np

from jitalloc.errors import TraceError
from jitalloc.replay.lines import BOM, byte_offset, decode_problem, in_order, trace_error
from jitalloc.replay.mooncake import BlockId, Length
from jitalloc.replay.request import Request

MAX_DEPTH: Final = 32
"""Subagents inside subagents: deeper is refused."""

MAX_SESSION: Final = 2**28
"""Longest session in bytes."""

Seconds = Annotated[float, msgspec.Meta(ge=0)]


class _Session(msgspec.Struct):
    block_size: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
    requests: list[msgspec.Raw]


class _Kind(msgspec.Struct):
    t: Seconds
    type: str = ""


class _Turn(msgspec.Struct, rename={"tokens_in": "in", "tokens_out": "out"}):
    tokens_in: Length
    tokens_out: Length
    hash_ids: list[BlockId]


class _Subagent(msgspec.Struct):
    requests: list[msgspec.Raw]


_kind = msgspec.json.Decoder(_Kind).decode
_turn = msgspec.json.Decoder(_Turn).decode
_subagent = msgspec.json.Decoder(_Subagent).decode


class _Reader:
    """Walks one session. A position is a byte offset into the document: it gives the line."""

    def __init__(self, data: bytes, path: str, scope: int) -> None:
        self.data = data
        self.path = path
        self.scope = scope
        self.block_size = 0

    def error(self, position: int, text: str) -> TraceError:
        return trace_error(self.path, self.line(position), text)

    def line(self, position: int) -> int:
        return 1 + self.data.count(b"\n", 0, position)

    def read(self) -> list[Request]:
        start = len(BOM) if self.data.startswith(BOM) else 0
        try:
            session = msgspec.json.decode(memoryview(self.data)[start:], type=_Session)
        except (msgspec.DecodeError, RecursionError) as error:
            problem = decode_problem(error)
            offset = byte_offset(error) if isinstance(error, msgspec.DecodeError) else None
            if offset is None:
                offset = len(self.data) if "too early" in problem else 0
            raise self.error(start + offset, problem) from None
        self.block_size = session.block_size
        found = list(self.walk(session.requests, 0.0, start, "requests", 0))
        found.sort(key=lambda request: request.arrival)  # a subagent runs beside its parent
        return found

    def walk(
        self, entries: list[msgspec.Raw], base: float, position: int, place: str, depth: int
    ) -> Iterator[Request]:
        before = 0.0
        for number, raw in enumerate(entries):
            text = bytes(raw)
            position = self.data.index(text, position)
            here = f"{place}[{number}]"
            try:
                kind = _kind(text)
                nested = _subagent(text) if kind.type == "subagent" else None
                turn = None if nested else _turn(text)
            except (msgspec.DecodeError, RecursionError) as error:
                raise self.error(position, decode_problem(error, here)) from None
            if kind.t < before:
                in_order(self.path, self.line(position), f"{here}.t", kind.t, before)
            before = kind.t
            if nested:
                if depth == MAX_DEPTH:
                    raise self.error(
                        position, f"{here}: subagents nested more than {MAX_DEPTH} deep"
                    )
                inside = f"{here}.requests"
                yield from self.walk(nested.requests, base + kind.t, position, inside, depth + 1)
            elif turn:
                yield self.request(turn, base + kind.t, position, here)
            position += len(text)

    def request(self, turn: _Turn, arrival: float, position: int, here: str) -> Request:
        whole = turn.tokens_in // self.block_size
        if len(turn.hash_ids) != whole:
            raise self.error(
                position,
                f"{here}: {len(turn.hash_ids)} hash_ids, but {whole} whole blocks of "
                f"{self.block_size} tokens in {turn.tokens_in}",
            )
        ids = np.array(turn.hash_ids, np.int64)
        return Request(arrival, turn.tokens_in, turn.tokens_out, self.block_size, ids, self.scope)


def read_agents(file: BinaryIO, path: str, scope: int) -> Iterator[Request]:
    """Yield the requests of an agent session by time. The session is decoded as a whole."""
    data = file.read(MAX_SESSION + 1)
    if len(data) > MAX_SESSION:
        raise trace_error(path, 1, f"a session of more than {MAX_SESSION:,} bytes")
    yield from _Reader(data, path, scope).read()
