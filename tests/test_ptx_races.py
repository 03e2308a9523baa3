"""The PTX machine finds races and lost fences, and shows stores late."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from jitalloc.gpu import kernel as _cuda
from tests.ptx.faults import MachineError
from tests.ptx_texts import SHARED, element, every_order, run, words

pytestmark = [
    pytest.mark.skipif(_cuda.SIMULATED, reason="the machine is compiled by Numba"),
    pytest.mark.usefixtures("ask_machine"),
]

STUCK_SEED = 1


TAKE = "atom.global.add.u64 %d5, [%d0+8], 1;\n"
# The last block reads what all have written; see `last_block` of the kernels.
HAND_OVER = """
    mad.wide.u32 %d6, %r2, 8, %d0;
    add.s32 %r5, %r2, 7;
    cvt.u64.u32 %d7, %r5;
    st.global.u64 [%d6+16], %d7;
    {give}
    atom.global.add.u64 %d5, [%d0+8], 1;
    mov.u32 %r6, %nctaid.x;
    sub.s32 %r6, %r6, 1;
    cvt.u64.u32 %d8, %r6;
    setp.ne.s64 %p1, %d5, %d8;
    @%p1 ret;
    {take}
    mov.u64 %d9, 0;
    mov.u32 %r7, 0;
    mov.u64 %d10, %d0;
Sum:
    ld.global.u64 %d11, [%d10+16];
    add.s64 %d9, %d9, %d11;
    add.s64 %d10, %d10, 8;
    add.s32 %r7, %r7, 1;
    setp.le.u32 %p2, %r7, %r6;
    @%p2 bra Sum;
    st.global.u64 [%d0], %d9;
"""


def hand_over(give: str, take: str, blocks: int = 6) -> bool:
    """Return whether the last block found what all have written."""
    body = HAND_OVER.format(give=give, take=take)
    data = run(body, np.zeros(2 + blocks, np.uint64), blocks)
    return int(data[0]) == sum(range(7, 7 + blocks))


def test_fences_hand_over_between_blocks(ask_machine: Any) -> None:
    for mode, seed in every_order():
        ask_machine(mode, seed, "race", "weak")
        assert hand_over("membar.gl;", "membar.gl;")


@pytest.mark.parametrize(("give", "take"), [("", "membar.gl;"), ("membar.gl;", ""), ("", "")])
def test_a_lost_fence_is_a_race(give: str, take: str, ask_machine: Any) -> None:
    for mode, seed in every_order():
        ask_machine(mode, seed, "race")
        with pytest.raises(MachineError, match=r"race in global memory: write at .*ld\.global"):
            hand_over(give, take)


def test_a_lost_fence_shows_in_weak_memory(ask_machine: Any) -> None:
    for mode, seed in every_order():
        ask_machine(mode, seed)
        assert hand_over("", "")
        ask_machine(mode, seed, "weak")
        assert not hand_over("", "membar.gl;")


def test_what_was_read_is_stale_until_a_fence(ask_machine: Any) -> None:
    """A thread waits for a flag by plain reads, which see what they saw at first."""
    body = """
    setp.ne.s32 %p1, %r2, 0;
    @%p1 bra Wait;
    ld.global.u64 %d5, [%d0+16];
    membar.gl;
    atom.global.exch.b64 %d5, [%d0], 1;
    ret;
Wait:
    ld.global.u64 %d6, [%d0];
    {fence}
    setp.eq.s64 %p2, %d6, 0;
    @%p2 bra Wait;
"""
    ask_machine("random", 1, "weak")
    run(body.format(fence="membar.gl;"), np.zeros(3, np.uint64), 2)
    # Whether it looks before the flag is set is a matter of the seed.
    ask_machine("random", STUCK_SEED, "weak")
    with pytest.raises(MachineError, match="endless loop"):
        run(body.format(fence=""), np.zeros(3, np.uint64), 2)


def test_a_block_sees_what_it_has_stored_itself(ask_machine: Any) -> None:
    body = f"""
    {element("%d1", "%r1", 4)}
    st.global.u32 [%d1], %r1;
    st.global.u8 [%d1+3], %r0;
    bar.sync 0;
    xor.b32 %r5, %r1, 1;
    {element("%d2", "%r5", 4)}
    ld.global.u32 %r6, [%d2];
    bar.sync 0;
    st.global.u32 [%d1], %r6;
"""
    for mode, seed in every_order():
        ask_machine(mode, seed, "weak", "race")
        found = run(body, np.zeros(128, np.uint32), 2, 64).tolist()
        assert found == [(n ^ 1) | ((n % 64) ^ 1) << 24 for n in range(128)]


def test_an_atomic_sees_what_its_block_has_stored(ask_machine: Any) -> None:
    body = "st.global.u64 [%d0], 40;\n atom.global.add.u64 %d5, [%d0], 2;"
    ask_machine("random", 1, "weak")
    assert int(run(body, words(7), 1, 2)[0]) in (42, 44)


@pytest.mark.parametrize("space", ["shared", "global"])
def test_a_race_within_a_block(space: str, ask_machine: Any) -> None:
    base = "mov.u64 %d5, room;\n" if space == "shared" else "mov.u64 %d5, %d0;\n"
    mine = base + "mad.wide.u32 %d6, %r0, 4, %d5;\n"
    store, load = f"st.{space}.u32 [%d6], %r0;\n", f"ld.{space}.u32 %r6, [%d5+4];\n"
    wild = f"{base}st.{space}.u32 [%d5], %r0;\n"
    one = f"{base}st.{space}.u32 [%d5], 5;\n"
    for mode, seed in every_order():
        ask_machine(mode, seed, "race")
        run(mine + store + "bar.sync 0;\n" + load, np.zeros(8, np.uint64), 1, 8, shared=SHARED)
        run(one, np.zeros(8, np.uint64), 1, 8, shared=SHARED)  # all write the same
        for body in (mine + store + load.replace("+4", "+8"), wild):
            with pytest.raises(MachineError, match=f"race in {space} memory|before it is written"):
                run(body, np.zeros(8, np.uint64), 1, 8, shared=SHARED)


def test_atomics_are_no_race_with_each_other(ask_machine: Any) -> None:
    for mode, seed in every_order():
        ask_machine(mode, seed, "race")
        assert int(run("atom.global.add.u64 %d5, [%d0], 1;", words(0), 3, 40)[0]) == 120
        with pytest.raises(MachineError, match=r"race in global memory.*atomic write"):
            run(f"{TAKE} st.global.u64 [%d0+8], %d5;", words(0, 5), 3)


@pytest.mark.parametrize(
    ("code", "old", "new"),
    [
        ("add.u64 {0}, 5", 7, 12),
        ("and.b64 {0}, 5", 7, 5),
        ("or.b64 {0}, 8", 7, 15),
        ("xor.b64 {0}, 5", 7, 2),
        ("exch.b64 {0}, 5", 7, 5),
        ("min.s64 {0}, -5", 7, -5),
        ("max.s64 {0}, -5", 7, 7),
        ("min.u64 {0}, -5", 7, 7),
        ("max.u64 {0}, -5", 7, -5),
        ("cas.b64 {0}, 7, 9", 7, 9),
        ("cas.b64 {0}, 8, 9", 7, 7),
    ],
)
def test_atomics(code: str, old: int, new: int) -> None:
    name, _, rest = code.partition(" ")
    found = run(
        f"atom.global.{name} %d5, {rest.format('[%d0]')};\n st.global.u64 [%d0+8], %d5;",
        words(old, 0),
    )
    assert found.tolist() == words(new, old).tolist()
    body = "mov.u64 %d6, room;\n ld.global.u64 %d7, [%d0];\n st.shared.u64 [%d6], %d7;\n"
    body += f"atom.shared.{name} %d5, {rest.format('[%d6]')};\n ld.shared.u64 %d8, [%d6];\n"
    body += "st.global.u64 [%d0], %d8;\n st.global.u64 [%d0+8], %d5;"
    assert run(body, words(old, 0), shared=SHARED).tolist() == found.tolist()
