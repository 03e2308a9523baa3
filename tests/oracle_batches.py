"""What prompts that come together must do: the part of the models that begins them.

`Batches` is that of a cache without a prefix cache; `SharedBatches` stands before it where there is
one.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from copy import deepcopy
from itertools import pairwise
from typing import Any, NamedTuple

from jitalloc.errors import (
    DuplicateSequence,
    InvalidArgument,
    OutOfPages,
    OutOfRows,
    SequenceTooLong,
)
from tests.oracle import Moves, pages_of
from tests.oracle_layouts import Layouts
from tests.oracle_nodes import Node


class Plan(NamedTuple):
    admitted: int
    num_cached: list[int]
    num_pages: list[int]


class Allocated(NamedTuple):
    rows: list[int]
    num_cached: list[int]
    copies: Moves


class Batches(Layouts):
    """The part of `Cache` that begins batches of prompts."""

    pool: Any
    rows: Any
    ids: dict[Hashable, int]
    max_sequences: int
    _too_long: Any

    def _find(self, tokens: list[int], namespace: Hashable, compute: int) -> list[Node]:
        """The cached pages that a prompt begins with: there are none."""
        return []

    def _spare(self, locked: list[Node]) -> int:
        """How many pages could be had if some were locked."""
        return int(self.pool.available)

    def _prompts(
        self, tokens: Any, indptr: Sequence[int], names: Sequence[Hashable] | None
    ) -> tuple[list[list[int]], Sequence[Hashable]]:
        flat, batch = list(tokens), len(indptr) - 1
        if not indptr or indptr[0] != 0 or indptr[-1] != len(flat):
            raise InvalidArgument("indptr", indptr, "does not fit the tokens")
        for i, token in enumerate(flat):
            if token < 0:
                raise InvalidArgument("tokens", token, "negative", i)
        prompts = [flat[start:stop] for start, stop in pairwise(indptr)]
        return prompts, [None] * batch if names is None else names

    def plan(
        self,
        tokens: Any,
        indptr: Sequence[int],
        *,
        namespaces: Sequence[Hashable] | None = None,
        reserve: int = 0,
        compute: int = 1,
    ) -> Plan:
        """How many prompts fit: on a copy, they begin."""
        prompts, names = self._prompts(tokens, indptr, namespaces)
        pairs = list(zip(prompts, names, strict=True))
        found = [len(self._find(prompt, name, compute)) for prompt, name in pairs]
        size = self.pool.page_size
        need = [pages_of(len(prompt), size) - n for prompt, n in zip(prompts, found, strict=True)]
        before, admitted = self._available(), 0
        for k in range(1, len(prompts) + 1):
            copy: Any = deepcopy(self)
            ids = [("planned", i) for i in range(k)]
            options: dict[str, Any] = {"ids": ids, "namespaces": names[:k], "compute": compute}
            try:
                copy.allocate_batch(tokens[: indptr[k]], indptr[: k + 1], **options)
            except (OutOfPages, OutOfRows, SequenceTooLong):
                break
            after = copy._available()
            if after < before and after < reserve:
                break
            admitted = k
        return Plan(admitted, [n * size for n in found], need)

    def _check_ids(self, ids: Sequence[Hashable], batch: int) -> None:
        if len(ids) != batch:
            raise InvalidArgument("ids", len(ids), "not one a prompt")
        for i, seq_id in enumerate(ids):
            if seq_id is None:
                raise InvalidArgument("ids", None, "no id", i)
            if seq_id in self.ids or seq_id in ids[:i]:
                raise DuplicateSequence(seq_id)

    def allocate_batch(
        self,
        tokens: Any,
        indptr: Sequence[int],
        *,
        ids: Sequence[Hashable],
        namespaces: Sequence[Hashable] | None = None,
        priority: int = 0,
        compute: int = 1,
    ) -> Allocated:
        """All find what is cached, room is made once, and then they begin in order."""
        prompts, names = self._prompts(tokens, indptr, namespaces)
        self._check_ids(ids, len(prompts))
        for i, prompt in enumerate(prompts):
            if self._too_long(len(prompt)):
                raise SequenceTooLong("tokens", len(prompt), "more pages than a row has", i)
        free = [row for row in range(self.max_sequences) if row not in self.rows]
        if len(prompts) > len(free):
            raise OutOfRows("not that many")
        paths = [self._find(*each, compute) for each in zip(prompts, names, strict=True)]
        locked, size = [node for path in paths for node in path], self.pool.page_size
        needs = [
            pages_of(len(prompt), size) - len(path)
            for prompt, path in zip(prompts, paths, strict=True)
        ]
        if sum(needs) > self._spare(locked):
            raise OutOfPages(sum(needs), self._spare(locked))
        self._make_place(sum(needs), locked)
        taken, step = self.pool.take(sum(needs)), self.pool.step + 1
        for i, prompt in enumerate(prompts):
            mine, taken = taken[: needs[i]], taken[needs[i] :]
            self._begin(ids[i], free[i], (prompt, names[i], paths[i]), mine, priority)
        self.pool.step = step
        cached = [len(path) * size for path in paths]
        return Allocated(free[: len(prompts)], cached, Moves([], []))

    def _make_place(self, need: int, locked: list[Node]) -> None:
        """Nothing can give way."""

    def _begin(
        self, seq_id: Hashable, row: int, prompt: Any, pages: list[int], priority: int
    ) -> None:
        model: Any = self
        self.pool.step += 1
        made = model.row_type(self.pool.step, priority, len(prompt[0]), pages)
        model._add(seq_id, row, made)
        self.pool.step -= 1


class SharedBatches:
    """The same of `SharingCache`."""

    pool: Any
    rows: Any
    prefix: Any
    _make_room: Any
    _add: Any
    row_type: Any

    def _find(self, tokens: list[int], namespace: Hashable, compute: int) -> list[Node]:
        found: list[Node] = self.prefix.path(
            tuple(tokens[: max(len(tokens) - compute, 0)]), namespace
        )
        return found

    def _spare(self, locked: list[Node]) -> int:
        return int(self.pool.available + self.prefix.reclaimable(besides=locked))

    def _make_place(self, need: int, locked: list[Node]) -> None:
        self._make_room(need, locked)

    def _begin(
        self, seq_id: Hashable, row: int, prompt: Any, pages: list[int], priority: int
    ) -> None:
        """Let a sequence begin on the pages that it has found, and new ones."""
        tokens, namespace, path = prompt
        self._count_lookup(tokens, path)
        shared = [node.page for node in path]
        for page in shared:
            self.pool.owners[page] += 1
        self.pool.step += 1
        made = self.row_type(self.pool.step, priority, len(tokens), shared + pages)
        self._add(seq_id, row, made)
        self.pool.step -= 1
        made.tokens, made.namespace, made.path = tokens, namespace, path
        made.computed = len(path) * self.pool.page_size

    def _count_lookup(self, tokens: list[int], path: list[Node]) -> None:
        prefix, size = self.prefix, self.pool.page_size
        prefix._see(path)
        for node in path:
            node.uses = min(node.uses + 1, 255)
        prefix.lookups += 1
        prefix.tokens += len(tokens)
        prefix.pages += len(tokens) // size
        prefix.hit_pages += len(path)
