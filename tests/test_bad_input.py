"""What bad input gets: the right error, naming argument, value and place, and nothing changed."""

from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jitalloc import PagedKVCache, PagePool, errors
from jitalloc._jit import JIT_DISABLED
from jitalloc.errors import (
    AllPinned,
    CorruptState,
    DoubleFree,
    DuplicateSequence,
    EntryPinned,
    InvalidArgument,
    InvalidPage,
    InvalidSlot,
    NestedFreeGroup,
    NotLocked,
    OutOfPages,
    OutOfRows,
    OutOfSlots,
    PageCached,
    PageInUse,
    PagesLocked,
    PinBudget,
    SequenceTooLong,
    SlotFree,
    SlotTaken,
    SnapshotError,
    UnknownEntry,
    UnknownSequence,
    WrongDevice,
)
from tests.cache_faults import CACHE_FAULTS
from tests.cache_pairs import cache_state
from tests.pairs import pool_state
from tests.pool_faults import ANY, POOL_FAULTS
from tests.prefix_faults import PREFIX_FAULTS, prefix_caches
from tests.prefix_pairs import cached
from tests.sharing_faults import SHARING_FAULTS, sharing_cache
from tests.sharing_pairs import sharing_state
from tests.slot_faults import SLOT_FAULTS, add_slots
from tests.slot_pairs import slot_prefix_facts, slot_state

FAULTS = {**POOL_FAULTS, **CACHE_FAULTS, **PREFIX_FAULTS, **SHARING_FAULTS, **SLOT_FAULTS}


@pytest.fixture
def at() -> SimpleNamespace:
    """A pool of 16 pages of 4 tokens with three sequences in four rows of 8 pages, and another.

    Pages 0 to 3 are the caller's (3 twice), 4 is released, 5 to 7 are the sequences'.
    """
    pool = PagePool(16, 4)
    pool.alloc(5)
    pool.share([3])
    pool.free([4])
    cache = PagedKVCache(pool, 4, 8)
    for seq_id, tokens in (("a", 6), ("b", 3), ("c", 0)):
        cache.allocate(seq_id, tokens)
    cache.pin("b")
    fifo = PagePool(8, 4, order="fifo", null_page=True)
    fifo.alloc(3)
    full = PagedKVCache(PagePool(4, 4), 1, 1)
    full.allocate("x", 1)
    prefixes = {**vars(prefix_caches()), **vars(sharing_cache())}
    made = SimpleNamespace(pool=pool, cache=cache, fifo=fifo, full=full, **prefixes)
    add_slots(made)
    return made


def states(at: SimpleNamespace) -> tuple[Any, ...]:
    return (
        *map(pool_state, (at.pool, at.fifo, at.full.pool, at.prefix.pool, at.timed.pool)),
        pool_state(at.shared.pool),
        *map(cache_state, (at.cache, at.full)),
        sharing_state(at.shared),
        *map(cached, (at.prefix, at.timed, at.shared.prefix_cache)),
        *(each.stats() for each in (at.prefix, at.timed, at.shared.prefix_cache)),
        at.match.locked,
        slot_state(at.slots),
        *map(slot_prefix_facts, (at.prefixes, at.pinned)),
    )


@pytest.mark.parametrize("name", FAULTS)
def test_bad_input_is_refused_and_changes_nothing(at: SimpleNamespace, name: str) -> None:
    if JIT_DISABLED and name == "pages on a GPU":
        pytest.skip("`free` leaves it to the compiled kernel to refuse what is no NumPy array")
    fault, before = FAULTS[name], states(at)
    with pytest.raises(errors.JitallocError) as caught:
        fault.call(at)
    error: Any = caught.value
    assert type(error) is fault.error
    if fault.argument is not None:
        assert error.argument == fault.argument
        assert error.position == fault.position
        assert fault.argument in str(error)
        if fault.value is not ANY:
            assert error.value == fault.value
            assert type(error.value) is type(fault.value)
            assert repr(fault.value) in str(error)
    assert states(at) == before
    at.cache.check(held=[0, 1, 2, 3, 3])
    at.fifo.check(held=[1, 2, 3])
    at.prefix.check()
    at.prefix.pool.check(held=[1, 2, 3, 4, 5, 6])
    at.timed.check()
    at.shared.check(held=[7, 8, 9])
    for each in (at.slots, at.prefixes, at.pinned):
        each.check()


BASES = {
    OutOfPages: MemoryError,
    OutOfRows: MemoryError,
    InvalidArgument: ValueError,
    InvalidPage: ValueError,
    DoubleFree: ValueError,
    WrongDevice: ValueError,
    PageInUse: ValueError,
    SequenceTooLong: ValueError,
    UnknownSequence: KeyError,
    DuplicateSequence: KeyError,
    OutOfSlots: MemoryError,
    InvalidSlot: ValueError,
    SlotFree: ValueError,
    SlotTaken: ValueError,
    AllPinned: MemoryError,
    EntryPinned: ValueError,
    UnknownEntry: KeyError,
    NestedFreeGroup: RuntimeError,
    SnapshotError: ValueError,
    errors.TraceError: ValueError,
    CorruptState: errors.JitallocError,
    PageCached: ValueError,
    NotLocked: errors.JitallocError,
    PagesLocked: errors.JitallocError,
    PinBudget: errors.JitallocError,
}


def every_error() -> set[type[Exception]]:
    return {
        each
        for each in vars(errors).values()
        if isinstance(each, type) and issubclass(each, errors.JitallocError)
    }


def test_every_error_is_also_one_that_people_catch_already() -> None:
    assert every_error() == {errors.JitallocError, *BASES}
    for error, base in BASES.items():
        assert issubclass(error, base)


def test_every_error_has_bad_input_that_raises_it() -> None:
    raised = {fault.error for fault in FAULTS.values()}
    elsewhere = {errors.JitallocError, errors.TraceError}  # the base, and test_traces.py
    assert raised == every_error() - elsewhere


@pytest.mark.parametrize(
    "fault", ["short", "no run", "repeated", "shrunk too far", "short of slots", "all pinned"]
)
def test_errors_cross_process_boundaries(at: SimpleNamespace, fault: str) -> None:
    with pytest.raises(errors.JitallocError) as caught:
        FAULTS[fault].call(at)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert type(copy) is type(caught.value)
    assert str(copy) == str(caught.value)
    assert vars(copy) == vars(caught.value)


def test_a_key_error_shows_its_message(at: SimpleNamespace) -> None:
    with pytest.raises(KeyError) as caught:
        at.cache.free("x")
    assert str(caught.value) == "no sequence 'x'"


def test_empty_batches_are_valid(at: SimpleNamespace) -> None:
    for empty in ([], np.empty(0, np.int64), (), range(0)):
        assert at.pool.free(empty) == 0
        assert at.pool.share(empty) is None
        assert at.pool.alloc_decode(empty, empty).size == 0
        assert at.pool.alloc_extend(empty, empty, empty).size == 0
        assert at.pool.admit(empty) == 0
        assert at.cache.append_batch(empty, empty).slots.size == 0
        assert at.cache.free_batch(empty) == 0
        assert at.cache.reorder(empty, empty) is None
        assert at.cache.fork_batch(empty, empty) is None
        assert at.slots.free_batch(empty) is None
        assert at.prefixes.find(empty) is None
    at.cache.check(held=[0, 1, 2, 3, 3])
