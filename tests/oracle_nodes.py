"""Cached pages and matches of the plain-Python prefix cache in `oracle_prefix.py`."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

Tokens = tuple[int, ...]
Key = tuple[Hashable, Tokens]
NEVER = float("inf")
PARTIAL_CHILDREN, PARTIAL_TOP = 32, 64  # how many are looked at for a partial match


class Hidden(int):
    """The first token of a page that is not to be found any more: it equals itself alone."""

    def __eq__(self, other: object) -> bool:
        return self is other

    def __ne__(self, other: object) -> bool:
        return self is not other

    def __hash__(self) -> int:
        return id(self)


@dataclass(eq=False)
class Node:
    """A cached page."""

    key: Key
    page: int
    seen: int = 0  # the last walk (match, pin or insert) that came through
    locks: int = 0
    pins: int = 0
    uses: int = 0
    cls: int = 0
    pos: int = 0
    priority: int = 0
    expiry: float = NEVER
    armed: int = 0

    @property
    def tokens(self) -> Tokens:
        """The tokens up to its end, as they were told."""
        return tuple(int(token) for token in self.key[1])

    @property
    def pages(self) -> list[int]:
        """The page as a row of one, which is how the model of the pool renames it."""
        return [self.page]

    @pages.setter
    def pages(self, pages: list[int]) -> None:
        (self.page,) = pages


@dataclass(eq=False)
class Match:
    """What was found: the nodes of the path, and how the next page begins."""

    cache: Any
    path: list[Node]
    partial: tuple[int, int]  # page and tokens
    pinned: bool = False
    locked: bool = True
    pages: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pages = [node.page for node in self.path]


def best_partial(
    nodes: list[Node], tokens: Tokens, namespace: Hashable, matched: int, size: int
) -> tuple[int, int]:
    """The page that continues `tokens[:matched]` furthest, and by how many tokens."""
    length = len(tokens[:matched]) + size  # of a child's whole prefix
    children = [node for node in nodes if len(node.key[1]) == length]
    children.sort(key=lambda node: -node.seen)
    if not matched:  # the tops of all namespaces share one list
        children = children[:PARTIAL_TOP]
    children = [node for node in children if node.key[0] == namespace]
    children = [node for node in children if node.key[1][:matched] == tokens[:matched]]
    best = (-1, 0)
    for node in children[:PARTIAL_CHILDREN]:
        agree = 0
        for mine, theirs in zip(tokens[matched:], node.key[1][matched:-1], strict=False):
            if mine != theirs:
                break
            agree += 1
        if agree > best[1]:
            best = (node.page, agree)
    return best
