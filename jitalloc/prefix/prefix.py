"""PrefixCache: which pages already hold this prefix."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jitalloc._jit import BUSY_STATUS
from jitalloc.arguments import as_count, as_lengths, as_pages, as_tokens
from jitalloc.errors import (
    NEGATIVE_TOKEN,
    NOT_LOCKED,
    RENAMED,
    STILL_LOCKED,
    CorruptState,
    InvalidArgument,
    JitallocError,
    NotLocked,
    PagesLocked,
    PinBudget,
    argument_error,
    unpack_status,
)
from jitalloc.prefix.loops.prefix import (
    prefix_insert_cpu,
    prefix_match_batch_cpu,
    prefix_match_cpu,
    prefix_pin_cpu,
    prefix_release_cpu,
)
from jitalloc.prefix.loops.reclaim import reclaim_clear_cpu, reclaim_evict_cpu
from jitalloc.prefix.matches import InsertResult, PrefixBatch, PrefixMatch, bring_up_to_date
from jitalloc.prefix.namespaces import MAIN_ROOT
from jitalloc.prefix.state import (
    CLEARED,
    HELD_LOCK,
    HELD_NOT,
    HELD_PIN,
    MATCH_HELD,
    MATCH_PAGES,
    MOST_PRIORITY,
    NEVER,
    PIN_BUDGET,
    REQUESTED,
)
from jitalloc.prefix.upkeep import PrefixUpkeep
from jitalloc.state import INT32


def reclaim_error(status: int) -> JitallocError:
    """Return the exception for a status word about pages that were to give way."""
    code, detail = unpack_status(status)
    if code == STILL_LOCKED:
        return PagesLocked(f"{detail} cached pages are locked")
    return CorruptState("somebody freed cached pages more often than it owned them")


class PrefixCache(PrefixUpkeep):
    """Pages of a pool by the tokens that they hold, so that equal prefixes are computed once.

    A page is found by the tokens of all pages before it and its own; tokens are compared, never
    hashes alone. The cache is one owner of each page in it.

    Parameters
    ----------
    pool : PagePool
        Whose pages are cached; it has no other prefix cache. On the GPU the cache is a
        `jitalloc.cuda.CudaPrefixCache`.
    policy : {"lru", "fifo", "mru", "lfu", "slru", "priority"}
        Which page gives way first: the one used longest ago; inserted longest ago; used last;
        used least often; used longest ago among those not used since they were inserted, then
        among the others (protected); of the lowest priority, then used longest ago.
    default_priority : int
        0 to 100: the priority of pages inserted without one, and of those whose own has ended.
    pin_budget : int, optional
        How many pages may be pinned at once; half of the pool by default.
    protected_share : float
        Policy `slru`: which share of the pool may be protected.

    Attributes
    ----------
    pool, policy, default_priority, pin_budget, protected_share
        As above.
    page_size : int
        The pool's.
    arrays : PrefixArrays
        Named views into the state, to look at; made anew when the pool is resized.

    Raises
    ------
    InvalidArgument
        An option is out of range, or the pool has a prefix cache that somebody still holds.

    Notes
    -----
    Calls from several threads are serialised by the lock word of the pool.

    Examples
    --------
    >>> pool = jitalloc.PagePool(num_pages=64, page_size=4)
    >>> cache = jitalloc.PrefixCache(pool)
    >>> prompt = [1, 2, 3, 4, 5, 6, 7, 8, 9]
    >>> pages = pool.alloc(2)
    >>> cache.insert(prompt, pages)
    InsertResult(pages=array([0, 1], dtype=int32), num_present=0, num_new=2)
    >>> with cache.match([1, 2, 3, 4, 5, 6, 0]) as match:
    ...     match.num_tokens, match.pages, match.partial_page, match.partial_tokens
    (4, array([0], dtype=int32), 1, 2)
    """

    def match(self, tokens: ArrayLike, namespace: Hashable = None) -> PrefixMatch:
        """Find the longest cached prefix in whole pages, and lock it until `release`.

        Parameters
        ----------
        tokens : array_like of int32[n]
            Token ids from 0 to 2**31 - 1.
        namespace : Hashable, optional
            Where to look: namespaces never share.

        Returns
        -------
        PrefixMatch
            To be used in a `with` statement, or handed to `release`. Locked pages are not
            evicted; who wants to keep them longer shares them.

        Raises
        ------
        InvalidArgument, WrongDevice
            `tokens` is no flat array of token ids on the CPU, or `namespace` is not hashable.
        """
        try:
            fast = tokens.dtype is INT32 and tokens.ndim == 1  # type: ignore[union-attr]
        except AttributeError:
            fast = False
        if not fast or type(tokens) is not np.ndarray or not tokens.flags.c_contiguous:
            tokens = self._as_tokens(tokens)
        root = MAIN_ROOT if namespace is None else self._namespaces.root(namespace)
        match = PrefixMatch(self, self._epoch, tokens.size // self.page_size)
        record = match._record
        try:
            status: int = prefix_match_cpu.run(self.pool._host, self._slab, root, tokens, record)
            if status < 0:
                if status == BUSY_STATUS:
                    status = self._run(prefix_match_cpu, root, tokens, record)
                if status < 0:
                    raise argument_error(status, "tokens", tokens)
            match.num_pages = count = int(record[MATCH_PAGES])
            match.num_tokens = count * self.page_size
        except BaseException:
            if record[MATCH_HELD] != HELD_NOT:
                self.release(match)
            raise
        return match

    def match_batch(
        self,
        tokens: ArrayLike,
        indptr: ArrayLike,
        namespaces: Sequence[Hashable] | None = None,
    ) -> PrefixBatch:
        """Find and lock the longest cached prefixes of B prompts, in order.

        Parameters
        ----------
        tokens : array_like of int32[n]
            The prompts, one behind the other.
        indptr : array_like of int64[B + 1]
            Prompt `i` is `tokens[indptr[i] : indptr[i + 1]]`; from 0 to n.
        namespaces : sequence of Hashable, optional
            One for each prompt; by default None for all.

        Returns
        -------
        PrefixBatch
            To be used in a `with` statement, or handed to `release`.

        Raises
        ------
        InvalidArgument, WrongDevice
            As in `match`, or `indptr` or `namespaces` do not fit.
        """
        flat = self._as_tokens(tokens)
        bounds = self._bounds(indptr, flat.size)
        roots = self._roots(namespaces, bounds.size - 1)
        room = int((np.diff(bounds) // self.page_size).sum())
        pages = np.empty(room, INT32)
        batch = PrefixBatch(self, self._epoch, roots.size)
        try:
            status = self._run(prefix_match_batch_cpu, roots, flat, bounds, batch._record, pages)
            if status < 0:
                raise argument_error(status, "tokens", flat)
            batch._fill(pages[:status], self.page_size)
        except BaseException:
            if batch.locked:
                self.release(batch)
            raise
        return batch

    def _as_tokens(self, tokens: ArrayLike) -> NDArray[np.int32]:
        """Return token ids as a contiguous `int32[n]` on the host."""
        return as_tokens(tokens)

    def _bounds(self, indptr: ArrayLike, size: int) -> NDArray[np.int64]:
        bounds = np.ascontiguousarray(as_lengths("indptr", indptr))
        if bounds.size == 0:
            raise InvalidArgument("indptr", 0, "must have one element more than there are prompts")
        if bounds[0] != 0:
            raise InvalidArgument("indptr", int(bounds[0]), "must begin with 0", 0)
        falls = np.flatnonzero(bounds[1:] < bounds[:-1])
        if falls.size:
            position = int(falls[0]) + 1
            raise InvalidArgument("indptr", int(bounds[position]), "must not descend", position)
        if bounds[-1] != size:
            position = bounds.size - 1
            raise InvalidArgument("indptr", int(bounds[-1]), f"must end with {size}", position)
        return bounds

    def _roots(self, namespaces: Sequence[Hashable] | None, size: int) -> NDArray[np.int64]:
        if namespaces is None:
            return np.full(size, MAIN_ROOT, np.int64)
        if len(namespaces) != size:
            raise InvalidArgument("namespaces", len(namespaces), f"must be {size}, one a prompt")
        roots = np.empty(size, np.int64)
        for position, namespace in enumerate(namespaces):
            try:
                roots[position] = self._namespaces.root(namespace)
            except InvalidArgument as error:
                raise InvalidArgument("namespaces", namespace, error.expected, position) from None
        return roots

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

    def pin(self, tokens: ArrayLike, namespace: Hashable = None) -> PrefixMatch:
        """Lock the longest cached prefix for long, within the budget for pins.

        Unlike `match` it is no look-up: neither statistics nor the uses of pages change.

        Parameters
        ----------
        tokens : array_like of int32[n]
        namespace : Hashable, optional

        Returns
        -------
        PrefixMatch
            For `unpin`.

        Raises
        ------
        PinBudget
            More than `pin_budget` pages would be pinned.
        InvalidArgument, WrongDevice
            As in `match`.
        """
        tokens = self._as_tokens(tokens)
        match = PrefixMatch(self, self._epoch, tokens.size // self.page_size)
        record = match._record
        try:
            status = self._run(prefix_pin_cpu, self._namespaces.root(namespace), tokens, record)
            if status < 0:
                code, detail = unpack_status(status)
                if code == NEGATIVE_TOKEN:
                    raise argument_error(status, "tokens", tokens)
                raise PinBudget(detail, int(self.arrays.header[PIN_BUDGET]))
            match.num_pages = int(record[MATCH_PAGES])
            match.num_tokens = match.num_pages * self.page_size
        except BaseException:
            if match.locked:
                self.unpin(match)
            raise
        return match

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
        while status < 0:
            code, _position = unpack_status(status)
            if code == NOT_LOCKED:
                raise NotLocked("the match was given back before, or must be unpinned (or not)")
            if code == RENAMED:
                with self.lock:
                    bring_up_to_date(match, self._epoch)
            status = self._run(prefix_release_cpu, record, size, held)

    def insert(
        self,
        tokens: ArrayLike,
        pages: ArrayLike,
        namespace: Hashable = None,
        *,
        priority: int | None = None,
        lifetime: int | None = None,
    ) -> InsertResult:
        """Keep pages by the tokens that they hold; pages used on the way count as used now.

        Where the tokens are cached already, the page that holds them is the canonical one;
        the rest is adopted: the cache becomes one owner more of each.

        Parameters
        ----------
        tokens : array_like of int32[n]
            Token ids from 0 to 2**31 - 1. Those that fill no whole page are ignored.
        pages : array_like of int32[n // page_size]
            Held pages with these tokens.
        namespace : Hashable, optional
            Where to keep them: namespaces never share.
        priority : int, optional
            Policy `priority`: 0 to 100. A page has the highest that it was given.
        lifetime : int, optional
            Policy `priority`: after how many steps of the pool the priority falls back to
            `default_priority`; by default never.

        Returns
        -------
        InsertResult

        Raises
        ------
        InvalidPage
            A page to be adopted is out of range, reserved or free.
        PageCached
            A page to be adopted is cached at another place, or named twice.
        InvalidArgument, WrongDevice
            As in `match`; `pages` has another length; or `priority` and `lifetime` do not fit
            the policy.
        """
        tokens, pages = self._as_tokens(tokens), np.ascontiguousarray(as_pages(pages))
        needed = tokens.size // self.page_size
        if pages.size != needed:
            raise InvalidArgument("pages", pages.size, f"must be {needed}, one a whole page")
        if priority is None and lifetime is None:
            options = self.default_priority, -1
        else:
            options = self._priority(priority, lifetime)
        root = MAIN_ROOT if namespace is None else self._make_root(namespace)
        canonical = np.empty(needed, INT32)
        status = self._run(prefix_insert_cpu, root, tokens, pages, canonical, *options)
        if status < 0:
            if unpack_status(status)[0] == NEGATIVE_TOKEN:
                raise argument_error(status, "tokens", tokens)
            raise self.pool._page_error(status, pages)
        return InsertResult(canonical, status, needed - status)

    def _priority(self, priority: int | None, lifetime: int | None) -> tuple[int, int]:
        for name, value in (("priority", priority), ("lifetime", lifetime)):
            if value is not None and self.policy != "priority":
                raise InvalidArgument(name, value, "needs the policy 'priority'")
        own = (
            self.default_priority
            if priority is None
            else as_count("priority", priority, 0, MOST_PRIORITY)
        )
        return own, -1 if lifetime is None else as_count("lifetime", lifetime, 0, NEVER // 2)

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
            raise reclaim_error(status)
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
            raise reclaim_error(status)

    def _give_way(self, n: int, reason: int) -> int:
        """Let `n` pages give way, or all of them for the reason CLEARED; return how many did."""
        if reason == CLEARED:
            return self._run(reclaim_clear_cpu)
        return self._run(reclaim_evict_cpu, n, reason)
