"""Numbers of namespaces: given upwards, forgotten when idle, begun anew past those in use."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from jitalloc import PagePool, PrefixCache
from jitalloc.errors import CorruptState, InvalidArgument
from jitalloc.prefix.namespaces import (
    FIRST_NAMESPACE,
    LAST_NAMESPACE,
    MAIN_ROOT,
    SWEEP_AT,
    UNKNOWN_ROOT,
    Namespaces,
)


def roots(*numbers: int) -> NDArray[Any]:
    return np.array([-2 - number for number in numbers], np.int64)


def test_roots_of_known_and_unknown_names() -> None:
    names = Namespaces()
    assert (names.root(None), names.root("a")) == (MAIN_ROOT, UNKNOWN_ROOT)
    first = names.make_root("a", roots)
    assert names.make_root("b", roots) == first - 1
    assert names.make_root("a", roots) == names.root("a") == first
    assert names.make_root(None, roots) == MAIN_ROOT
    assert names.numbers == {"a": -2 - first, "b": -1 - first}
    with pytest.raises(InvalidArgument, match="hashable"):
        names.root([])


def test_idle_names_are_forgotten_and_their_numbers_not_given_again() -> None:
    names = Namespaces()
    made = [-2 - names.make_root(i, roots) for i in range(SWEEP_AT)]
    held = made[5::100]
    fresh = -2 - names.make_root("new", lambda: roots(*held, *held))
    assert fresh == made[-1] + 1
    assert names.numbers == {**{i: made[i] for i in range(5, SWEEP_AT, 100)}, "new": fresh}
    assert names.sweep_at == SWEEP_AT


def test_more_names_are_looked_through_later_where_many_are_in_use() -> None:
    names = Namespaces()
    made = [-2 - names.make_root(i, roots) for i in range(SWEEP_AT)]
    names.make_root("new", lambda: roots(*made))
    assert (len(names.numbers), names.sweep_at) == (SWEEP_AT + 1, 2 * SWEEP_AT)


def test_numbers_begin_anew_past_those_in_use() -> None:
    names = Namespaces()
    names.make_root("a", roots)
    names.last = LAST_NAMESPACE - 1
    assert names.make_root("last", roots) == -2 - LAST_NAMESPACE
    first = FIRST_NAMESPACE
    used = roots(0, first, first + 2, LAST_NAMESPACE)
    assert names.numbers["a"] == first + 1
    assert names.make_root("b", lambda: used) == -2 - (first + 3)
    assert names.make_root("c", lambda: used) == -2 - (first + 4)
    names.check(roots(0, LAST_NAMESPACE - 1))  # it may have been made before


def test_a_root_of_no_namespace_is_found() -> None:
    names = Namespaces()
    names.make_root("a", roots)
    names.check(roots(0, *names.numbers.values()))
    with pytest.raises(CorruptState, match=f"namespace {names.last + 1} that was never made"):
        names.check(roots(0, names.last + 1))
    with pytest.raises(CorruptState, match="namespace 1 that"):
        names.check(np.array([UNKNOWN_ROOT]))


def test_names_of_a_copy_go_their_own_way() -> None:
    names = Namespaces()
    names.make_root("a", roots)
    other = names.copy()
    assert other.make_root("b", roots) == -2 - (names.last + 1)
    assert "b" not in names.numbers
    names.replace({"x": 40})
    assert names.make_root("y", roots) == -2 - 41
    names.replace({})
    assert names.make_root("x", roots) == -2 - 42


def test_a_cache_with_namespaces_goes_when_it_is_dropped() -> None:
    pool = PagePool(4, 1)
    cache = PrefixCache(pool)
    cache.insert([1], pool.alloc(1), "a")
    gone = weakref.ref(cache)
    gc.disable()
    try:
        del cache
        assert gone() is None  # so the pool need not tell it of moves
    finally:
        gc.enable()
