"""What sequences on a prefix cache must do: the model of `oracle_sequences.py` with shared pages.

A row knows the first of its tokens by their ids, and locks the path of cached pages that it
began with or has committed. Everything else is the two models that this one joins.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any

from jitalloc.errors import InvalidArgument, OutOfPages, SequenceTooLong
from tests.oracle import Moves, Pool, pages_of
from tests.oracle_batches import SharedBatches
from tests.oracle_forks import SharingForks
from tests.oracle_nodes import Node
from tests.oracle_prefix import Prefixes
from tests.oracle_rows import Eviction, SharingRow
from tests.oracle_sequences import Cache


class SharingCache(SharingForks, SharedBatches, Cache):
    """The model of a `PagedKVCache` with a prefix cache."""

    rows: dict[int, Any]
    row_type = SharingRow

    def __init__(self, pool: Pool, prefix: Prefixes, *args: Any, **options: Any) -> None:
        super().__init__(pool, *args, **options)
        self.prefix = prefix

    # What can be asked.

    @property
    def reclaimable(self) -> int:
        return self.prefix.reclaimable()

    @property
    def held(self) -> int:
        return self.pool.used - self.reclaimable

    @property
    def utilization(self) -> float:
        return self.held / self.pool.usable

    def is_cached(self, page: int) -> bool:
        return any(node.page == page for node in self.prefix.nodes.values())

    def _holders(self, page: int) -> int:
        return self.pool.owners[page] - self.is_cached(page)

    def _available(self) -> int:
        return self.pool.available + self.reclaimable

    # Room is made by evicting cached pages, if that is enough.

    def _make_room(self, need: int, locked: Sequence[Node] = ()) -> None:
        available = self.pool.available
        reclaimable = self.prefix.reclaimable(besides=locked)
        if need > available + reclaimable:
            raise OutOfPages(need + len(locked), available + reclaimable + len(locked))
        for node in locked:
            node.locks += 1
        if need > available:
            self.prefix._expire()
            self.prefix.reclaim(need - available)

    def make_room(self, num_pages: int) -> int:
        if num_pages < 0:
            raise InvalidArgument("num_pages", num_pages, "negative")
        before = len(self.prefix.nodes)
        self._make_room(num_pages)
        self.pool.step += 1
        return before - len(self.prefix.nodes)

    def take(self, need: int) -> list[int]:
        self.pool.need(need)
        return self.pool.take(need)

    # Growing.

    def allocate(  # type: ignore[override]
        self,
        seq_id: Hashable,
        num_tokens: int | None = None,
        *,
        tokens: Sequence[int] | None = None,
        namespace: Hashable = None,
        priority: int = 0,
        compute: int = 1,
    ) -> int:
        known = [] if tokens is None else list(tokens)
        length = len(known) if num_tokens is None else num_tokens
        if length < 0:
            raise InvalidArgument("num_tokens", length, "negative")
        self._check_new(seq_id)
        if self._too_long(length):
            raise SequenceTooLong("num_tokens", length, "more pages than a row has room for")
        row = self._new_row()
        path = self._find(known, namespace, compute)
        need = pages_of(length, self.pool.page_size) - len(path)
        self._make_room(need, path)
        if tokens is not None:
            self._count_lookup(known, path)
        pages = [node.page for node in path]
        for page in pages:
            self.pool.owners[page] += 1
        pages += self.take(need)
        self.pool.step += 1
        self._add(seq_id, row, SharingRow(self.pool.step, priority, length, pages))
        self.rows[row].tokens, self.rows[row].namespace = known, namespace
        self.rows[row].path, self.rows[row].computed = path, len(path) * self.pool.page_size
        return len(path) * self.pool.page_size

    def append(  # type: ignore[override]
        self,
        seq_id: Hashable,
        n: int | None = None,
        *,
        tokens: Sequence[int] | None = None,
        computed: bool = True,
    ) -> tuple[list[int], Moves]:
        n = n if n is not None else len(tokens) if tokens is not None else 1
        return self.append_batch([self.row(seq_id)], [n], tokens, computed=computed)

    def append_batch(  # type: ignore[override]
        self,
        rows: Sequence[int],
        counts: Sequence[int],
        tokens: Sequence[int] | None = None,
        *,
        computed: bool = True,
    ) -> tuple[list[int], Moves]:
        size = self.pool.page_size
        self.pool.check_counts("n", counts)
        self.check_rows("rows", rows, distinct=True)
        lengths = [self.rows[row].length for row in rows]
        self._make_room(self._append_need(rows, counts))
        slots, moves = super().append_batch(rows, counts, computed=computed)
        left = None if tokens is None else list(tokens)
        for row, n, before in zip(rows, counts, lengths, strict=True):
            at = self.rows[row]
            if left is not None:
                mine, left = left[:n], left[n:]
                if len(at.tokens) == before:
                    at.tokens += mine
        for row, n, before in zip(rows, counts, lengths, strict=True):
            if n and len(self.rows[row].path) * size > before:
                self._shorten(self.rows[row], before // size)  # its last page is a copy now
        return slots, moves

    def _append_need(self, rows: Sequence[int], counts: Sequence[int]) -> int:
        size, need = self.pool.page_size, 0
        owners = dict(enumerate(self.pool.owners))
        for row, n in zip(rows, counts, strict=True):
            at = self.rows[row]
            if self._too_long(at.length + n):
                return 0  # the model below refuses it
            need += pages_of(at.length + n, size) - len(at.pages)
            if n > 0 and at.length % size > 0 and owners[at.pages[-1]] > 1:
                owners[at.pages[-1]] -= 1
                need += 1
        return need

    # Into the cache.

    def commit(
        self,
        seq_id: Hashable,
        num_tokens: int | None = None,
        *,
        tokens: Sequence[int] | None = None,
    ) -> int:
        row = self.row(seq_id)
        at = self.rows[row]
        wanted = replace(at)
        wanted.compute(num_tokens, tokens)
        if tokens is not None:
            size = self.pool.page_size
            told = {node.page: node.tokens[-size:] for node in self.prefix.nodes.values()}
            common = [self._alike(at, other) for other in self.rows.values()]
            for i, mine in enumerate(tokens):
                known = at.tokens[i : i + 1] or told.get(at.pages[i // size], ())[i % size :][:1]
                for theirs in common:  # what a fork was told of a page they share
                    known = known or theirs[i : i + 1]
                if known and known[0] != mine:  # what stands in a cached page is known as well
                    raise InvalidArgument("tokens", mine, "the sequence has another token", i)
            if not at.gap:
                at.tokens = [*tokens, *at.tokens[len(tokens) :]]
        at.computed = wanted.computed
        self._commit(row)
        self.pool.step += 1
        return self.cached_tokens(row)

    def cached_tokens(self, row: int) -> int:
        at = self.rows[row]
        cached, known = len(at.path), len(at.tokens) // self.pool.page_size
        pages = min(cached, known) if self._is_cut(at) else cached
        return min(pages * self.pool.page_size, at.length)

    def _alike(self, at: SharingRow, other: SharingRow) -> list[int]:
        """The known tokens of another row in the first pages that both have."""
        same = 0
        while at.pages[same : same + 1] and at.pages[same] in other.pages[same : same + 1]:
            same += 1
        return other.tokens[: same * self.pool.page_size]

    def _is_cut(self, at: SharingRow) -> bool:
        """Whether a window has cut the row: what is left is no prefix."""
        end = len(at.path)
        return bool(at.path) and at.pages[end - 1 : end] != [at.path[-1].page]

    def _commit(self, row: int) -> int:
        """Full pages known and computed enter the cache; how many duplicates went free."""
        at, size, prefix = self.rows[row], self.pool.page_size, self.prefix
        full = min(len(at.tokens), at.computed) // size
        old = at.path
        if full <= len(old) or self._is_cut(at):
            return 0
        tokens = tuple(at.tokens[: full * size])
        path = prefix.path(tokens, at.namespace, old)
        present = len(path)
        mine = [node.page for node in path] + at.pages[present:full]
        shared = {row: self._common(at, mine, row) for row in self.rows if self.rows[row] is not at}
        for i in range(present, full):
            # Whoever holds a cached page must lock it: those are the forks with all pages up to it.
            if self.pool.owners[at.pages[i]] != 1 + sum(same > i for same in shared.values()):
                full = i
                break
        if full <= len(old):
            return 0
        prefix._expire()
        for i in range(present, full):
            page = tokens[i * size : (i + 1) * size]
            node = Node(prefix.key_behind(path, page, at.namespace), at.pages[i])
            prefix.nodes[node.key] = node
            self.pool.owners[node.page] += 1
            path.append(node)
        prefix._see(path)
        for i, node in reversed([*enumerate(path)]):
            if i >= present:
                prefix._arm(node, prefix.default, float("inf"))
        prefix._touch(path[present:] if prefix.policy == "fifo" else path)
        prefix._demote()
        prefix.inserted += full - present
        duplicates = []
        for i in range(len(old), present):
            if at.pages[i] != path[i].page:
                duplicates.append(at.pages[i])
                at.pages[i] = path[i].page
                self.pool.owners[path[i].page] += 1
        for node in path[len(old) :]:
            node.locks += 1
        at.path = path
        for other, same in shared.items():
            for node in path[len(old) : same] if present < full else []:
                node.locks += 1
                fork = self.rows[other]
                fork.path = path[:same]  # what stands in the cache is computed
                fork.computed = max(fork.computed, min(len(fork.path) * size, fork.length))
        return self.pool.give_back(duplicates)

    def _common(self, at: SharingRow, mine: list[int], row: int) -> int:
        """How many of the pages `mine` of `at` a fork has that locks the same path."""
        other, same = self.rows[row], len(at.path)
        if other.path != at.path:
            return 0
        while same < len(mine) and other.pages[same : same + 1] == [mine[same]]:
            same += 1
        return same

    def _unlock(self, path: list[Node]) -> None:
        """Locks given back are one use of the path, as in `Prefixes.release`."""
        if path:
            self.prefix._expire()
            for node in path:
                node.locks -= 1
            if self.prefix.policy != "fifo":
                self.prefix._touch(path)
            self.prefix._demote()

    def _shorten(self, at: SharingRow, keep: int) -> None:
        """Lock the first `keep` pages of the path only, if they still are those of the row."""
        if self._locks_of(at, keep) < len(at.path):
            for node in at.path[:keep]:
                node.locks += 1
            self._unlock(at.path)
            at.path = at.path[:keep]

    def _locks_of(self, at: SharingRow, keep: int) -> int:
        """How much of its path a row locks that keeps so many pages."""
        whole = (
            keep > 0 and at.path[keep - 1 : keep] and at.path[keep - 1].page != at.pages[keep - 1]
        )
        return len(at.path) if whole else min(keep, len(at.path))

    # Shrinking.

    def free(self, seq_id: Hashable, *, commit: bool = True) -> int:  # type: ignore[override]
        return self.free_batch([self.row(seq_id)], commit=commit)

    def free_batch(self, rows: Sequence[int], *, commit: bool = True) -> int:  # type: ignore[override]
        self.check_rows("rows", rows, distinct=True)
        self.pool.step += 1
        released = sum(self._commit(row) for row in rows) if commit else 0
        return released + sum(self._end(row) for row in rows)

    def clear(self) -> None:
        self.free_batch(list(self.ids.values()), commit=False)

    def _end(self, row: int) -> int:
        at = self.rows[row]
        self._unlock(at.path)
        return super()._end(row)

    def truncate(self, seq_id: Hashable, num_tokens: int) -> int:
        released = super().truncate(seq_id, num_tokens)
        at = self.rows[self.row(seq_id)]
        at.tokens = at.tokens[:num_tokens]
        at.gap *= num_tokens >= at.gap
        self._shorten(at, pages_of(num_tokens, self.pool.page_size))
        return released

    def _drop(self, row: int, sink: int, window: int) -> tuple[int, int]:
        at = self.rows[row]
        gone = self.cut(at, sink, window)
        done = super()._drop(row, sink, window)
        if gone:
            first = gone[0] * self.pool.page_size + 1
            at.gap = min(at.gap or first, first)
            at.gap *= at.length >= at.gap
            at.tokens = at.tokens[: gone[0] * self.pool.page_size]
            if not at.path or at.path[-1].page not in at.pages[gone[0] :]:
                self._shorten(at, gone[0])
        return done

    def _evict_row(self, row: int) -> Eviction:
        held = self.held
        done = super()._evict_row(row)
        return replace(done, pages_released=held - self.held)
