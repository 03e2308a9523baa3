"""Keeping pages in a prefix cache."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jitalloc.arguments import as_count, as_pages
from jitalloc.errors import (
    NEGATIVE_TOKEN,
    InvalidArgument,
    JitallocError,
    argument_error,
    unpack_status,
)
from jitalloc.kernels.prefix import prefix_insert_cpu
from jitalloc.matches import InsertResult
from jitalloc.prefix_slab import MAIN_ROOT
from jitalloc.prefix_state import MOST_PRIORITY, NEVER
from jitalloc.reclaim import PrefixReclaim
from jitalloc.state import INT32


class PrefixInsertion(PrefixReclaim):
    """The part of `PrefixCache` that keeps pages."""

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
            raise self._insert_error(status, tokens, pages)
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

    def _insert_error(
        self, status: int, tokens: NDArray[np.int32], pages: NDArray[np.int32]
    ) -> JitallocError:
        if unpack_status(status)[0] == NEGATIVE_TOKEN:
            return argument_error(status, "tokens", tokens)
        return self.pool._page_error(status, pages)
