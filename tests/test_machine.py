"""Random calls, right and wrong ones, on a pool and the sequences on it, beside their models.

Sizes are tiny, so that pages, rows and table width run out all the time. After each call
results, errors and states are compared, and `check` must find nothing.
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.cache_pairs import CachePair

EVICTION_POLICIES = ("lru", "lfu", "longest", "priority", "streaming")
IDS = ("a", ("b", 1), 3, b"d", 0.5)
seq_ids = st.sampled_from((*IDS, None))
tokens = st.integers(-1, 14)
Rows = st.SearchStrategy[list[int]]


def lists(of: list[int], **options: Any) -> Rows:
    """Lists of these numbers; only the empty one where there are none."""
    return st.lists(st.sampled_from(of), **options) if of else st.just([])


class PagingMachine(RuleBasedStateMachine):
    """One pool and one cache."""

    pair: CachePair

    @initialize(
        num_pages=st.sampled_from((1, 2, 5, 8, 13, 66)),
        page_size=st.sampled_from((1, 2, 3, 4, 5)),
        order=st.sampled_from(("sorted", "fifo", "lifo")),
        null_page=st.booleans(),
        max_sequences=st.integers(1, 5),
        max_pages=st.integers(1, 5),
        eviction=st.sampled_from(EVICTION_POLICIES),
        threshold=st.sampled_from((0.0, 0.3, 0.5, 0.9, 1.0)),
        sink=st.integers(0, 5),
        window=st.integers(1, 7),
        lengths=st.lists(st.integers(0, 9), max_size=len(IDS)),
    )
    def make(self, lengths: list[int], **options: Any) -> None:
        options["num_pages"] += options["null_page"]
        self.pair = CachePair(**options)
        for seq_id, length in zip(IDS, lengths, strict=False):
            self.pair.do("allocate", seq_id, length)

    # The pool, by a caller that holds pages beside the sequences.

    @rule(n=st.integers(-1, 9), contiguous=st.booleans())
    def alloc(self, n: int, contiguous: bool) -> None:
        n = min(n, self.pair.model.num_pages)  # more is refused before all else
        wrong_twice = contiguous and n < 0 and self.pair.model.order != "sorted"
        if not wrong_twice:
            self.pair.call("alloc", n, contiguous=contiguous)

    @rule(counts=st.lists(st.integers(-1, 3), max_size=4))
    def alloc_batch(self, counts: list[int]) -> None:
        self.pair.call("admit", counts)
        self.pair.call("alloc_batch", counts)

    @rule(data=st.data(), group=st.booleans())
    def free(self, data: st.DataObject, group: bool) -> None:
        held, model = self.pair.held(), self.pair.model
        pages = [held[i] for i in data.draw(lists([*range(len(held))], unique=True))]
        not_held = [*model.free_list, *model.released, -1, 70, *pages]
        pages += data.draw(st.just([]) | lists(not_held, max_size=1))
        if group:
            self.pair.free_group([pages[:1], pages[1:]])
        else:
            self.pair.call("free", pages)

    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        anything = [*range(-1, self.pair.model.num_pages + 1)]
        pages = lists(self.pair.held(), max_size=3) | lists(anything, max_size=2)
        self.pair.call("share", data.draw(pages))

    @rule(data=st.data())
    def free_slots(self, data: st.DataObject) -> None:
        size = self.pair.model.page_size
        pages = data.draw(lists([*self.pair.held(), -1], max_size=4))
        offsets = data.draw(st.lists(st.integers(0, size - 1), min_size=4, max_size=4))
        slots = [page * size + offset for page, offset in zip(pages, offsets, strict=False)]
        self.pair.call("free_slots", slots)

    @rule(data=st.data(), decode=st.booleans())
    def extend(self, data: st.DataObject, decode: bool) -> None:
        size, held = self.pair.model.page_size, self.pair.held()
        batch = []
        for _ in range(data.draw(st.integers(0, 3))):
            prefix = data.draw(st.integers(0, 2 * size)) if held else 0
            page = data.draw(st.sampled_from(held)) if prefix else 0
            last = page * size + (prefix - 1) % size if prefix else -1
            batch.append([prefix, prefix + data.draw(st.integers(0, 6)), last])
        if batch and data.draw(st.integers(0, 4)) == 0:
            batch[-1][data.draw(st.integers(0, 2))] = data.draw(st.integers(-2, 40))
        prefix_lens, seq_lens, last_slots = ([each[i] for each in batch] for i in range(3))
        if decode:
            self.pair.call("alloc_decode", [each + 1 for each in prefix_lens], last_slots)
        else:
            self.pair.call("alloc_extend", prefix_lens, seq_lens, last_slots)

    @rule(name=st.sampled_from(("merge", "defragment", "clear")), clear_first=st.booleans())
    def upkeep(self, name: str, clear_first: bool) -> None:
        if name == "clear":
            if not clear_first and self.pair.cache_model.rows:
                return  # refused; test_bad_input.py has it
            self.pair.do("clear")
        self.pair.call(name)

    @rule(change=st.integers(-3, 3))
    def resize(self, change: int) -> None:
        self.pair.call("resize", min(self.pair.model.num_pages + change, 70))

    @rule()
    def go_on_from_a_snapshot(self) -> None:
        pair, snapshot = self.pair, self.pair.cache.snapshot()
        pair.cache.clear()
        pair.pool.try_alloc(1)
        pair.cache.restore(snapshot)

    # The sequences.

    def rows(self, data: st.DataObject, distinct: bool = True) -> list[int]:
        """Mostly live rows, each at most once where they are to be `distinct`."""
        live = lists(sorted(self.pair.cache_model.rows), unique=distinct, max_size=5)
        return data.draw(live | live | live | st.lists(st.integers(-1, 5), max_size=4))

    @rule(seq_id=seq_ids, tokens=tokens, priority=st.integers(-1, 1))
    def allocate(self, seq_id: Any, tokens: int, priority: int) -> None:
        self.pair.do("allocate", seq_id, tokens, priority=priority)

    @rule(seq_id=seq_ids, n=st.integers(0, 6))
    def append(self, seq_id: Any, n: int) -> None:
        self.pair.do("append", seq_id, n)

    @rule(data=st.data(), same=st.booleans())
    def append_batch(self, data: st.DataObject, same: bool) -> None:
        rows = self.rows(data)
        counts = data.draw(st.lists(st.integers(-1, 4), min_size=len(rows), max_size=len(rows)))
        n: Any = counts
        if same:
            n = data.draw(st.integers(0, 4))
            counts = [n] * len(rows)
        self.pair.compare(
            lambda: self.pair.cache.append_batch(rows, n),
            lambda: self.pair.cache_model.append_batch(rows, counts),
        )

    @rule(data=st.data(), same=st.booleans(), reserve=st.integers(0, 3))
    def room_for(self, data: st.DataObject, same: bool, reserve: int) -> None:
        rows = self.rows(data)
        counts = data.draw(st.lists(st.integers(-1, 4), min_size=len(rows), max_size=len(rows)))
        n: Any = data.draw(st.integers(0, 4)) if same else counts
        self.pair.do("room_for", rows, n, reserve=reserve)

    @rule(
        lengths=st.lists(st.integers(0, 12), max_size=4),
        ids=st.lists(seq_ids, max_size=4),
        reserve=st.integers(0, 3),
    )
    def allocate_batch(self, lengths: list[int], ids: list[Any], reserve: int) -> None:
        indptr = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
        self.pair.do("plan", range(indptr[-1]), indptr, reserve=reserve)
        self.pair.do("allocate_batch", range(indptr[-1]), indptr, ids=ids)

    @rule(seq_id=seq_ids, n=st.integers(0, 9), computed=st.none() | st.integers(-1, 10))
    def adopt(self, seq_id: Any, n: int, computed: int | None) -> None:
        need = min(-(-n // self.pair.model.page_size), self.pair.model.available)
        pages = self.pair.result("alloc", need)
        if self.pair.do("adopt", seq_id, [7] * n, pages, computed=computed)[0] != "returned":
            self.pair.call("free", pages)

    @rule(src=seq_ids, dst=seq_ids, num_tokens=st.none() | st.integers(-1, 9))
    def fork(self, src: Any, dst: Any, num_tokens: int | None) -> None:
        self.pair.do("fork", src, dst, num_tokens)

    @rule(data=st.data())
    def fork_batch(self, data: st.DataObject) -> None:
        empty = [row for row, at in self.pair.cache_model.rows.items() if not at.length]
        dst = data.draw(lists(empty, unique=True)) or self.rows(data)
        src = self.rows(data, distinct=False)
        size = min(len(src), len(dst))
        self.pair.do("fork_batch", src[:size], dst[:size])

    @rule(data=st.data())
    def reorder(self, data: st.DataObject) -> None:
        rows, parents = self.rows(data), self.rows(data, distinct=False)
        size = min(len(rows), len(parents))
        self.pair.do("reorder", rows[:size], parents[:size])

    @rule(seq_id=seq_ids, tokens=tokens)
    def truncate(self, seq_id: Any, tokens: int) -> None:
        self.pair.do("truncate", seq_id, tokens)

    @rule(seq_id=seq_ids)
    def free_sequence(self, seq_id: Any) -> None:
        self.pair.do("free", seq_id)

    @rule(data=st.data())
    def free_batch(self, data: st.DataObject) -> None:
        self.pair.do("free_batch", self.rows(data))

    @rule(seq_id=seq_ids, name=st.sampled_from(("pin", "unpin")), priority=st.integers(-2, 2))
    def mark(self, seq_id: Any, name: str, priority: int) -> None:
        self.pair.do(name, seq_id)
        self.pair.do("set_priority", seq_id, priority)

    @rule(seq_id=seq_ids)
    def evict(self, seq_id: Any) -> None:
        self.pair.do("select_eviction_target")
        self.pair.do("evict", seq_id)

    @rule(utilization=st.sampled_from((None, 0.0, 0.29, 0.5, 0.7, 1.0)))
    def evict_to(self, utilization: float | None) -> None:
        self.pair.do("evict_to", utilization)

    @rule(seq_id=seq_ids, sink=st.integers(-1, 6), window=st.integers(-1, 9))
    def cut(self, seq_id: Any, sink: int, window: int) -> None:
        self.pair.do("apply_streaming_llm", seq_id, sink, window)

    @rule(data=st.data(), same=st.booleans())
    def attention_batch(self, data: st.DataObject, same: bool) -> None:
        rows = self.rows(data, distinct=False)
        counts = data.draw(st.lists(st.integers(-1, 6), min_size=len(rows), max_size=len(rows)))
        self.pair.do("attention_batch", rows, data.draw(st.integers(0, 3)) if same else counts)

    @rule()
    def look(self) -> None:
        self.pair.agree_on_figures()
        self.pair.agree_on_layouts()

    @invariant()
    def both_sides_agree(self) -> None:
        if hasattr(self, "pair"):
            self.pair.agree()


TestPagingMachine = PagingMachine.TestCase
