"""What a prefix cache must do, in plain Python: one node a page, victims by sorting them all.

Read this beside `oracle.py`. The index is a dictionary from (namespace, all tokens up to here) to
the page that holds the last of them. There are no nodes, no queues and no hashes: a victim is the
smallest of a list. A call looks at everything before it changes anything.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from jitalloc.errors import (
    InvalidArgument,
    InvalidPage,
    NotLocked,
    PageCached,
    PagesLocked,
    PinBudget,
)
from tests import oracle
from tests.oracle_nodes import NEVER, Hidden, Key, Match, Node, Tokens, best_partial

PREFIX_POLICIES = ("lru", "fifo", "mru", "lfu", "slru", "priority")
MOST_USES = 255


class Prefixes:
    """The model of `PrefixCache`, on an `oracle.Pool`."""

    def __init__(
        self,
        pool: oracle.Pool,
        policy: str = "lru",
        default_priority: int = 35,
        pin_budget: int | None = None,
        protected_share: float = 0.8,
    ) -> None:
        self.pool, self.policy, self.default = pool, policy, default_priority
        self.pin_budget, self.protected_share = pin_budget, protected_share
        self.nodes: dict[Key, Node] = {}
        self.clock = self.walks = self.arms = 0
        self.lookups = self.tokens = self.pages = self.hit_pages = self.inserted = 0
        self.evicted = {"requested": 0, "pressure": 0, "cleared": 0}
        pool.caches.append(self)

    @property
    def rows(self) -> dict[Key, Node]:
        """What the pool renames, and counts as an owner of one page each."""
        return self.nodes

    # What can be asked.

    def count(self, name: str) -> int:
        """How many pages have `locks` or `pins`."""
        return sum(getattr(node, name) > 0 for node in self.nodes.values())

    def path(self, tokens: Tokens, namespace: Hashable, behind: Sequence[Node] = ()) -> list[Node]:
        """The nodes of the longest cached prefix, root first; `behind`: those it begins with."""
        found, size = [*behind], self.pool.page_size
        for start in range(len(found) * size, len(tokens) - size + 1, size):
            node = self.nodes.get(self.key_behind(found, tokens[start : start + size], namespace))
            if node is None:
                break
            found.append(node)
        return found

    def key_behind(self, path: Sequence[Node], tokens: Tokens, namespace: Hashable) -> Key:
        """The key of a page with these tokens that follows a path."""
        return (namespace, path[-1].key[1] + tokens) if path else (namespace, tokens)

    def lookup(
        self, tokens: Sequence[int], namespace: Hashable = None
    ) -> tuple[int, list[int], int, int]:
        tokens = tuple(tokens)
        pages = [node.page for node in self.path(tokens, namespace)]
        found = len(pages) * self.pool.page_size
        return (found, pages, *self.partial(tokens, namespace, found))

    def parent(self, node: Node) -> Node | None:
        namespace, tokens = node.key
        return self.nodes.get((namespace, tokens[: -self.pool.page_size]))

    def partial(self, tokens: Tokens, namespace: Hashable, matched: int) -> tuple[int, int]:
        """The page that continues `tokens[:matched]` furthest, and by how many tokens."""
        return best_partial([*self.nodes.values()], tokens, namespace, matched, self.pool.page_size)

    def stats(self) -> dict[str, int]:
        """What was counted since the cache was made."""
        return {
            "lookups": self.lookups,
            "tokens": self.tokens,
            "pages": self.pages,
            "hit_tokens": self.hit_pages * self.pool.page_size,
            "hit_pages": self.hit_pages,
            "inserted_pages": self.inserted,
            **{f"evicted_{reason}": count for reason, count in self.evicted.items()},
        }

    def victims(self) -> list[Node]:
        """Unlocked pages without children, the next victim first."""
        parents = {self.parent(node) for node in self.nodes.values()}
        leaves = [each for each in self.nodes.values() if each not in parents and not each.locks]
        leaves.sort(key=lambda node: (node.cls, node.pos), reverse=self.policy == "mru")
        return leaves

    def is_alone(self, node: Node) -> bool:
        """Whether the cache is the page's only owner, so that it goes free with it."""
        return self.pool.owners[node.page] == 1

    def reclaimable(self, besides: Sequence[Node] = ()) -> int:
        """How many pages eviction would free: nobody else owns them, nobody locks them."""
        free = (each for each in self.nodes.values() if not each.locks and each not in besides)
        return sum(map(self.is_alone, free))

    # What changes it.

    def match(
        self,
        tokens: Sequence[int],
        namespace: Hashable = None,
        *,
        max_tokens: int | None = None,
    ) -> Match:
        if max_tokens is not None and max_tokens < 0:
            raise InvalidArgument("max_tokens", max_tokens, "negative")
        match = self._walk(tokens[:max_tokens], namespace)
        for node in match.path:
            node.uses = min(node.uses + 1, MOST_USES)
        self._lock(match)
        self.lookups += 1
        self.tokens += len(tokens)
        self.pages += len(tokens) // self.pool.page_size
        self.hit_pages += len(match.path)
        return match

    def pin(self, tokens: Sequence[int], namespace: Hashable = None) -> Match:
        budget = self.pool.num_pages // 2 if self.pin_budget is None else self.pin_budget
        fresh = [node for node in self.path(tuple(tokens), namespace) if not node.pins]
        if self.count("pins") + len(fresh) > budget:
            raise PinBudget(len(fresh), budget)
        match = self._walk(tokens, namespace)
        match.pinned = True
        for node in match.path:
            node.pins += 1
        self._lock(match)
        return match

    def release(self, match: Match) -> None:
        if match.cache is not self or not match.locked:
            raise NotLocked("not locked, or by another cache")
        self._expire()
        match.locked = False
        for node in match.path:
            node.locks -= 1
            node.pins -= match.pinned
        if self.policy != "fifo":
            self._touch(match.path)
        self._demote()
        self.pool.step += 1

    unpin = release

    def insert(
        self,
        tokens: Sequence[int],
        pages: Sequence[int],
        namespace: Hashable = None,
        *,
        priority: int | None = None,
        lifetime: int | None = None,
    ) -> tuple[list[int], int, int]:
        tokens, size = tuple(tokens), self.pool.page_size
        if len(pages) != len(tokens) // size:
            raise InvalidArgument("pages", len(pages), "one for each whole page of tokens")
        path = self.path(tokens, namespace)
        present = len(path)
        self._check_adopted(pages, present)
        self._expire()
        for i in range(present, len(pages)):
            node = Node((namespace, tokens[: (i + 1) * size]), pages[i])
            self.nodes[node.key] = node
            self.pool.owners[node.page] += 1
            path.append(node)
        self._see(path)
        own = self.default if priority is None else priority
        expiry = NEVER if lifetime is None else self.pool.step + lifetime
        for i, node in reversed([*enumerate(path)]):
            if i >= present or (own, expiry) > (node.priority, node.expiry):
                self._arm(node, own, expiry)
        new = len(path) - present
        self._touch(path[present:] if self.policy == "fifo" else path)
        self._demote()
        self.inserted += new
        self.pool.step += 1
        return [node.page for node in path], present, new

    def touch(self, tokens: Sequence[int], namespace: Hashable = None) -> int:
        """What a match and its release do, without a look-up being counted."""
        path = self.path(tuple(tokens), namespace)
        self._see(path)
        self._expire()
        for node in path:
            node.uses = min(node.uses + 1, MOST_USES)
        if self.policy != "fifo":
            self._touch(path)
        self._demote()
        self.pool.step += 1
        return len(path) * self.pool.page_size

    def invalidate(
        self,
        tokens: Sequence[int] | None = None,
        namespace: Hashable = None,
        *,
        start: int = 0,
        pages: Sequence[int] | None = None,
    ) -> tuple[int, int]:
        if tokens is not None:
            bad = self.path(tuple(tokens), namespace)[start // self.pool.page_size :][:1]
        else:
            for i, page in enumerate(pages or ()):
                if not self.pool.first <= page < self.pool.num_pages:
                    raise InvalidPage("pages", page, "no page of the pool", i)
            bad = [node for node in self.nodes.values() if node.page in (pages or ())]
        answer = self._drop_behind(bad, "cleared")
        for node in bad:
            if node.locks:
                self._hide(node)
        self.pool.step += 1
        return answer

    def _hide(self, node: Node) -> None:
        """Let the page, and what follows it, not be found any more."""
        at, found = len(node.key[1]) - self.pool.page_size, []
        if isinstance(node.key[1][at], Hidden):
            return
        hidden = Hidden(node.key[1][at])
        for each in list(self.nodes.values()):
            if self._follows(each, node):
                found.append(each)
        for each in found:
            del self.nodes[each.key]
        for each in found:
            namespace, tokens = each.key
            each.key = (namespace, (*tokens[:at], hidden, *tokens[at + 1 :]))
            self.nodes[each.key] = each

    def evict(self, n: int) -> int:
        if n < 0:
            raise InvalidArgument("n", n, "negative")
        self._expire()
        gone = self._evict(n, "requested")
        self.pool.step += 1
        return gone

    def clear(self) -> None:
        if self.count("locks"):
            raise PagesLocked("locked")
        self._evict(len(self.nodes), "cleared")
        self.pool.step += 1

    # A pool that shrinks.

    def merely_cached(self, page: int) -> bool:
        """Whether nobody but the cache holds the page, nor a lock on it."""
        return any(
            node.page == page and not node.locks and self.is_alone(node)
            for node in self.nodes.values()
        )

    def give_up_past(self, num_pages: int) -> None:
        """Pages at or past the new end give way, and all that follow them."""
        past = [node for node in self.nodes.values() if node.page >= num_pages]
        self._drop_behind(past, "pressure")

    # What the calls above are made of.

    def _drop_behind(self, first: Sequence[Node], reason: str) -> tuple[int, int]:
        """Drop these and all that follow them, but what is locked; how many, and how many free."""
        gone = [
            node
            for node in self.nodes.values()
            if not node.locks and any(self._follows(node, each) for each in first)
        ]
        for node in gone:
            del self.nodes[node.key]
        return len(gone), self._give_up(sorted(node.page for node in gone), reason)

    def _follows(self, node: Node, other: Node) -> bool:
        """Whether `node` is `other`, or follows it."""
        (mine, tokens), (theirs, start) = node.key, other.key
        return mine == theirs and tokens[: len(start)] == start

    def _walk(self, tokens: Sequence[int], namespace: Hashable) -> Match:
        tokens = tuple(tokens)
        path = self.path(tokens, namespace)
        self._see(path)
        matched = len(path) * self.pool.page_size
        return Match(self, path, self.partial(tokens, namespace, matched))

    def _see(self, path: list[Node]) -> None:
        self.walks += 1
        for node in path:
            node.seen = self.walks

    def _lock(self, match: Match) -> None:
        for node in match.path:
            node.locks += 1
        self.pool.step += 1

    def _check_adopted(self, pages: Sequence[int], start: int) -> None:
        cached = {node.page for node in self.nodes.values()}
        for i in range(start, len(pages)):
            page = pages[i]
            if not self.pool.first <= page < self.pool.num_pages or not self.pool.owners[page]:
                raise InvalidPage("pages", page, "nobody holds it", i)
            if page in cached or page in pages[start:i]:
                raise PageCached("pages", page, "in the index already", i)

    def _arm(self, node: Node, priority: int, expiry: float) -> None:
        self.arms += 1
        node.priority, node.expiry, node.armed = priority, expiry, self.arms

    def _expire(self) -> None:
        due = [node for node in self.nodes.values() if node.expiry <= self.pool.step]
        for node in sorted(due, key=lambda node: (node.expiry, node.armed)):
            node.priority, node.expiry = self.default, NEVER
            self._push(node)

    def _push(self, node: Node) -> None:
        by_policy: dict[str, Any] = {
            "lfu": node.uses,
            "slru": int(node.uses > 0),
            "priority": node.priority,
        }
        node.cls = by_policy.get(self.policy, 0)
        self.clock += 1
        node.pos = self.clock

    def _touch(self, path: list[Node]) -> None:
        for node in reversed(path):
            self._push(node)

    def _demote(self) -> None:
        if self.policy == "slru":
            capacity = int(self.protected_share * self.pool.num_pages)
            protected = [node for node in self.nodes.values() if node.cls == 1 and not node.locks]
            protected.sort(key=lambda node: node.pos)
            for node in protected[: max(len(protected) - capacity, 0)]:
                node.uses = 0
                self._push(node)

    def _evict(self, n: int, reason: str) -> int:
        gone = []
        while len(gone) < n and (victims := self.victims()):
            del self.nodes[victims[0].key]
            gone.append(victims[0].page)
        self._give_up(gone, reason)
        return len(gone)

    def _give_up(self, pages: list[int], reason: str) -> int:
        self.evicted[reason] += len(pages)
        return self.pool.give_back(pages)

    def reclaim(self, n: int) -> int:
        """Let pages give way until `n` have gone free; there are so many. Return how many did.

        A page that somebody else owns goes only where nothing else is left, and only if it stands
        behind one that will go free.
        """
        gone: list[int] = []
        freed = 0
        while freed < n:
            leaves = self.victims()
            useful = [each for each in leaves if self.is_alone(each)]
            useful = useful or [each for each in leaves if self._hides_one(each)]
            del self.nodes[useful[0].key]
            gone.append(useful[0].page)
            freed += self.is_alone(useful[0])
        assert self._give_up(gone, "pressure") == n
        return len(gone)

    def _hides_one(self, node: Node) -> bool:
        """Whether a page before it would go free, were it not for this one."""
        before = self.parent(node)
        while before is not None and not before.locks:
            if self.is_alone(before):
                return True
            before = self.parent(before)
        return False
