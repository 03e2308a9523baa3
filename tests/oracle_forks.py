"""The part of the model of `PagedKVCache` in which sequences take over what others have."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any

from jitalloc.errors import InvalidArgument, InvalidPage, PageCached, SequenceTooLong
from tests.oracle import pages_of


class Forks:
    """Sequences that share pages with others."""

    pool: Any
    rows: Any
    row: Any
    row_type: Any
    forks: int
    check_rows: Any
    _check_new: Any
    _new_row: Any
    _add: Any
    _touch: Any
    _too_long: Any

    def adopt(
        self,
        seq_id: Hashable,
        tokens: Sequence[int],
        pages: Sequence[int],
        *,
        namespace: Hashable = None,
        priority: int = 0,
        computed: int | None = None,
    ) -> None:
        """The owners of the pages are as many as before: the caller is one of them no more."""
        size, n = self.pool.page_size, len(tokens)
        if len(pages) != pages_of(n, size):
            raise InvalidArgument("pages", len(pages), "not as many as the tokens need")
        if computed is not None and not 0 <= computed <= n:
            raise InvalidArgument("computed", computed, "not within the tokens")
        self._check_new(seq_id)
        if self._too_long(n):
            raise SequenceTooLong("tokens", n, "more pages than a row has room for")
        row = self._new_row()
        for i, token in enumerate(tokens):
            if token < 0:
                raise InvalidArgument("tokens", token, "negative", i)
        for i, page in enumerate(pages):
            if not self.pool.first <= page < self.pool.num_pages or not self.pool.owners[page]:
                raise InvalidPage("pages", page, "nobody can hold it, or nobody does", i)
            if page in pages[:i] or self.is_cached(page):
                raise PageCached("pages", page, "named twice, or in the index", i)
        self.pool.step += 1
        self._add(seq_id, row, self.row_type(self.pool.step, priority, n, list(pages)))
        self.rows[row].computed = n if computed is None else computed

    def is_cached(self, page: int) -> bool:
        """Whether a page stands in the prefix cache: there is none."""
        return False

    def fork(self, src_id: Hashable, dst_id: Hashable, num_tokens: int | None = None) -> None:
        if num_tokens is not None and num_tokens < 0:
            raise InvalidArgument("num_tokens", num_tokens, "negative")
        src = self.rows[self.row(src_id)]
        self._check_new(dst_id)
        row = self._new_row()
        if num_tokens is not None and num_tokens > src.length:
            raise InvalidArgument("num_tokens", num_tokens, "not within the sequence")
        self.pool.step += 1
        self._add(dst_id, row, self.row_type(self.pool.step, src.priority))
        self._share(row, src, num_tokens)
        self.forks += 1

    def _share(self, row: int, src: Any, num_tokens: int | None = None) -> None:
        """The row has the first tokens of `src`, and holds the pages that these are in."""
        at, n = self.rows[row], src.length if num_tokens is None else num_tokens
        at.pages, at.length = src.pages[: pages_of(n, self.pool.page_size)], n
        for page in at.pages:
            self.pool.owners[page] += 1
        at.computed = min(src.computed, n)

    def fork_batch(self, src_rows: Sequence[int], dst_rows: Sequence[int]) -> None:
        self.check_rows("dst_rows", dst_rows, distinct=True)
        for i, row in enumerate(dst_rows):
            if self.rows[row].length:
                raise InvalidArgument("dst_rows", row, "must be empty", i)
        self.check_rows("src_rows", src_rows)
        self.pool.step += 1
        before = {row: replace(at) for row, at in self.rows.items()}
        for src, dst in zip(src_rows, dst_rows, strict=True):
            self._share(dst, before[src])
            self._touch(dst)
            self.forks += 1

    def reorder(self, rows: Sequence[int], parents: Sequence[int]) -> None:
        self.check_rows("rows", rows, distinct=True)
        self.check_rows("parents", parents)
        self.pool.step += 1
        before = {row: replace(at) for row, at in self.rows.items()}
        for row, parent in zip(rows, parents, strict=True):
            self._share(row, before[parent])
        for row in rows:
            self.pool.give_back(before[row].pages)
            self._touch(row)


class SharingForks(Forks):
    """What sequences of known tokens take over besides, which lock cached pages."""

    _locks_of: Any
    _unlock: Any

    def adopt(self, seq_id: Hashable, tokens: Sequence[int], *args: Any, **options: Any) -> None:
        super().adopt(seq_id, tokens, *args, **options)
        at = self.rows[self.row(seq_id)]
        at.tokens, at.namespace = list(tokens), options.get("namespace")

    def _share(self, row: int, src: Any, num_tokens: int | None = None) -> None:
        super()._share(row, src, num_tokens)
        at = self.rows[row]
        at.tokens, at.namespace = src.tokens[: at.length], src.namespace
        at.gap = src.gap * (at.length >= src.gap)
        at.path = src.path[: self._locks_of(src, len(at.pages))]
        for node in at.path:
            node.locks += 1

    def fork_batch(self, src_rows: Sequence[int], dst_rows: Sequence[int]) -> None:
        own = {row: self.rows[row].namespace for row in dst_rows if row in self.rows}
        super().fork_batch(src_rows, dst_rows)
        for src, dst in zip(src_rows, dst_rows, strict=True):
            if src in dst_rows:  # empty, like all destinations: there is nothing to take over
                self.rows[dst].namespace = own[dst]

    def reorder(self, rows: Sequence[int], parents: Sequence[int]) -> None:
        paths = [self.rows[row].path if row in self.rows else [] for row in rows]
        super().reorder(rows, parents)
        for row, path in zip(rows, paths, strict=True):
            if self.rows[row].path == path:  # it locks what it did before
                for node in path:
                    node.locks -= 1
            else:
                self._unlock(path)
