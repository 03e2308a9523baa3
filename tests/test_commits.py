"""What is computed of sequences, and that nothing else is ever shared: contents alone tell.

Every slot holds what an engine has written there, a hash of all tokens up to its own, or poison
where nobody has written since its page was taken. Whatever stands in the prefix cache must be
free of poison, and what counts as computed must read back through the block tables.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from jitalloc import PagedKVCache, PagePool, PrefixCache
from jitalloc._jit import JIT_DISABLED
from jitalloc.errors import JitallocError, OutOfPages
from jitalloc.prefix.state import UNCACHED

POISON = -1
SIZE = 4


class Engine:
    """A cache, and what has been written to its slots."""

    def __init__(self, num_pages: int = 14) -> None:
        self.pool = PagePool(num_pages, SIZE)
        self.prefix = PrefixCache(self.pool)
        self.cache = PagedKVCache(self.pool, 5, 8, prefix_cache=self.prefix)
        self.slots = np.full(num_pages * SIZE, POISON)
        self.tokens: dict[Any, list[int]] = {}

    def poison(self) -> None:
        """Pages that are free lose what was written to them."""
        free = np.flatnonzero(self.pool.arrays.refcount == 0)
        self.slots.reshape(-1, SIZE)[free] = POISON

    def places(self, seq_id: Any, start: int, stop: int) -> Any:
        positions = np.arange(start, stop)
        rows = np.full(positions.size, self.cache.row(seq_id), np.int32)
        return self.cache.slot_mapping(rows, positions)

    def contents(self, seq_id: Any, stop: int) -> list[int]:
        tokens = self.tokens[seq_id]
        return [hash(tuple(tokens[: i + 1])) & 0xFFFF for i in range(stop)]

    def compute(self, seq_id: Any, stop: int) -> None:
        """Write what is not computed yet of the first `stop` tokens, as a chunk of a prompt."""
        start = min(self.cache.sequence(seq_id).num_computed, stop)
        places = self.places(seq_id, start, stop)
        self.slots[places] = self.contents(seq_id, stop)[start:]

    # What an engine does.

    def allocate(self, random: Random) -> None:
        tokens = random.choice(([1], [1], [2])) * random.randrange(20)
        seq_id = random.randrange(9)
        if seq_id not in self.cache:
            self.cache.allocate(seq_id, tokens=tokens)
            self.tokens[seq_id] = tokens
            self.poison()

    def commit(self, random: Random) -> None:
        """A chunk is done, or what others have found is asked for."""
        for seq_id in self.some(random, 1):
            n = random.randrange(len(self.tokens[seq_id]) + 1)
            self.compute(seq_id, n)
            cached = self.cache.commit(seq_id, n)
            assert cached <= len(self.tokens[seq_id])

    def commit_batch(self, random: Random) -> None:
        ids = self.some(random, 3)
        numbers = [random.randrange(len(self.tokens[seq_id]) + 1) for seq_id in ids]
        for seq_id, n in zip(ids, numbers, strict=True):
            self.compute(seq_id, n)
        self.cache.commit_batch(self.cache.rows(ids), numbers)

    def append(self, random: Random) -> None:
        """Decoding: all is computed before. Or drafts, of which nothing is."""
        ids, n, computed = self.some(random, 2), random.choice((1, 1, 5)), random.random() < 0.6
        for seq_id in ids:
            if computed:
                self.compute(seq_id, len(self.tokens[seq_id]))
        news = [random.choice((1, 2)) for _ in range(n * len(ids))]
        got = self.cache.append_batch(self.cache.rows(ids), n, tokens=news, computed=computed)
        self.poison()
        pages = self.slots.reshape(-1, SIZE)
        pages[got.copies.dst] = pages[got.copies.src]
        for i, seq_id in enumerate(ids):
            self.tokens[seq_id] = [*self.tokens[seq_id], *news[n * i : n * (i + 1)]]

    def adopt(self, random: Random) -> None:
        """Pages that another engine has filled, or begun to fill."""
        tokens = random.choice(([1], [2])) * random.randrange(12)
        seq_id, done = random.randrange(9), random.randrange(len(tokens) + 1)
        if seq_id not in self.cache:
            pages = self.pool.alloc(-(-len(tokens) // SIZE))
            self.cache.adopt(seq_id, tokens, pages, computed=done)
            self.tokens[seq_id] = tokens
            self.slots[self.places(seq_id, 0, done)] = self.contents(seq_id, done)

    def fork(self, random: Random) -> None:
        for seq_id in self.some(random, 1):
            other = random.randrange(9)
            n = random.choice((None, random.randrange(len(self.tokens[seq_id]) + 1)))
            self.cache.fork(seq_id, other, n)
            self.tokens[other] = self.tokens[seq_id][:n]

    def reorder(self, random: Random) -> None:
        ids = self.some(random, 2)
        parents = random.choices(ids, k=len(ids)) if ids else []
        self.cache.reorder(self.cache.rows(ids), self.cache.rows(parents))
        self.tokens |= dict(zip(ids, [self.tokens[each] for each in parents], strict=True))

    def truncate(self, random: Random) -> None:
        for seq_id in self.some(random, 1):
            n = random.randrange(len(self.tokens[seq_id]) + 1)
            self.cache.truncate(seq_id, n)
            self.tokens[seq_id] = self.tokens[seq_id][:n]

    def free(self, random: Random) -> None:
        for seq_id in self.some(random, 1):
            self.cache.free(seq_id)
            del self.tokens[seq_id]

    def evict(self, random: Random) -> None:
        gone = self.cache.evict()
        if gone is not None:
            del self.tokens[gone.seq_id]

    def some(self, random: Random, most: int) -> list[Any]:
        live = sorted(self.tokens)
        return random.sample(live, min(most, len(live)))

    def check(self) -> None:
        self.cache.check()
        self.poison()
        cached = np.flatnonzero(self.prefix.arrays.following_pages != UNCACHED)
        assert (self.slots.reshape(-1, SIZE)[cached] != POISON).all()
        for seq_id in self.tokens:
            stop = self.cache.sequence(seq_id).num_computed
            assert self.slots[self.places(seq_id, 0, stop)].tolist() == self.contents(seq_id, stop)


CALLS: list[Callable[[Engine, Random], None]] = [
    *[Engine.allocate, Engine.commit, Engine.commit_batch, Engine.append] * 2,
    *[Engine.adopt, Engine.fork, Engine.reorder, Engine.truncate, Engine.free, Engine.evict],
]


def call(engine: Engine, name: Callable[[Engine, Random], None], random: Random) -> None:
    """One call; what fails has changed nothing."""
    with suppress(JitallocError):
        name(engine, random)
    engine.check()


@pytest.mark.parametrize("seed", range(2 if JIT_DISABLED else 12))
def test_nothing_is_shared_that_is_not_computed(seed: int) -> None:
    random, engine = Random(seed), Engine()
    for _ in range(150 if JIT_DISABLED else 400):
        call(engine, random.choice(CALLS), random)
    stats = engine.prefix.stats()
    assert stats.hit_pages > 3
    assert stats.inserted_pages > 3


class Machine(RuleBasedStateMachine):
    """Any call in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.engine = Engine(10)

    @rule(name=st.sampled_from(CALLS), seed=st.integers(0, 2**32))
    def turn(self, name: Any, seed: int) -> None:
        call(self.engine, name, Random(seed))

    @invariant()
    def sound(self) -> None:
        self.engine.check()


TestMachine = Machine.TestCase
if JIT_DISABLED:
    TestMachine.settings = settings(max_examples=20)


def test_a_batch_is_what_its_sequences_are_one_by_one() -> None:
    engines = Engine(40), Engine(40)
    numbers = [9, 0, 5, 12, 7]
    for engine in engines:
        for i, tokens in enumerate(([1] * 9, [2] * 9, [1] * 5, [3] * 17, [2] * 8)):
            engine.cache.allocate(i, tokens=tokens)
    one, batch = (engine.cache for engine in engines)
    expected = [one.commit(i, n) for i, n in enumerate(numbers)]
    assert expected == [8, 0, 4, 12, 4]
    assert batch.commit_batch(range(5), np.array(numbers, np.int32)).tolist() == expected
    assert (batch.tables._slab == one.tables._slab).all()
    assert batch.commit_batch([3, 1], 9).tolist() == [one.commit(3, 9), one.commit(1, 9)]
    assert batch.commit_batch([4, 3]).tolist() == [one.commit(4), one.commit(3)] == [8, 16]
    assert batch.commit_batch([]).size == 0


def test_the_chunks_of_a_prompt_are_shared_while_it_runs() -> None:
    engine = Engine(40)
    prompt = list(range(32))
    engine.cache.allocate("a", tokens=prompt)
    for done in range(4, 33, 4):
        assert engine.cache.commit("a", done) == done
        assert engine.cache.allocate("b", tokens=prompt) == min(done, 28)  # one is left to compute
        engine.cache.free("b")
        assert engine.prefix.num_cached == done // 4


def test_a_refused_commit_changes_nothing() -> None:
    engine = Engine(8)
    engine.cache.allocate("a", tokens=[1] * 32)
    with pytest.raises(OutOfPages):
        engine.cache.allocate("b", tokens=[1] * 32)
    with pytest.raises(JitallocError):
        engine.cache.commit_batch([0], 33)
    assert (engine.cache.sequence("a").num_computed, engine.prefix.num_cached) == (0, 0)
