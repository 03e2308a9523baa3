"""What a prefix cache answers with: matches, which hold locks, and results of insertions."""

from __future__ import annotations

from types import TracebackType
from typing import NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from jitalloc.errors import NotLocked
from jitalloc.pool.holders import Moves
from jitalloc.prefix.state import (
    HELD_NOT,
    HELD_PIN,
    MATCH_END,
    MATCH_EPOCH,
    MATCH_FIELDS,
    MATCH_HELD,
    MATCH_PAGES,
    MATCH_PARTIAL_PAGE,
    MATCH_PARTIAL_TOKENS,
)
from jitalloc.snapshot import uncopied
from jitalloc.state import INT32


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

    def is_void(self, now: Epoch) -> bool:
        """Return whether nothing made in it is valid any more, `now` being the last epoch."""
        epoch: Epoch | None = self
        while epoch is not None and epoch is not now:
            epoch = epoch.after
        return epoch is None

    def end(self, moves: Moves | None) -> Epoch:
        """End by `moves` (None: nothing stays valid) and return the next epoch."""
        following = Epoch(self.number + 1)
        if moves is not None:
            self.moves, self.after = moves, following
        return following


class Holder(Protocol):
    """The cache of a match, as far as the match needs it."""

    _epoch: Epoch

    def release(self, match: PrefixMatch | PrefixBatch) -> None:
        """Give locks back."""

    def unpin(self, match: PrefixMatch) -> None:
        """Give locks and pins back."""


class PrefixMatch:
    """The longest cached prefix of some tokens, locked until it is released.

    To be used in a `with` statement, or handed to `PrefixCache.release` (`unpin` where `pinned`).
    One that is merely dropped keeps its pages locked.

    Attributes
    ----------
    num_tokens, num_pages : int
        Length of the prefix; whole pages.
    """

    __slots__ = ("__weakref__", "_cache", "_epoch", "_record", "num_pages", "num_tokens")
    __reduce_ex__ = uncopied("it locks pages of its cache; copies of the cache know of no match")
    _size = 1

    def __init__(self, cache: Holder, epoch: Epoch, room: int) -> None:
        # The kernel writes the record, so whether the lock is held is known however the call ends.
        self._record = np.empty(MATCH_FIELDS + room, INT32)
        self._record[MATCH_HELD] = HELD_NOT
        self._cache = cache
        self._epoch = epoch
        self.num_pages = 0
        self.num_tokens = 0

    @property
    def pages(self) -> NDArray[np.int32]:
        """Pages of the prefix, `int32[num_pages]`, by the ids of the time of the match."""
        return self._record[MATCH_FIELDS : MATCH_FIELDS + self.num_pages]

    @property
    def partial_page(self) -> int:
        """A cached page that begins like the tokens behind the prefix, or -1; it is not locked."""
        return int(self._record[MATCH_PARTIAL_PAGE])

    @property
    def partial_tokens(self) -> int:
        """How many of those tokens agree with the beginning of `partial_page`."""
        return int(self._record[MATCH_PARTIAL_TOKENS])

    @property
    def locked(self) -> bool:
        """Whether the match still holds its locks; a `restore` of the cache takes them away."""
        held = bool(self._record[MATCH_HELD] != HELD_NOT)
        return held and not self._epoch.is_void(self._cache._epoch)

    @property
    def pinned(self) -> bool:
        """Whether the match holds pins too, so that `unpin` gives it back."""
        return bool(self._record[MATCH_HELD] == HELD_PIN) and self.locked

    @property
    def _records(self) -> NDArray[np.int32]:
        return self._record[None, :MATCH_FIELDS]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.pinned:
            self._cache.unpin(self)
        elif self.locked:
            self._cache.release(self)

    def __repr__(self) -> str:
        state = "pinned" if self.pinned else "locked" if self.locked else "released"
        return f"{type(self).__name__}(num_tokens={self.num_tokens}, pages={self.pages}): {state}"


class PrefixBatch:
    """The longest cached prefixes of several prompts, locked until `PrefixCache.release`.

    Attributes
    ----------
    num_tokens : int64[B]
        Length of each prefix.
    indptr : int32[B + 1]
        Prompt `i` has `pages[indptr[i] : indptr[i + 1]]`.
    pages : int32[indptr[B]]
    partial_pages, partial_tokens : int32[B]
        As `partial_page` and `partial_tokens` of a `PrefixMatch`.
    """

    __slots__ = (
        "_cache",
        "_epoch",
        "_record",
        "_size",
        "indptr",
        "num_tokens",
        "pages",
        "partial_pages",
        "partial_tokens",
    )

    __reduce_ex__ = uncopied("it locks pages of its cache; copies of the cache know of no match")

    def __init__(self, cache: Holder, epoch: Epoch, size: int) -> None:
        self._record = np.zeros(size * MATCH_FIELDS, INT32)
        self._size = size
        self._cache = cache
        self._epoch = epoch

    def _fill(self, pages: NDArray[np.int32], page_size: int) -> None:
        counts = self._records[:, MATCH_PAGES]
        self.num_tokens = counts.astype(np.int64) * page_size
        self.indptr = np.zeros(counts.size + 1, INT32)
        np.cumsum(counts, out=self.indptr[1:])
        self.pages = pages
        self.partial_pages = self._records[:, MATCH_PARTIAL_PAGE].copy()
        self.partial_tokens = self._records[:, MATCH_PARTIAL_TOKENS].copy()

    @property
    def _records(self) -> NDArray[np.int32]:
        return self._record.reshape(-1, MATCH_FIELDS)

    @property
    def locked(self) -> bool:
        """Whether the batch still holds its locks; a `restore` of the cache takes them away."""
        held = bool((self._records[:, MATCH_HELD] != HELD_NOT).any())
        return held and not self._epoch.is_void(self._cache._epoch)

    def __len__(self) -> int:
        return self._size

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.locked:
            self._cache.release(self)


def bring_up_to_date(match: PrefixMatch | PrefixBatch, now: Epoch) -> None:
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


class PrefixLookup(NamedTuple):
    """The longest cached prefix of some tokens, which nobody has locked: it may be gone again.

    Attributes
    ----------
    num_tokens : int
        Length of the prefix; whole pages.
    pages : int32[P]
        Pages of the prefix.
    partial_page : int
        A cached page that begins like the tokens behind the prefix, or -1.
    partial_tokens : int
        How many of those tokens agree with the beginning of `partial_page`.
    """

    num_tokens: int
    pages: NDArray[np.int32]
    partial_page: int
    partial_tokens: int


class InvalidateResult(NamedTuple):
    """What became of pages that turned out bad.

    Attributes
    ----------
    num_dropped : int
        Pages that have left the cache; the others that are not found any more are locked.
    num_released : int
        How many of them went free.
    """

    num_dropped: int
    num_released: int


class InsertResult(NamedTuple):
    """What an insertion did.

    Attributes
    ----------
    pages : int32[P]
        The canonical pages: where they differ from those handed in, these hold the same tokens
        already, and the caller swaps and frees its own.
    num_present : int
        How many were cached before.
    num_new : int
        How many were adopted.
    """

    pages: NDArray[np.int32]
    num_present: int
    num_new: int
