"""Where users find the public names, and what their pickles say."""

from __future__ import annotations

import importlib
import pickle
from typing import Any

import numpy as np
import pytest

import jitalloc
from jitalloc import PagedKVCache, PagePool, PrefixCache, SlotAllocator, SlotPrefixCache

WINGS = ["pool", "prefix", "sequences", "slots"]
CHOICES = {"Device", "EvictionPolicy", "Order", "PrefixPolicy"}  # types of arguments
EXCEPTIONS = {name for name in jitalloc.__all__ if hasattr(jitalloc.errors, name)}


def records() -> dict[str, Any]:
    """One of each record that the calls answer with."""
    pool = PagePool(64, 4)
    prefix = PrefixCache(pool)
    cache = PagedKVCache(pool, 8, 16, prefix_cache=prefix)
    batch = pool.alloc_batch([1, 2])
    pool.free(batch.pages)
    plan = cache.plan(range(6), [0, 6])
    begun = cache.allocate_batch(range(6), [0, 6], ids=["first"])
    cache.free("first")
    cache.allocate("a", tokens=np.arange(9))
    cache.fork("a", "b")
    appended = cache.append_batch([0, 1], 1)
    table = cache.page_table_csr([0, 1])
    attention = cache.attention_batch([0, 1], 1)
    info, inserted = cache.sequence("a"), prefix.insert([7, 7, 7, 7], pool.alloc(1))
    snapshots = [pool.snapshot(), prefix.snapshot(), cache.snapshot()]
    stats = [pool.stats(), prefix.stats(), cache.stats()]
    slots = SlotPrefixCache(4)
    allocator = SlotAllocator(4)
    slots.insert([1, 2, 3], allocator.alloc(), 0)
    found = slots.find([1, 2])
    made = [
        batch,
        plan,
        begun,
        appended,
        table,
        attention,
        info,
        inserted,
        *snapshots,
        *stats,
        found,
    ]
    made += [slots.stats(), prefix.lookup([7, 7, 7, 7]), prefix.invalidate([7, 7, 7, 7])]
    made += [pool.defragment(), cache.evict("a"), slots.evict()]
    return {type(each).__name__: each for each in made}


RECORDS = records()
KEPT_LIVE = {"BlockTableMirror", "BlockTables", "FreeGroup", "PagePool", "PagedKVCache"}
KEPT_LIVE |= {"PrefixBatch", "PrefixCache", "PrefixMatch", "SlotAllocator", "SlotPrefixCache"}


def test_every_public_class_is_an_exception_a_record_or_lives() -> None:
    classes = {name for name in jitalloc.__all__ if isinstance(getattr(jitalloc, name), type)}
    assert classes == EXCEPTIONS | set(RECORDS) | KEPT_LIVE


def same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return bool(np.array_equal(one, other))
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if type(one).__name__ in RECORDS:
        names = type(one).__dataclass_fields__
        return all(same(getattr(one, name), getattr(other, name)) for name in names)
    return bool(one == other)


@pytest.mark.parametrize("name", RECORDS)
def test_records_are_pickled_under_the_name_that_users_know(name: str) -> None:
    record = RECORDS[name]
    assert (type(record).__module__, getattr(jitalloc, name)) == ("jitalloc", type(record))
    text = pickle.dumps(record, protocol=0)
    assert f"cjitalloc\n{name}\n".encode() in text
    again = pickle.loads(text)
    assert type(again) is type(record)
    assert same(record, again)


@pytest.mark.parametrize("name", sorted(EXCEPTIONS))
def test_errors_stay_in_their_module(name: str) -> None:
    assert getattr(jitalloc, name).__module__ == "jitalloc.errors"


@pytest.mark.parametrize("wing", WINGS)
def test_a_wing_hands_on_its_public_names(wing: str) -> None:
    module = importlib.import_module(f"jitalloc.{wing}")
    assert set(module.__all__) <= set(jitalloc.__all__)
    for name in module.__all__:
        assert getattr(module, name) is getattr(jitalloc, name)


def test_every_public_name_stands_in_one_wing() -> None:
    handed = [
        name for wing in WINGS for name in importlib.import_module(f"jitalloc.{wing}").__all__
    ]
    assert len(handed) == len(set(handed))
    assert set(jitalloc.__all__) - set(handed) - EXCEPTIONS == {"NULL", "warmup", *CHOICES}


def test_the_classes_of_the_gpu_stand_in_cuda() -> None:
    cuda = importlib.import_module("jitalloc.cuda")
    for name in cuda.__all__:
        assert issubclass(getattr(cuda, name), getattr(jitalloc, name.removeprefix("Cuda")))
