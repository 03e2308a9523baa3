"""Blocks of the PTX machine: barriers, atomics, turns in each order, and what is counted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from jitalloc.gpu import kernel as _cuda
from tests.ptx.machine import counted
from tests.ptx_texts import SEEDS, SHARED, element, every_order, run, words

pytestmark = [
    pytest.mark.skipif(_cuda.SIMULATED, reason="the machine is compiled by Numba"),
    pytest.mark.usefixtures("ask_machine"),
]


def test_a_barrier_orders_shared_memory(ask_machine: Any) -> None:
    """Each thread hands its number to the next one, across warps; all see the greatest vote."""
    body = f"""
    mov.u64 %d5, room;
    mad.wide.u32 %d6, %r0, 4, %d5;
    st.shared.u32 [%d6], %r0;
    bar.sync 0;
    add.s32 %r5, %r0, 1;
    rem.u32 %r5, %r5, %r3;
    mad.wide.u32 %d6, %r5, 4, %d5;
    ld.shared.u32 %r6, [%d6];
    setp.eq.s32 %p1, %r0, 70;
    bar.red.or.pred %p2, 0, %p1;
    bar.red.and.pred %p3, 0, !%p1;
    bar.red.popc.u32 %r7, 0, !%p1;
    selp.b32 %r8, 1000, 0, %p2;
    selp.b32 %r8, 0, %r8, %p3;
    add.s32 %r6, %r6, %r8;
    mad.lo.s32 %r6, %r7, 10000, %r6;
    {element("%d1", "%r1", 4)}
    st.global.u32 [%d1], %r6;
"""
    shared = ".shared .align 4 .b8 room[400];"
    for mode, seed in every_order():
        ask_machine(mode, seed)
        found = run(body, np.zeros(200, np.uint32), 2, 100, shared=shared)
        wanted = [(n % 100 + 1) % 100 + 1000 + 990000 for n in range(200)]
        assert found.tolist() == wanted


def test_threads_that_have_left_are_not_waited_for() -> None:
    body = "setp.ge.s32 %p1, %r0, 64;\n @%p1 ret;\n bar.sync 0;\n st.global.u32 [%d0], %r3;"
    assert int(run(body, words(0), 1, 96)[0]) == 96


def test_blocks_run_in_each_order(ask_machine: Any) -> None:
    """An atomic draws tickets: they tell who came when."""
    body = f"""
    atom.global.add.u64 %d5, [%d0], 1;
    {element("%d1", "%r1")}
    st.global.u64 [%d1+8], %d5;
"""
    orders = {}
    for mode, seed in every_order():
        ask_machine(mode, seed)
        found = run(body, np.zeros(321, np.uint64), 10, 32).tolist()
        assert found[0] == 320
        assert sorted(found[1:]) == list(range(320))
        orders[mode, seed] = tuple(found[1:])
    assert orders["order", 1] == tuple(range(320))
    assert orders["reversed", 1] == tuple(reversed(range(320)))
    assert len(set(orders.values())) == len(orders)


def test_a_seed_repeats_its_order(ask_machine: Any) -> None:
    body = "atom.global.add.u64 %d5, [%d0], 1;\n" + element("%d1", "%r1")
    body += "st.global.u64 [%d1+8], %d5;"
    found = []
    for _ in range(2):
        ask_machine("random", 5)
        found.append(run(body, np.zeros(321, np.uint64), 10, 32).tolist())
    assert found[0] == found[1]


def test_an_update_that_is_no_atomic_loses_some(ask_machine: Any) -> None:
    """In order, no thread comes between a load and its store; at random one does."""
    body = "ld.global.u64 %d5, [%d0];\n add.s64 %d5, %d5, 1;\n st.global.u64 [%d0], %d5;"
    assert int(run(body, words(0), 4, 32)[0]) == 128
    for seed in SEEDS:
        ask_machine("random", seed)
        assert int(run(body, words(0), 4, 32)[0]) < 128


# Counts.


def test_launches_are_counted(ask_machine: Any) -> None:
    body = """
    mov.u64 %d5, room;
    st.shared.u32 [%d5], 3;
    bar.sync 0;
    setp.ne.s32 %p1, %r1, 5;
    @%p1 bra Done;
    ld.global.u64 %d6, [%d0];
    st.global.u32 [%d0], %r0;
    membar.gl;
    atom.global.add.u64 %d6, [%d0+8], 1;
Done:
"""
    for mode, seed in every_order():
        ask_machine(mode, seed)
        with counted() as launches:
            run(body, words(0, 0), 2, 4, shared=SHARED)
            run("", words(0))
        first, second = launches
        assert (first.kernel, first.grid, first.block) == ("test", 2, 4)
        common, rare = 6 + 5 + 1, 4
        assert first.instructions == 8 * common + rare
        assert first.most_instructions == common + rare
        assert (first.loads, first.stores, first.atomics, first.bytes) == (1, 1, 1, 8 + 4 + 8)
        assert (first.most_accesses, first.barriers, first.shared, first.fences) == (3, 2, 8, 1)
        assert (second.instructions, second.bytes, second.barriers) == (7, 0, 0)
    with counted() as launches:
        pass
    assert launches == []
