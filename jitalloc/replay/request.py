"""One recorded request: what every trace reader and the generator yield."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from jitalloc.errors import InvalidArgument

MAX_TOKENS: Final = 2**31 - 1
"""Longest prompt or response that a trace may name: lengths are `int32` in the block tables."""


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One request of a trace.

    Attributes
    ----------
    arrival : float
        Seconds since the start of its trace.
    input_length : int
        Tokens of the prompt.
    output_length : int
        Tokens of the response.
    block_size : int
        Tokens a block id stands for; 0 where the trace has no ids.
    block_ids : int64[...] or None
        Equal ids stand for equal blocks of the prompt with an equal prefix.
    scope : int
        Ids of one scope are compared with each other only.

    Raises
    ------
    InvalidArgument
        The arrival is no finite time from 0 on, or a length is out of range.
    """

    arrival: float
    input_length: int
    output_length: int
    block_size: int = 0
    block_ids: NDArray[np.int64] | None = None
    scope: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.arrival < math.inf:
            raise InvalidArgument("arrival", self.arrival, "a finite time that is not negative")
        if not 0 <= self.input_length <= MAX_TOKENS:
            raise InvalidArgument("input_length", self.input_length, f"0 .. {MAX_TOKENS} tokens")
        if not 0 <= self.output_length <= MAX_TOKENS:
            raise InvalidArgument("output_length", self.output_length, f"0 .. {MAX_TOKENS} tokens")
