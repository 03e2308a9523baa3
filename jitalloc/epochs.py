"""The times between two renamings of pages, for those who remember pages across them."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from jitalloc.errors import NotLocked
from jitalloc.moves import Moves
from jitalloc.prefix_state import HELD_NOT, MATCH_END, MATCH_EPOCH, MATCH_HELD


class Epoch:
    """The time between two renamings of pages; matches keep the one that they were made in.

    Attributes
    ----------
    number : int
    moves : Moves or None
        The renaming that ended it; None: not yet, or nothing made in it is valid any more.
    after : Epoch or None
    """

    __slots__ = ("after", "moves", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self.moves: Moves | None = None
        self.after: Epoch | None = None

    def end(self, moves: Moves | None) -> Epoch:
        """End by `moves` (None: nothing stays valid) and return the next epoch."""
        following = Epoch(self.number + 1)
        if moves is not None:
            self.moves, self.after = moves, following
        return following


class Dated(Protocol):
    """A match: records that name pages by the ids of an epoch."""

    _epoch: Epoch

    @property
    def _records(self) -> NDArray[np.int32]: ...


def bring_up_to_date(match: Dated, now: Epoch) -> None:
    """Rename the last pages that a match remembers, so that it is of the epoch `now`.

    Raises
    ------
    NotLocked
        The cache's state was replaced since the match.
    """
    records = match._records
    epoch = match._epoch
    while epoch is not now:
        if epoch.moves is None or epoch.after is None:
            records[:, MATCH_HELD] = HELD_NOT
            raise NotLocked("the match is older than the state that the cache was restored to")
        of_it = records[:, MATCH_EPOCH] == epoch.number
        names = dict(zip(epoch.moves.src.tolist(), epoch.moves.dst.tolist(), strict=True))
        ends = records[of_it, MATCH_END].tolist()
        records[of_it, MATCH_END] = [names.get(end, end) for end in ends]
        records[of_it, MATCH_EPOCH] = epoch.after.number
        epoch = epoch.after
    match._epoch = now
