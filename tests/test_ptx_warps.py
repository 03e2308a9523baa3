"""Lanes of the PTX machine meet: shuffles, votes, and meetings that are wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from jitalloc.gpu import kernel as _cuda
from tests.ptx.faults import MachineError
from tests.ptx_texts import element, every_order, run, words

pytestmark = [
    pytest.mark.skipif(_cuda.SIMULATED, reason="the machine is compiled by Numba"),
    pytest.mark.usefixtures("ask_machine"),
]


def test_lanes_exchange_values(ask_machine: Any) -> None:
    """Each kind of shuffle, in segments of eight lanes and across all."""
    kinds = [
        ("up", 3, "0x1800"),
        ("down", 3, "0x181f"),
        ("bfly", 5, "0x181f"),
        ("idx", 6, "0x181f"),
    ]
    kinds += [("up", 3, "0"), ("down", 3, "31"), ("bfly", 17, "31"), ("idx", 33, "31")]
    for mode, seed in every_order():
        ask_machine(mode, seed)
        for kind, by, clamp in kinds:
            body = f"""
    mul.lo.s32 %r5, %r0, 10;
    shfl.sync.{kind}.b32 %r6|%p1, %r5, {by}, {clamp}, -1;
    selp.b32 %r7, 1000, 0, %p1;
    add.s32 %r6, %r6, %r7;
    {element("%d1", "%r1", 4)}
    st.global.u32 [%d1], %r6;
"""
            found = run(body, np.zeros(64, np.uint32), 1, 64)
            size = 8 if clamp.startswith("0x18") else 32
            for thread, got in enumerate(found.tolist()):
                lane = thread % 32
                source = {"up": lane - by, "down": lane + by, "bfly": lane ^ by}.get(kind)
                if source is None:
                    source = lane - lane % size + by % size
                inside = source // size == lane // size
                assert got == 10 * (thread - lane + (source if inside else lane)) + 1000 * inside


def test_lanes_vote(ask_machine: Any) -> None:
    body = f"""
    and.b32 %r5, %r0, 3;
    setp.eq.s32 %p1, %r5, 1;
    vote.sync.ballot.b32 %r6, %p1, -1;
    vote.sync.any.pred %p2, %p1, -1;
    vote.sync.all.pred %p3, !%p1, -1;
    vote.sync.uni.pred %p4, %p1, -1;
    match.any.sync.b32 %r8, %r5, -1;
    selp.b32 %r7, 1, 0, %p2;
    selp.b32 %r7, 8, %r7, %p3;
    selp.b32 %r7, 8, %r7, %p4;
    {element("%d1", "%r1", 12)}
    st.global.u32 [%d1], %r6;
    st.global.u32 [%d1+4], %r7;
    st.global.u32 [%d1+8], %r8;
"""
    for mode, seed in every_order():
        ask_machine(mode, seed)
        found = run(body, np.zeros((64, 3), np.uint32).reshape(-1), 2, 32).reshape(64, 3)
        for thread, row in enumerate(found.tolist()):
            assert row == [0x22222222, 1, 0x11111111 << (thread % 4)]


def test_a_part_of_a_warp_meets() -> None:
    """Both halves of a branch vote, each with its own mask."""
    body = f"""
    setp.lt.s32 %p1, %r0, 12;
    setp.eq.s32 %p2, %r0, %r0;
    @%p1 bra Low;
    vote.sync.ballot.b32 %r6, %p2, 0xfffff000;
    bra Done;
Low:
    vote.sync.ballot.b32 %r6, %p2, 0x00000fff;
Done:
    bar.warp.sync -1;
    {element("%d1", "%r1", 4)}
    st.global.u32 [%d1], %r6;
"""
    found = run(body, np.zeros(32, np.uint32), 1, 32)
    assert found.tolist() == [0xFFF] * 12 + [0xFFFFF000] * 20


WRONG_MEETINGS = {
    "not in its own mask": "vote.sync.ballot.b32 %r6, %p1, 0x7fffffff;",
    "lanes that the warp has not": "bar.warp.sync -1;",
    "shuffle from lane": "and.b32 %r5, %r0, 16;\n setp.ne.s32 %p2, %r5, 0;\n"
    "selp.b32 %r6, 0xffff0000, 0x0000ffff, %p2;\n"
    "shfl.sync.bfly.b32 %r7, %r0, 16, 31, %r6;",
    "lanes that have exited": "setp.eq.s32 %p2, %r0, 3;\n @%p2 ret;\n bar.warp.sync -1;",
    "are at different points": "setp.eq.s32 %p2, %r0, 3;\n @%p2 bra Other;\n"
    "vote.sync.ballot.b32 %r6, %p1, -1;\n bra Done;\n"
    "Other:\n vote.sync.ballot.b32 %r6, %p1, -1;\nDone:",
    "are at different barriers": "setp.eq.s32 %p2, %r0, 3;\n @%p2 bra Other;\n"
    "bar.sync 0;\n bra Done;\nOther:\n bar.sync 0;\nDone:",
    "barriers of two kinds": "setp.eq.s32 %p2, %r0, 3;\n @%p2 bra Other;\n"
    "bar.sync 0;\n bra Done;\nOther:\n bar.red.or.pred %p3, 0, %p1;\nDone:",
    "deadlock: 32 of 32": "setp.eq.s32 %p2, %r0, 3;\n @%p2 bra Other;\n"
    "bar.sync 0;\n bra Done;\nOther:\n bar.warp.sync -1;\nDone:",
}


@pytest.mark.parametrize("what", sorted(WRONG_MEETINGS))
def test_a_meeting_that_is_wrong(what: str, ask_machine: Any) -> None:
    block = 24 if "the warp has not" in what else 32
    begin = "setp.eq.s32 %p1, %r0, %r0;\n"
    for mode, seed in every_order():
        ask_machine(mode, seed)
        with pytest.raises(MachineError, match=what):
            run(begin + WRONG_MEETINGS[what], words(0), 1, block)
