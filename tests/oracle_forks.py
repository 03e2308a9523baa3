"""The part of the model of `PagedKVCache` in which sequences take over what others have."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any

from jitalloc.errors import InvalidArgument
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
