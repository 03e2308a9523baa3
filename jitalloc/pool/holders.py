"""Pages that move: what has to be copied, and who has to be told."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

ranks = itertools.count()
"""Where the next `PageHolder` takes its rank from."""


class Moves(NamedTuple):
    """Pages whose contents have to be copied, in this order: `dst[i]` takes over from `src[i]`.

    Attributes
    ----------
    src, dst : int32[n]
    """

    src: NDArray[np.int32]
    dst: NDArray[np.int32]


class PageHolder(Protocol):
    """Whoever keeps page ids of a pool in arrays of its own, and wants to hear of moves.

    A holder's lock is taken before the pool's own.
    """

    @property
    def lock(self) -> AbstractContextManager[Any]:
        """Keeps the arrays as they are while it is held."""

    @property
    def rank(self) -> int:
        """Place in the order in which locks of several holders are taken, the highest first."""

    def _rename_pages(self, moves: Moves) -> None: ...
    def _resize_pages(self, num_pages: int) -> Callable[[], None]:
        """Prepare for another size of the pool; the result takes it over, and cannot fail."""

    def _give_up_past(self, num_pages: int) -> None:
        """Let pages from `num_pages` on go, if nobody holds any of them for more than a cache."""

    def _holds_locks(self) -> bool:
        """Return whether it locks paths of a prefix cache on the pool."""

    def _roots_in_use(self) -> NDArray[np.int64]:
        """Return the roots of the namespaces that it may yet insert pages into."""

    def _held_pages(self) -> NDArray[np.int32]: ...
    def __len__(self) -> int: ...
