"""Random calls, right and wrong ones, on a prefix cache and its pool, beside their models.

Pages, letters and namespaces are few, so that paths branch, end inside one another and run out
of pages all the time. After each call results, errors and states are compared.
"""

from __future__ import annotations

from typing import Any, ClassVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from jitalloc._jit import JIT_DISABLED
from tests.oracle_prefix import PREFIX_POLICIES
from tests.prefix_pairs import PrefixPair, spell

texts = st.text("ab", max_size=5) | st.text("abc", max_size=9)
namespaces = st.sampled_from((None, None, "x", 3))


class PrefixMachine(RuleBasedStateMachine):
    """One pool and one prefix cache."""

    kind: ClassVar[type[PrefixPair]] = PrefixPair
    pair: PrefixPair

    @initialize(
        num_pages=st.sampled_from((1, 2, 5, 13, 40)),
        page_size=st.sampled_from((1, 2, 3, 4)),
        order=st.sampled_from(("sorted", "fifo", "lifo")),
        null_page=st.booleans(),
        policy=st.sampled_from(PREFIX_POLICIES),
        pin_budget=st.sampled_from((None, 0, 3)),
        protected_share=st.sampled_from((0.0, 0.2, 0.5, 1.0)),
        mask=st.sampled_from((None, None, 0, 1)),
        first=st.lists(texts, max_size=4),
    )
    def make(self, mask: int | None, first: list[str], **options: Any) -> None:
        options["num_pages"] += options["null_page"]
        self.pair = self.kind(**options)
        if mask is not None:
            self.pair.force_collisions(mask)
        for text in first:
            self.pair.store(spell(text, options["page_size"]))

    def tokens(self, text: str, cut: int, change: int | None) -> list[int]:
        """Tokens of `text`, the last page cut short, one token changed."""
        tokens = spell(text, self.pair.pool.page_size)
        tokens = tokens[: len(tokens) - cut] if cut else tokens
        if change is not None and tokens:
            tokens[change % len(tokens)] += 1
        return tokens

    @rule(
        text=texts,
        cut=st.integers(0, 3),
        change=st.none() | st.integers(0, 20),
        namespace=namespaces,
        name=st.sampled_from(("match", "match", "pin")),
        most=st.sampled_from((None, None, 0, 1, 3, 8, -1)),
    )
    def look_up(
        self,
        text: str,
        cut: int,
        change: int | None,
        namespace: Any,
        name: str,
        most: int | None,
    ) -> None:
        options = {"max_tokens": most} if name == "match" else {}
        self.pair.look_up(self.tokens(text, cut, change), namespace, name, **options)

    @rule(
        text=texts,
        cut=st.integers(0, 3),
        change=st.none() | st.integers(0, 20),
        namespace=namespaces,
        name=st.sampled_from(("lookup", "touch")),
    )
    def look(self, text: str, cut: int, change: int | None, namespace: Any, name: str) -> None:
        self.pair.do(name, self.tokens(text, cut, change), namespace)

    @rule(text=texts, cut=st.integers(0, 3), namespace=namespaces, start=st.integers(0, 9))
    def invalidate_tokens(self, text: str, cut: int, namespace: Any, start: int) -> None:
        self.pair.do("invalidate", self.tokens(text, cut, None), namespace, start=start)

    @rule(pages=st.lists(st.integers(-1, 14), max_size=3))
    def invalidate_pages(self, pages: list[int]) -> None:
        self.pair.do("invalidate", pages=pages)

    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        """The caller owns cached pages too."""
        pages = sorted(node.page for node in self.pair.cache_model.nodes.values())
        if pages:
            self.pair.call("share", data.draw(st.lists(st.sampled_from(pages), max_size=3)))

    @rule(
        text=texts,
        cut=st.integers(0, 3),
        namespace=namespaces,
        priority=st.sampled_from((None, 0, 35, 60)),
        lifetime=st.sampled_from((None, 1, 4, 30)),
    )
    def store(
        self, text: str, cut: int, namespace: Any, priority: int | None, lifetime: int | None
    ) -> None:
        options = {"priority": priority, "lifetime": lifetime}
        if self.pair.cache_model.policy != "priority":
            options = {}
        self.pair.store(self.tokens(text, cut, None), namespace, **options)

    @rule(text=texts, data=st.data(), namespace=namespaces)
    def insert_any_pages(self, text: str, data: st.DataObject, namespace: Any) -> None:
        """Pages of the caller, of nobody, of the index, twice, and too many or too few."""
        pair = self.pair
        pair.call("alloc", min(len(text), pair.model.available))
        page = st.integers(0, pair.model.num_pages - 1)
        count = len(text) + data.draw(st.sampled_from((0, 0, 0, -1, 1)))
        pages = data.draw(st.lists(page, min_size=max(count, 0), max_size=max(count, 0)))
        pair.do("insert", spell(text, pair.pool.page_size), pages, namespace)

    @rule(data=st.data())
    def free_own(self, data: st.DataObject) -> None:
        held = self.pair.held()
        if held:
            some = st.lists(st.integers(0, len(held) - 1), unique=True, max_size=6)
            self.pair.call("free", [held[i] for i in data.draw(some)])

    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        if self.pair.matches:
            self.pair.give_back(data.draw(st.integers(0, len(self.pair.matches) - 1)))

    @rule(n=st.integers(-1, 6))
    def evict(self, n: int) -> None:
        self.pair.do("evict", n)

    @rule(release_first=st.booleans())
    def clear(self, release_first: bool) -> None:
        while release_first and self.pair.matches:
            self.pair.give_back()
        self.pair.do("clear")

    @rule(change=st.integers(-4, 4))
    def resize(self, change: int) -> None:
        self.pair.call("resize", max(min(self.pair.model.num_pages + change, 45), 1))

    @rule()
    def defragment(self) -> None:
        self.pair.call("defragment")

    @rule()
    def figures(self) -> None:
        self.pair.agree_on_figures()

    def teardown(self) -> None:
        if hasattr(self, "pair"):
            self.pair.drain()


TestPrefixMachine = PrefixMachine.TestCase
if JIT_DISABLED:
    TestPrefixMachine.settings = settings(max_examples=60)
