"""PrefixCache: which pages already hold this prefix."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jitalloc._jit import BUSY_STATUS
from jitalloc.arguments import as_bounds, as_count, as_lengths, as_out, as_pages, as_tokens
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
    prefix_lookup_cpu,
    prefix_match_batch_cpu,
    prefix_match_cpu,
    prefix_pin_cpu,
    prefix_release_cpu,
    prefix_touch_cpu,
)
from jitalloc.prefix.loops.reclaim import (
    reclaim_clear_cpu,
    reclaim_evict_cpu,
    reclaim_invalidate_cpu,
)
from jitalloc.prefix.matches import (
    InsertResult,
    InvalidateResult,
    PrefixBatch,
    PrefixLookup,
    PrefixMatch,
    bring_up_to_date,
)
from jitalloc.prefix.namespaces import MAIN_ROOT
from jitalloc.prefix.state import (
    CLEARED,
    HELD_LOCK,
    HELD_NOT,
    HELD_PIN,
    MATCH_FIELDS,
    MATCH_HELD,
    MATCH_PAGES,
    MATCH_PARTIAL_PAGE,
    MATCH_PARTIAL_TOKENS,
    MOST_PRIORITY,
    NEVER,
    PIN_BUDGET,
    REQUESTED,
)
from jitalloc.prefix.upkeep import PrefixUpkeep
from jitalloc.state import INT32, INT32_MAX, NO_TOKENS

NO_PAGES: Final = np.empty(0, INT32)


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

    def match(
        self,
        tokens: ArrayLike,
        namespace: Hashable = None,
        *,
        max_tokens: int | None = None,
    ) -> PrefixMatch:
        """Find the longest cached prefix in whole pages, and lock it until `release`.

        Parameters
        ----------
        tokens : array_like of int32[n]
            Token ids from 0 to 2**31 - 1.
        namespace : Hashable, optional
            Where to look: namespaces never share.
        max_tokens : int, optional
            No more of the tokens are matched, though all count as asked for. One less than there
            are leaves one to compute, so that there are logits.

        Returns
        -------
        PrefixMatch
            To be used in a `with` statement, or handed to `release`. Locked pages are not
            evicted; who wants to keep them longer shares them.

        Raises
        ------
        InvalidArgument, WrongDevice
            `tokens` is no flat array of token ids on the CPU, `namespace` is not hashable, or
            `max_tokens` is no count.

        Examples
        --------
        >>> pool = jitalloc.PagePool(8, page_size=4)
        >>> cache = jitalloc.PrefixCache(pool)
        >>> _ = cache.insert(range(8), pool.alloc(2))
        >>> with cache.match(range(8), max_tokens=7) as match:
        ...     match.num_tokens, match.partial_page, match.partial_tokens
        (4, 1, 3)
        """
        try:
            fast = tokens.dtype is INT32 and tokens.ndim == 1  # type: ignore[union-attr]
        except AttributeError:
            fast = False
        if not fast or type(tokens) is not np.ndarray or not tokens.flags.c_contiguous:
            tokens = self._as_tokens(tokens)
        root = MAIN_ROOT if namespace is None else self._namespaces.root(namespace)
        most = None if max_tokens is None else self._caps(max_tokens, None)
        match = PrefixMatch(self, self._epoch, tokens.size // self.page_size)
        record = match._record
        try:
            if most is None:
                run = prefix_match_cpu.run
                status: int = run(self.pool._host, self._slab, root, tokens, record)
            else:  # a batch of one: another argument here would cost every match 0.05 us
                ends = np.array([root]), tokens, np.array([0, tokens.size]), most
                status = self._run(prefix_match_batch_cpu, *ends, record, record[MATCH_FIELDS:])
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
        *,
        max_tokens: ArrayLike | None = None,
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
        max_tokens : int or array_like of int64[B], optional
            No more of each prompt are matched: see `match`.

        Returns
        -------
        PrefixBatch
            To be used in a `with` statement, or handed to `release`.

        Raises
        ------
        InvalidArgument, WrongDevice
            As in `match`, or `indptr`, `namespaces` or `max_tokens` do not fit.
        """
        flat = self._as_tokens(tokens)
        bounds = self._bounds(indptr, flat.size)
        roots = self._roots(namespaces, bounds.size - 1)
        most = self._caps(max_tokens, roots.size)
        room = int((np.diff(bounds) // self.page_size).sum())
        pages = np.empty(room, INT32)
        batch = PrefixBatch(self, self._epoch, roots.size)
        try:
            arrays = roots, flat, bounds, most, batch._record, pages
            status = self._run(prefix_match_batch_cpu, *arrays)
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
        return as_bounds(indptr, size)

    def _caps(self, max_tokens: ArrayLike | None, size: int | None) -> NDArray[np.int64]:
        """Return how many tokens of each prompt may be matched; `size` None: of one match."""
        if max_tokens is None:
            return np.full(size or 0, INT32_MAX, np.int64)
        if size is None or np.ndim(max_tokens) == 0:
            most = as_count("max_tokens", max_tokens)
            return np.full(1 if size is None else size, most, np.int64)
        caps = np.ascontiguousarray(as_lengths("max_tokens", max_tokens))
        if caps.size != size:
            raise InvalidArgument("max_tokens", caps.size, f"must be {size}, one a prompt")
        if caps.size and caps.min() < 0:
            position = int(np.argmax(caps < 0))
            raise InvalidArgument("max_tokens", int(caps[position]), "must be >= 0", position)
        return caps

    def _roots(self, namespaces: Sequence[Hashable] | None, size: int) -> NDArray[np.int64]:
        if namespaces is None:
            return np.full(size, MAIN_ROOT, np.int64)
        if len(namespaces) != size:
            raise InvalidArgument(
                "namespaces", len(namespaces), f"must be {size}, one a prompt", fact="size"
            )
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

    def lookup(self, tokens: ArrayLike, namespace: Hashable = None) -> PrefixLookup:
        """Find the longest cached prefix in whole pages, and change nothing.

        Nothing is locked, counted or renewed: a look for who plans. What is found may give way to
        the next call that evicts.

        Parameters
        ----------
        tokens : array_like of int32[n]
        namespace : Hashable, optional

        Returns
        -------
        PrefixLookup

        Raises
        ------
        InvalidArgument, WrongDevice
            As in `match`.

        Examples
        --------
        >>> pool = jitalloc.PagePool(8, page_size=4)
        >>> cache = jitalloc.PrefixCache(pool)
        >>> _ = cache.insert(range(8), pool.alloc(2))
        >>> cache.lookup([0, 1, 2, 3, 4, 5, 9])
        PrefixLookup(num_tokens=4, pages=array([0], dtype=int32), partial_page=1, partial_tokens=2)
        >>> cache.stats().lookups, cache.num_locked
        (0, 0)
        """
        tokens = self._as_tokens(tokens)
        record = np.empty(MATCH_FIELDS + tokens.size // self.page_size, INT32)
        count = self._run(prefix_lookup_cpu, self._namespaces.root(namespace), tokens, record)
        if count < 0:
            raise argument_error(count, "tokens", tokens)
        partial = int(record[MATCH_PARTIAL_PAGE]), int(record[MATCH_PARTIAL_TOKENS])
        pages = record[MATCH_FIELDS : MATCH_FIELDS + count]
        return PrefixLookup(count * self.page_size, pages, *partial)

    def touch(self, tokens: ArrayLike, namespace: Hashable = None) -> int:
        """Use the longest cached prefix now, as a match that is released at once does.

        That is one use more of each page, and recency renewed, with nothing locked; the statistics
        of look-ups stay as they are.

        Parameters
        ----------
        tokens : array_like of int32[n]
        namespace : Hashable, optional

        Returns
        -------
        int
            How many tokens are cached; whole pages.

        Raises
        ------
        InvalidArgument, WrongDevice
            As in `match`.

        Examples
        --------
        >>> pool = jitalloc.PagePool(8, page_size=4)
        >>> cache = jitalloc.PrefixCache(pool)
        >>> for prompt in ([1] * 4, [2] * 4):
        ...     pages = pool.alloc(1)
        ...     _ = cache.insert(prompt, pages)
        ...     pool.free(pages)
        0
        0
        >>> cache.touch([1] * 6)  # so that the other page goes first
        4
        >>> cache.evict(1), cache.lookup([1] * 4).num_tokens
        (1, 4)
        """
        tokens = self._as_tokens(tokens)
        out = np.empty(tokens.size // self.page_size, INT32)
        count = self._run(prefix_touch_cpu, self._namespaces.root(namespace), tokens, out)
        if count < 0:
            raise argument_error(count, "tokens", tokens)
        return count * self.page_size

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
        """Keep pages by the tokens that they hold; those used on the way were used last now.

        Where the tokens are cached already, the page that holds them is the canonical one;
        the rest is adopted: the cache becomes one owner more of each. To the policies `lfu` and
        `slru` an insertion is no use: it renews recency only, while look-ups (and `touch`) count.

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
            expected = f"must be {needed}, one a whole page"
            raise InvalidArgument("pages", pages.size, expected, fact="size")
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

    def evict(self, n: int, out: NDArray[np.int32] | None = None) -> int:
        """Let the `n` least valuable unlocked pages give way, leaves before what they follow.

        Their tokens are forgotten, and each page has one owner less: those that nobody else
        holds are released.

        Parameters
        ----------
        n : int
        out : int32[any], optional
            Buffer for the pages, in the order in which they give way; room for `n` of them, or for
            the whole pool.

        Returns
        -------
        int
            `min(n, num_evictable)` as it was.

        Raises
        ------
        InvalidArgument, WrongDevice
            `n` is no count, or `out` no buffer for so many pages.

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
        n, buffer = as_count("n", n), NO_PAGES
        if out is not None:
            buffer, least = as_out(out, INT32, None), min(n, self.pool.num_pages)
            if buffer.size < least:
                raise InvalidArgument("out", buffer.size, f"must hold at least {least} elements")
        status = self._give_way(n, REQUESTED, buffer)
        if status < 0:
            raise reclaim_error(status)
        return status

    def invalidate(
        self,
        tokens: ArrayLike | None = None,
        namespace: Hashable = None,
        *,
        start: int = 0,
        pages: ArrayLike | None = None,
    ) -> InvalidateResult:
        """Let pages that turned out bad not be found any more, nor what was computed upon them.

        That is, by tokens, the cached page that holds the token at `start`, by ids each of the
        pages, and all cached pages that follow. What is unlocked of them leaves the cache at
        once. What is locked by matches, pins or running sequences cannot be found by others
        either, whatever these still insert behind it, but stays with them; unlocked again, it gives
        way like any other page.

        Parameters
        ----------
        tokens : array_like of int32[n], optional
            Where these are cached; those that fill no whole page are ignored.
        namespace : Hashable, optional
            That of `tokens`.
        start : int
            From which of `tokens` on they are bad; by default all, and with them every prompt that
            begins with the same page.
        pages : array_like of int32[n], optional
            Instead of `tokens`: pages of the pool. Those that are not cached are passed over.

        Returns
        -------
        InvalidateResult

        Raises
        ------
        InvalidPage
            A page is out of range or reserved. Nothing was done.
        InvalidArgument, WrongDevice
            Neither or both of `tokens` and `pages` are given, or what belongs to `tokens` without
            them; or as in `match`.

        Examples
        --------
        >>> pool = jitalloc.PagePool(8, page_size=4)
        >>> cache = jitalloc.PrefixCache(pool)
        >>> pages = pool.alloc(3)
        >>> _ = cache.insert(range(12), pages)
        >>> pool.free(pages)
        0
        >>> cache.invalidate(pages=[1])
        InvalidateResult(num_dropped=2, num_released=2)
        >>> cache.lookup(range(12)).num_tokens
        4
        """
        if (tokens is None) == (pages is None):
            raise InvalidArgument("pages", pages, "must be given, or tokens, and not both")
        if tokens is None and namespace is not None:
            raise InvalidArgument("namespace", namespace, "belongs to tokens, which are not given")
        start = as_count("start", start)
        if tokens is None and start != 0:
            raise InvalidArgument("start", start, "belongs to tokens, which are not given")
        prompt = NO_TOKENS if tokens is None else self._as_tokens(tokens)
        named = NO_PAGES if pages is None else self._as_pages(pages)
        out, counts = np.empty(self.pool.num_pages, INT32), np.zeros(1, np.int64)
        root = self._namespaces.root(namespace)
        status = self._forget((root, prompt, start, named, out), counts)
        if status < 0:
            if unpack_status(status)[0] == NEGATIVE_TOKEN:
                raise argument_error(status, "tokens", prompt)
            raise self.pool._page_error(status, named)
        return InvalidateResult(status, int(counts[0]))

    def _as_pages(self, pages: ArrayLike) -> NDArray[np.int32]:
        """Return page ids as a contiguous `int32[n]` on the host."""
        return np.ascontiguousarray(as_pages(pages))

    def _forget(self, asked: tuple[Any, ...], released: NDArray[np.int64]) -> int:
        """Run `reclaim_invalidate_cpu`; return how many pages are gone, or a status word."""
        return self._run(reclaim_invalidate_cpu, *asked, released)

    def clear(self) -> None:
        """Forget every page; nothing may be locked.

        Raises
        ------
        PagesLocked
            Matches, pins or sequences hold locks. Nothing was forgotten.
        """
        status = self._give_way(self.num_cached, CLEARED, NO_PAGES)
        if status < 0:
            raise reclaim_error(status)

    def _give_way(self, n: int, reason: int, out: NDArray[np.int32]) -> int:
        """Let `n` pages give way, or all of them for the reason CLEARED; return how many did.

        They are written to `out`, where that has room for any.
        """
        if reason == CLEARED:
            return self._run(reclaim_clear_cpu)
        return self._run(reclaim_evict_cpu, n, reason, out)
