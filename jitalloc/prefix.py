"""PrefixCache: which pages already hold this prefix."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jitalloc._jit import BUSY_STATUS
from jitalloc.arguments import as_lengths
from jitalloc.errors import (
    NEGATIVE_TOKEN,
    InvalidArgument,
    PinBudget,
    argument_error,
    unpack_status,
)
from jitalloc.kernels.prefix import (
    prefix_match_batch_cpu,
    prefix_match_cpu,
    prefix_pin_cpu,
)
from jitalloc.matches import PrefixBatch, PrefixMatch
from jitalloc.prefix_locks import PrefixLocks
from jitalloc.prefix_slab import MAIN_ROOT
from jitalloc.prefix_state import (
    HELD_NOT,
    MATCH_HELD,
    MATCH_PAGES,
    PIN_BUDGET,
)
from jitalloc.state import INT32


class PrefixCache(PrefixLocks):
    """Pages of a pool by the tokens that they hold, so that equal prefixes are computed once.

    A page is found by the tokens of all pages before it and its own; tokens are compared, never
    hashes alone. The cache is one owner of each page in it.

    Parameters
    ----------
    pool : PagePool
        Whose pages are cached. On the GPU the cache is a `jitalloc.cuda.CudaPrefixCache`.
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
        An option is out of range.

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
        root = MAIN_ROOT if namespace is None else self._root(namespace)
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
            return np.full(size, self._root(None), np.int64)
        if len(namespaces) != size:
            raise InvalidArgument("namespaces", len(namespaces), f"must be {size}, one a prompt")
        roots = np.empty(size, np.int64)
        for position, namespace in enumerate(namespaces):
            try:
                roots[position] = self._root(namespace)
            except InvalidArgument as error:
                raise InvalidArgument("namespaces", namespace, error.expected, position) from None
        return roots

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
            status = self._run(prefix_pin_cpu, self._root(namespace), tokens, record)
            if status < 0:
                code, detail = unpack_status(status)
                if code == NEGATIVE_TOKEN:
                    raise argument_error(status, "tokens", tokens)
                raise PinBudget(detail, int(self._header()[PIN_BUDGET]))
            match.num_pages = int(record[MATCH_PAGES])
            match.num_tokens = match.num_pages * self.page_size
        except BaseException:
            if match.locked:
                self.unpin(match)
            raise
        return match
