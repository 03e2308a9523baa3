"""What a server has on its way: sequences, and the batch of those that decode."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from jitalloc.replay.prompts import Prompt
from jitalloc.replay.request import Request

NEVER: Final = 2**63 - 1


class Sequence:
    """A request on its way: waiting, reading its prompt, or decoding.

    Attributes
    ----------
    key : int
        What the cache knows it by.
    prompt, output : int
        Tokens to read before decoding goes on, and to decode then. A sequence that is sent back
        has to read again what it had decoded.
    tokens : Prompt
    left : int
        Of `prompt`, still to be read.
    reached : int
        Tokens ever computed or found: what lies below comes again.
    sent_back : bool
        It was preempted at least once.
    row : int
        Of the block tables, while it has pages.
    """

    __slots__ = ("key", "left", "output", "prompt", "reached", "row", "sent_back", "tokens")

    def __init__(self, key: int, request: Request, tokens: Prompt) -> None:
        self.key = key
        self.prompt = request.input_length
        self.output = request.output_length
        self.tokens = tokens
        self.left = 0
        self.reached = 0
        self.sent_back = False
        self.row = -1


class DecodeBatch:
    """The sequences that decode, oldest first, and arrays with one element for each of them.

    Attributes
    ----------
    rows : int32[...]
        Of the block tables.
    responses : int32[...]
        The token that each one appends.
    next_end : int
        The step after which the first of them is done.
    """

    def __init__(self) -> None:
        self.rows: NDArray[np.int32] = np.empty(0, np.int32)
        self.responses: NDArray[np.int32] = np.empty(0, np.int32)
        self.next_end = NEVER
        self._sequences: list[Sequence] = []
        self._ends: NDArray[np.int64] = np.empty(0, np.int64)  # step after which each is done
        self._lengths: NDArray[np.int64] = np.empty(0, np.int64)  # tokens that each has then

    def __len__(self) -> int:
        return len(self._sequences)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._sequences)

    def join(self, read: list[Sequence], step: int) -> None:
        """Take in sequences whose prompt was read in this step; they decode from the next on."""
        self._sequences += read
        rows = np.array([each.row for each in read], np.int32)
        ends = np.array([step + each.output for each in read], np.int64)
        lengths = np.array([each.prompt + each.output for each in read], np.int64)
        responses = np.array([each.tokens.own for each in read], np.int32)
        self.rows = np.concatenate((self.rows, rows))
        self.responses = np.concatenate((self.responses, responses))
        self._ends = np.concatenate((self._ends, ends))
        self._lengths = np.concatenate((self._lengths, lengths))
        self._find_next_end()

    def send_back(self, step: int) -> Sequence:
        """Take out the newest before it decodes in this step; all it has is to be read again."""
        sequence = self._sequences.pop()
        left = int(self._ends[-1]) - (step - 1)
        sequence.prompt += sequence.output - left
        sequence.output = left
        sequence.reached = sequence.prompt
        self._keep(slice(-1))
        return sequence

    def done(self, step: int) -> NDArray[np.bool_]:
        """Return which are done after this step."""
        done: NDArray[np.bool_] = self._ends == step
        return done

    def drop(self, done: NDArray[np.bool_]) -> None:
        """Take out those that are done."""
        kept = ~done
        self._sequences = [each for each, on in zip(self._sequences, kept, strict=True) if on]
        self._keep(kept)

    def pages_begun(self, step: int, page_size: int) -> int:
        """Return how many begin a page in this step."""
        lengths = self._lengths - (self._ends - (step - 1))
        return int((lengths % page_size == 0).sum())

    def _keep(self, kept: slice | NDArray[np.bool_]) -> None:
        self.rows, self.responses = self.rows[kept], self.responses[kept]
        self._ends, self._lengths = self._ends[kept], self._lengths[kept]
        self._find_next_end()

    def _find_next_end(self) -> None:
        self.next_end = int(self._ends.min(initial=NEVER))
