"""plan and allocate_batch: prompts that come together."""

from __future__ import annotations

import numpy as np
import pytest

from jitalloc import (
    DuplicateSequence,
    OutOfPages,
    OutOfRows,
    PagedKVCache,
    PagePool,
    PrefixCache,
    SequenceTooLong,
)
from tests.sharing_pairs import SharingPair

A, B = list(range(100, 108)), list(range(200, 208))  # two pages each


def both_of(*prompts: list[int]) -> tuple[list[int], list[int]]:
    return [token for each in prompts for token in each], np.cumsum(
        [0, *map(len, prompts)]
    ).tolist()


def with_cached(*prompts: list[int], num_pages: int = 8) -> SharingPair:
    """A pair with prompts cached that nobody locks."""
    pair = SharingPair(num_pages)
    for prompt in prompts:
        pair.must("allocate", "gone", tokens=prompt)
        pair.must("commit", "gone")
        pair.must("free", "gone")
    return pair


def test_a_page_that_is_shared_is_no_room_for_others() -> None:
    """Four pages are free and two cached: who finds these takes them from the rest, once."""
    pair = with_cached(A, num_pages=6)
    tokens, indptr = both_of([*A, 1], [*A, 2], B, B)
    plan = pair.must("plan", tokens, indptr)
    assert plan == (3, [8, 8, 0, 0], [1, 1, 2, 2])
    made = pair.must("allocate_batch", tokens[: indptr[3]], indptr[:4], ids=["a", "b", "c"])
    assert made == ([0, 1, 2], [8, 8, 0], ([], []))
    assert pair.must("plan", [1], [0, 1]) == (0, [0], [1])


def test_a_prompt_never_takes_what_a_later_one_finds() -> None:
    pair = with_cached(A, B, num_pages=6)
    tokens, indptr = both_of([1] * 8, [*A, 1], [*B, 2])
    assert pair.must("plan", tokens, indptr)[0] == 2  # for whom B would give way
    assert pair.do("allocate_batch", tokens, indptr, ids=[1, 2, 3]) == (OutOfPages, 4, 2, None)
    tokens, indptr = both_of([*A, 1], [*B, 2])
    assert pair.must("allocate_batch", tokens, indptr, ids=[1, 2])[1] == [8, 8]


def test_a_refused_batch_says_which_and_changes_nothing() -> None:
    pair = with_cached(A, num_pages=6)
    tokens, indptr = both_of(A, [1] * 8, [2] * 12, [3])
    with pytest.raises(OutOfPages, match="the prompt at 2 does not fit") as caught:
        pair.cache.allocate_batch(tokens, indptr, ids=range(4))
    assert (caught.value.position, caught.value.requested, caught.value.available) == (2, 7, 5)
    pair.agree()
    with pytest.raises(SequenceTooLong, match=r"tokens\[1\] = 33"):
        pair.cache.allocate_batch(range(34), [0, 1, 34], ids=range(2))
    with pytest.raises(OutOfRows, match="6 of 6 rows are free: none for the prompt at 6"):
        pair.cache.allocate_batch([], [0] * 8, ids=range(7))
    with pytest.raises(DuplicateSequence, match=r"'x', which is ids\[1\], stands there twice"):
        pair.cache.allocate_batch([], [0, 0, 0], ids=["x", "x"])
    pair.agree()


def test_a_plan_leaves_a_reserve() -> None:
    pair = with_cached(A, num_pages=6)
    prompts = both_of([1] * 8, [2] * 8, [3] * 8)
    assert [pair.must("plan", *prompts, reserve=n)[0] for n in (0, 1, 2, 3, 9)] == [3, 2, 2, 1, 0]
    assert pair.must("plan", *both_of([], [], [1]), reserve=9)[0] == 2


@pytest.mark.parametrize(("compute", "found"), [(0, 8), (1, 4), (4, 4), (5, 0), (99, 0)])
def test_tokens_are_left_to_compute(compute: int, found: int) -> None:
    pair = with_cached(A)
    options = {"compute": compute}
    assert pair.must("plan", A, [0, 8], **options)[1] == [found]
    assert pair.must("allocate", "a", tokens=A, **options) == found
    assert pair.must("allocate_batch", A, [0, 8], ids=["b"], **options)[1] == [found]
    assert pair.cache.sequence("b").num_computed == found
    pair.must("commit", "b")
    pair.agree()


def test_rows_between_others_and_ids_of_any_kind() -> None:
    cache = PagedKVCache(PagePool(140, 4), 130, 4)
    cache.allocate_batch(range(128), np.arange(129, dtype=np.int32), ids=range(128))
    cache.free_batch([1, 63, 64, 127])
    made = cache.allocate_batch([1, 2, 3], [0, 1, 2, 3], ids=iter(["x", ("y", 1), 2.5]))
    assert made.rows.tolist() == [1, 63, 64]
    assert cache.rows([("y", 1), 2.5]).tolist() == [63, 64]
    cache.check(held=[])


def test_namespaces_are_looked_up_and_only_a_batch_makes_them() -> None:
    pool = PagePool(16, 4)
    prefix = PrefixCache(pool)
    cache = PagedKVCache(pool, 8, 8, prefix_cache=prefix)
    cache.plan(range(8), [0, 4, 8], namespaces=["x", "y"])
    assert not prefix._namespaces.numbers
    cache.allocate_batch(range(8), [0, 4, 8], ids=[0, 1], namespaces=["x", "y"])
    cache.commit_batch([0, 1])
    assert cache.plan([*range(4), 9], [0, 5], namespaces=["x"]).num_cached.tolist() == [4]
    assert cache.plan([*range(4), 9], [0, 5]).num_cached.tolist() == [0]


def test_ids_follow_a_batch_that_was_cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = PagedKVCache(PagePool(16, 4), 8, 8)
    cache.allocate("before", 1)
    enter = cache._ids.enter_all

    def interrupted(rows: list[int]) -> None:
        cache._ids.by_row[rows[0]] = cache._ids.pending[0]  # so far it came
        raise KeyboardInterrupt

    monkeypatch.setattr(type(cache._ids), "enter_all", lambda _ids, rows: interrupted(rows))
    with pytest.raises(KeyboardInterrupt):
        cache.allocate_batch(range(3), [0, 1, 2, 3], ids=["a", "b", "c"])
    monkeypatch.undo()
    assert enter is not None
    assert cache.rows(["before", "a", "b", "c"]).tolist() == [0, 1, 2, 3]
    cache.check(held=[])
