"""Taking pages back from a prefix cache, by its policy."""

from __future__ import annotations

from jitalloc.arguments import as_count
from jitalloc.errors import (
    STILL_LOCKED,
    CorruptState,
    JitallocError,
    PagesLocked,
    unpack_status,
)
from jitalloc.kernels.reclaim import reclaim_clear_cpu, reclaim_evict_cpu
from jitalloc.prefix_state import CLEARED, REQUESTED
from jitalloc.prefix_upkeep import PrefixUpkeep


class PrefixReclaim(PrefixUpkeep):
    """The part of `PrefixCache` that lets pages give way."""

    def evict(self, n: int) -> int:
        """Let the `n` least valuable unlocked pages give way, leaves before what they follow.

        Their tokens are forgotten, and each page has one owner less: those that nobody else
        holds are released.

        Parameters
        ----------
        n : int

        Returns
        -------
        int
            `min(n, num_evictable)` as it was.

        Raises
        ------
        InvalidArgument
            `n` is no count.

        Notes
        -----
        Amortised O(1) a page whatever the cache holds: the queues stand in the order in which
        pages give way, and a locked page is passed over once a lock.

        Examples
        --------
        >>> pool = jitalloc.PagePool(8, page_size=4)
        >>> cache = jitalloc.PrefixCache(pool)
        >>> pages = pool.alloc(3)
        >>> _ = cache.insert(range(12), pages)
        >>> pool.free(pages)
        0
        >>> cache.evict(2), cache.match(range(12)).num_tokens, cache.evict(9)
        (2, 4, 0)
        """
        status = self._give_way(as_count("n", n), REQUESTED)
        if status < 0:
            raise self._reclaim_error(status)
        return status

    def clear(self) -> None:
        """Forget every page; nothing may be locked.

        Raises
        ------
        PagesLocked
            Matches, pins or sequences hold locks. Nothing was forgotten.
        """
        status = self._give_way(self.num_cached, CLEARED)
        if status < 0:
            raise self._reclaim_error(status)

    def _give_way(self, n: int, reason: int) -> int:
        """Let `n` pages give way, or all of them for the reason CLEARED; return how many did."""
        if reason == CLEARED:
            return self._run(reclaim_clear_cpu)
        return self._run(reclaim_evict_cpu, n, reason)

    def _reclaim_error(self, status: int) -> JitallocError:
        code, detail = unpack_status(status)
        if code == STILL_LOCKED:
            return PagesLocked(f"{detail} cached pages are locked")
        return CorruptState("somebody freed cached pages more often than it owned them")
