"""Mooncake traces: JSON lines, one request each, with the ids of its 512-token blocks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, BinaryIO, Final

import msgspec
import numpy as np

from jitalloc.replay.lines import decode_problem, in_order, numbered_lines, trace_error
from jitalloc.replay.request import MAX_TOKENS, Request

BLOCK_SIZE: Final = 512

Length = Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKENS)]
BlockId = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class _Record(msgspec.Struct):
    timestamp: Annotated[float, msgspec.Meta(ge=0)]  # milliseconds
    input_length: Length
    output_length: Length
    hash_ids: list[BlockId]


def read_mooncake(file: BinaryIO, path: str, scope: int) -> Iterator[Request]:
    """Yield the requests of a Mooncake trace, line by line."""
    decode = msgspec.json.Decoder(_Record).decode
    before = 0.0
    for number, line in numbered_lines(file, path):
        if not line.strip():
            continue
        try:
            record = decode(line)
        except (msgspec.DecodeError, RecursionError) as error:
            raise trace_error(path, number, decode_problem(error)) from None
        in_order(path, number, "timestamp", record.timestamp, before)
        blocks = -(-record.input_length // BLOCK_SIZE)
        if len(record.hash_ids) != blocks:
            raise trace_error(
                path,
                number,
                f"{len(record.hash_ids)} hash_ids, but {blocks} blocks of {BLOCK_SIZE} tokens "
                f"in input_length {record.input_length}",
            )
        before = record.timestamp
        yield Request(
            record.timestamp / 1e3,
            record.input_length,
            record.output_length,
            BLOCK_SIZE,
            np.array(record.hash_ids, np.int64),
            scope,
        )
