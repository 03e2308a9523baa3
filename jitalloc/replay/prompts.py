"""The tokens of a trace: equal block ids give equal tokens, whatever else is a request's own.

A recorded trace tells which blocks of its prompts are equal, never what stands in them. So each
block is filled with one number that its id alone has, and the responses of a request, like
prompt tokens without an id, with one number that no block and no other request has. The ids of a
later prompt may well stand for a response, but nothing says so: no response is ever found again
by another request.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from jitalloc.errors import TraceError
from jitalloc.replay.request import Request
from jitalloc.state import INT32_MAX

MOST: Final = 2**30
"""Distinct blocks of a scope, and requests: each has half of the tokens that there are."""


class Prompts:
    """Numbers the block ids of each scope in the order of their appearance.

    Ids may be as wide as `int64`; tokens are `int32`. A dictionary a scope makes the numbers
    exact: no two ids share one.
    """

    def __init__(self) -> None:
        self._scopes: dict[int, dict[int, int]] = {}

    def of(self, request: Request, number: int) -> Prompt:
        """Return the prompt of the request with this number, counted from 0."""
        if number >= MOST:
            raise TraceError(f"more than {MOST} requests: their responses are told apart by number")
        ids = () if request.block_ids is None else request.block_ids.tolist()
        numbers = self._scopes.setdefault(request.scope, {})
        blocks = np.array([numbers.setdefault(each, len(numbers)) for each in ids], np.int32)
        if len(numbers) > MOST:
            raise TraceError(f"more than {MOST} distinct block ids")
        return Prompt(blocks, request, INT32_MAX - number)


class Prompt:
    """The tokens of one request.

    Parameters
    ----------
    blocks : int32[...]
        The token that fills each block.
    request : Request
    own : int
        The token of everything that no block id stands for.

    Attributes
    ----------
    own : int
    shared : bool
        The request has block ids: something may be known of its prompt.
    scope : int
    whole_length : int
        Tokens of the prompt when its last block is taken as a whole one.
    """

    __slots__ = ("_block_size", "_blocks", "_known", "own", "scope", "shared", "whole_length")

    def __init__(self, blocks: NDArray[np.int32], request: Request, own: int) -> None:
        self._blocks = blocks
        self._block_size = request.block_size
        self._known = min(len(blocks) * request.block_size, request.input_length)
        self.own = own
        self.scope = request.scope
        self.shared = request.block_ids is not None
        self.whole_length = max(len(blocks) * request.block_size, request.input_length)

    def tokens(self, length: int) -> NDArray[np.int32]:
        """Return the first `length` tokens: the blocks, then the request's own."""
        return self._fill(min(self._known, length), length)

    def whole_tokens(self) -> NDArray[np.int32]:
        """Return `whole_length` tokens: a partly filled last block is filled to its end."""
        return self._fill(len(self._blocks) * self._block_size, self.whole_length)

    def _fill(self, known: int, length: int) -> NDArray[np.int32]:
        filled = np.repeat(self._blocks, min(self._block_size, known))[:known]
        if known == length:
            return filled
        tokens = np.full(length, self.own, np.int32)
        tokens[:known] = filled
        return tokens
