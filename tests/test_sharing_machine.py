"""Random calls on everything together: pool, prefix cache, sequences of two caches, and slots.

Matches and pins are held across calls, the pool is resized, defragmented and restored beneath
them, sequences give way or are cut; after each call both sides are compared and checked.
"""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from jitalloc._jit import JIT_DISABLED
from tests.oracle_prefix import PREFIX_POLICIES
from tests.sharing_whole import WHOLE_STEPS, WholePair, whole_turn
from tests.test_machine import EVICTION_POLICIES


class WholeMachine(RuleBasedStateMachine):
    """One pool, one prefix cache, two caches, one allocator of slots and its prefix cache."""

    pair: WholePair

    @initialize(
        num_pages=st.sampled_from((4, 6, 10, 20)),
        page_size=st.integers(1, 5),
        order=st.sampled_from(("sorted", "fifo", "lifo")),
        null_page=st.booleans(),
        max_pages=st.sampled_from((3, 6, 12)),
        eviction=st.sampled_from(EVICTION_POLICIES),
        threshold=st.sampled_from((0.0, 0.5, 1.0)),
        sink=st.integers(0, 5),
        window=st.integers(1, 8),
        policy=st.sampled_from(PREFIX_POLICIES),
        pin_budget=st.sampled_from((None, 0, 3)),
        protected_share=st.sampled_from((0.0, 0.3, 1.0)),
    )
    def make(self, **options: Any) -> None:
        self.pair = WholePair(**options)

    @rule(step=st.sampled_from([*WHOLE_STEPS]), seed=st.integers(0, 2**32))
    def turn(self, step: Any, seed: int) -> None:
        whole_turn(self.pair, Random(seed), step)

    @rule(seeds=st.lists(st.integers(0, 2**32), min_size=1, max_size=4))
    def any_turns(self, seeds: list[int]) -> None:
        for seed in seeds:
            whole_turn(self.pair, Random(seed))

    def teardown(self) -> None:
        if hasattr(self, "pair"):
            self.pair.drain()


TestWholeMachine = WholeMachine.TestCase
TestWholeMachine.settings = settings(max_examples=30 if JIT_DISABLED else 120)


@pytest.mark.parametrize("policy", PREFIX_POLICIES)
@pytest.mark.parametrize("seed", range(1 if JIT_DISABLED else 3))
def test_long_histories_leave_nothing_behind(policy: str, seed: int) -> None:
    random = Random(f"{policy} {seed}")
    pair = WholePair(
        policy=policy,
        num_pages=random.choice((8, 16)),
        page_size=random.randrange(1, 6),
        order=random.choice(("sorted", "fifo", "lifo")),
        eviction=random.choice(EVICTION_POLICIES),
    )
    for _ in range(100 if JIT_DISABLED else 600):
        whole_turn(pair, random)
    assert pair.prefix_model.hit_pages or JIT_DISABLED  # which is for short histories only
    assert pair.prefix_model.evicted["pressure"] or JIT_DISABLED
    pair.drain()
