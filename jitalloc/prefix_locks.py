"""Giving the locks of a prefix cache back."""

from __future__ import annotations

from jitalloc.epochs import bring_up_to_date
from jitalloc.errors import NOT_LOCKED, RENAMED, InvalidArgument, NotLocked, unpack_status
from jitalloc.insertion import PrefixInsertion
from jitalloc.kernels.prefix import prefix_release_cpu
from jitalloc.matches import PrefixBatch, PrefixMatch
from jitalloc.prefix_state import HELD_LOCK, HELD_PIN


class PrefixLocks(PrefixInsertion):
    """The part of `PrefixCache` that gives locks back."""

    def release(self, match: PrefixMatch | PrefixBatch) -> None:
        """Give the locks of a match back; its pages count as used now.

        Parameters
        ----------
        match : PrefixMatch or PrefixBatch

        Raises
        ------
        NotLocked
            The match was released before, is of another cache, or is pinned (`unpin`).
        """
        self._give_back(match, HELD_LOCK)

    def unpin(self, match: PrefixMatch) -> None:
        """Give the locks of a pin back; its pages count as used now.

        Parameters
        ----------
        match : PrefixMatch
            From `pin`.

        Raises
        ------
        NotLocked
            The match was unpinned before, is of another cache, or is not pinned.
        """
        self._give_back(match, HELD_PIN)

    def _give_back(self, match: PrefixMatch | PrefixBatch, held: int) -> None:
        try:
            mine = match._cache is self
        except AttributeError:
            expected = "must be a PrefixMatch or a PrefixBatch"
            raise InvalidArgument("match", match, expected) from None
        if not mine:
            raise NotLocked("the match is of another cache")
        record, size = match._record, match._size
        status: int = prefix_release_cpu.run(self.pool._host, self._slab, record, size, held)
        if status < 0:
            self._give_back_late(match, held, status)

    def _give_back_late(self, match: PrefixMatch | PrefixBatch, held: int, status: int) -> None:
        """Give back what could not be given back at once, for the reason in `status`."""
        while status < 0:
            code, _position = unpack_status(status)
            if code == NOT_LOCKED:
                raise NotLocked("the match was given back before, or must be unpinned (or not)")
            if code == RENAMED:
                self._bring_up_to_date(match)
            status = self._release(match, held)

    def _bring_up_to_date(self, match: PrefixMatch | PrefixBatch) -> None:
        """Let a match name its pages by their ids of now."""
        with self.lock:
            bring_up_to_date(match, self._epoch)

    def _release(self, match: PrefixMatch | PrefixBatch, held: int) -> int:
        """Run the kernel that gives a match back; return its status word."""
        return self._run(prefix_release_cpu, match._record, match._size, held)
