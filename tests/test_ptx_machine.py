"""The PTX machine finds what is planted: wild accesses, races, lost fences, broken meetings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from jitalloc import _cuda
from tests.ptx.faults import MachineError
from tests.ptx.machine import counted
from tests.ptx.settings import Settings, settings
from tests.ptx_texts import element, run, words

pytestmark = pytest.mark.skipif(_cuda.SIMULATED, reason="the machine is compiled by Numba")

SHARED = ".shared .align 8 .b8 room[64];"
SEEDS = range(1, 9)


@pytest.fixture(autouse=True)
def in_order(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Run launches as asked for in a test, whatever the environment says."""

    def ask(mode: str = "order", seed: int = 1, *watch: str) -> None:
        for name, value in vars(Settings(mode, seed, watch, quantum=3, limit=100_000)).items():
            monkeypatch.setattr(settings, name, value)

    ask()
    return ask


def every_order() -> list[tuple[str, int]]:
    return [("order", 1), ("reversed", 1), *(("random", seed) for seed in SEEDS)]


# Memory.


@pytest.mark.parametrize("at", [-8, -1 << 40, 8 * 4, 8 * 4 + 4096, 1 << 60])
@pytest.mark.parametrize("code", ["ld.global.u64 %d3, [%d2];", "st.global.u64 [%d2], %d0;"])
@pytest.mark.parametrize("access", ["", "atom"])
def test_an_access_outside_of_every_array(code: str, access: str, at: int) -> None:
    if access:
        code = "atom.global.add.u64 %d3, [%d2], 1;"
    with pytest.raises(MachineError, match="out of bounds") as caught:
        run(f"add.s64 %d2, %d0, {at};\n{code}", np.zeros(4, np.uint64))
    assert code in str(caught.value)


def test_an_access_that_ends_outside() -> None:
    data = np.zeros(3, np.uint32)
    run("st.global.u32 [%d0+8], %r0;", data)
    with pytest.raises(MachineError, match="out of bounds: 8 bytes from the start of array 0"):
        run("st.global.u64 [%d0+8], %d0;", data)


@pytest.mark.parametrize(("kind", "size"), [("u16", 2), ("u32", 4), ("u64", 8)])
def test_an_access_that_is_not_aligned(kind: str, size: int) -> None:
    for at in range(1, size):
        with pytest.raises(MachineError, match="not aligned"):
            run(f"ld.global.{kind} %d3, [%d0+{at}];", np.zeros(4, np.uint64))
        shared = f"mov.u32 %r5, room;\n ld.shared.{kind} %d3, [%r5+{at}];"
        with pytest.raises(MachineError, match="not aligned"):
            run(shared.replace("%r5", "%d5").replace("u32", "u64", 1), words(0), shared=SHARED)


@pytest.mark.parametrize("at", [-8, 64, 4096, -1 << 40])
def test_an_access_outside_of_shared_memory(at: int) -> None:
    with pytest.raises(MachineError, match="shared access of 8 bytes out of bounds"):
        run(f"mov.u64 %d5, room;\n st.shared.u64 [%d5+{at}], %d0;", words(0), shared=SHARED)


def test_shared_memory_is_read_before_it_is_written() -> None:
    begin = "mov.u64 %d5, room;\n st.shared.u32 [%d5+8], %r0;\n"
    run(f"{begin} ld.shared.u32 %r5, [%d5+8];", words(0), shared=SHARED)
    for code in ("ld.shared.u64 %d6, [%d5+8];", "atom.shared.add.u32 %r5, [%d5+12], 1;"):
        with pytest.raises(MachineError, match="read before it is written"):
            run(begin + code, words(0), shared=SHARED)


def test_shared_memory_is_of_one_block() -> None:
    """What a block has left is not what the next one finds."""
    body = """
    mov.u64 %d5, room;
    setp.ne.s32 %p1, %r2, 0;
    @%p1 bra Read;
    st.shared.u64 [%d5], %d0;
Read:
    ld.shared.u64 %d6, [%d5];
"""
    run(body, words(0), shared=SHARED)
    with pytest.raises(MachineError, match="block 1, thread 0: .*read before it is written"):
        run(body, words(0), 2, shared=SHARED)


def test_a_register_that_was_never_set_is_poison(in_order: Any) -> None:
    found = set()
    for seed in (1, 2):
        in_order("order", seed)
        found.add(int(run("st.global.u64 [%d0], %d9;", words(0))[0]))
    assert len(found) == 2
    assert 0 not in found


# One thread.


@pytest.mark.parametrize("kind", ["s32", "u32", "s64", "u64"])
@pytest.mark.parametrize("name", ["div", "rem"])
def test_division_by_zero(name: str, kind: str) -> None:
    letter = "r" if kind[1:] == "32" else "d"
    code = f"mov.u{kind[1:]} %{letter}5, 0;\n{name}.{kind} %{letter}6, %{letter}9, %{letter}5;"
    with pytest.raises(MachineError, match=f"division by zero, at line .*{name}"):
        run(code, words(0))


def test_a_loop_without_end() -> None:
    with pytest.raises(MachineError, match="endless loop"):
        run("Again:\n add.s32 %r5, %r5, 1;\n bra Again;", words(0))


def test_a_trap() -> None:
    with pytest.raises(MachineError, match="trap"):
        run("trap;", words(0))


@pytest.mark.parametrize(("grid", "block"), [(0, 1), (1, 0), (1, 1025), (-1, 1)])
def test_a_geometry_that_no_gpu_has(grid: int, block: int) -> None:
    with pytest.raises(MachineError, match="blocks of"):
        run("", words(0), grid, block)


# Warps.


def test_lanes_exchange_values(in_order: Any) -> None:
    """Each kind of shuffle, in segments of eight lanes and across all."""
    kinds = [
        ("up", 3, "0x1800"),
        ("down", 3, "0x181f"),
        ("bfly", 5, "0x181f"),
        ("idx", 6, "0x181f"),
    ]
    kinds += [("up", 3, "0"), ("down", 3, "31"), ("bfly", 17, "31"), ("idx", 33, "31")]
    for mode, seed in every_order():
        in_order(mode, seed)
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


def test_lanes_vote(in_order: Any) -> None:
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
        in_order(mode, seed)
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
def test_a_meeting_that_is_wrong(what: str, in_order: Any) -> None:
    block = 24 if "the warp has not" in what else 32
    begin = "setp.eq.s32 %p1, %r0, %r0;\n"
    for mode, seed in every_order():
        in_order(mode, seed)
        with pytest.raises(MachineError, match=what):
            run(begin + WRONG_MEETINGS[what], words(0), 1, block)


# Blocks.


def test_a_barrier_orders_shared_memory(in_order: Any) -> None:
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
        in_order(mode, seed)
        found = run(body, np.zeros(200, np.uint32), 2, 100, shared=shared)
        wanted = [(n % 100 + 1) % 100 + 1000 + 990000 for n in range(200)]
        assert found.tolist() == wanted


def test_threads_that_have_left_are_not_waited_for() -> None:
    body = "setp.ge.s32 %p1, %r0, 64;\n @%p1 ret;\n bar.sync 0;\n st.global.u32 [%d0], %r3;"
    assert int(run(body, words(0), 1, 96)[0]) == 96


def test_blocks_run_in_each_order(in_order: Any) -> None:
    """An atomic draws tickets: they tell who came when."""
    body = f"""
    atom.global.add.u64 %d5, [%d0], 1;
    {element("%d1", "%r1")}
    st.global.u64 [%d1+8], %d5;
"""
    orders = {}
    for mode, seed in every_order():
        in_order(mode, seed)
        found = run(body, np.zeros(321, np.uint64), 10, 32).tolist()
        assert found[0] == 320
        assert sorted(found[1:]) == list(range(320))
        orders[mode, seed] = tuple(found[1:])
    assert orders["order", 1] == tuple(range(320))
    assert orders["reversed", 1] == tuple(reversed(range(320)))
    assert len(set(orders.values())) == len(orders)


def test_a_seed_repeats_its_order(in_order: Any) -> None:
    from tests.ptx import machine

    body = "atom.global.add.u64 %d5, [%d0], 1;\n" + element("%d1", "%r1")
    body += "st.global.u64 [%d1+8], %d5;"
    found = []
    for _ in range(2):
        in_order("random", 5)
        machine.log.launches.clear()
        found.append(run(body, np.zeros(321, np.uint64), 10, 32).tolist())
    assert found[0] == found[1]


def test_an_update_that_is_no_atomic_loses_some(in_order: Any) -> None:
    """In order, no thread comes between a load and its store; at random one does."""
    body = "ld.global.u64 %d5, [%d0];\n add.s64 %d5, %d5, 1;\n st.global.u64 [%d0], %d5;"
    assert int(run(body, words(0), 4, 32)[0]) == 128
    for seed in SEEDS:
        in_order("random", seed)
        assert int(run(body, words(0), 4, 32)[0]) < 128


# Races.

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


def test_fences_hand_over_between_blocks(in_order: Any) -> None:
    for mode, seed in every_order():
        in_order(mode, seed, "race", "weak")
        assert hand_over("membar.gl;", "membar.gl;")


@pytest.mark.parametrize(("give", "take"), [("", "membar.gl;"), ("membar.gl;", ""), ("", "")])
def test_a_lost_fence_is_a_race(give: str, take: str, in_order: Any) -> None:
    for mode, seed in every_order():
        in_order(mode, seed, "race")
        with pytest.raises(MachineError, match="race in global memory: write at .*ld.global"):
            hand_over(give, take)


def test_a_lost_fence_shows_in_weak_memory(in_order: Any) -> None:
    for mode, seed in every_order():
        in_order(mode, seed)
        assert hand_over("", "")
        in_order(mode, seed, "weak")
        assert not hand_over("", "membar.gl;")


def test_what_was_read_is_stale_until_a_fence(in_order: Any) -> None:
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
    in_order("random", 1, "weak")
    run(body.format(fence="membar.gl;"), np.zeros(3, np.uint64), 2)
    stuck = 0
    for seed in SEEDS:
        in_order("random", seed, "weak")
        try:
            run(body.format(fence=""), np.zeros(3, np.uint64), 2)
        except MachineError as error:
            assert "endless loop" in str(error)
            stuck += 1
    assert stuck


def test_a_block_sees_what_it_has_stored_itself(in_order: Any) -> None:
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
        in_order(mode, seed, "weak", "race")
        found = run(body, np.zeros(128, np.uint32), 2, 64).tolist()
        assert found == [(n ^ 1) | ((n % 64) ^ 1) << 24 for n in range(128)]


def test_an_atomic_sees_what_its_block_has_stored(in_order: Any) -> None:
    body = "st.global.u64 [%d0], 40;\n atom.global.add.u64 %d5, [%d0], 2;"
    in_order("random", 1, "weak")
    assert int(run(body, words(7), 1, 2)[0]) in (42, 44)


@pytest.mark.parametrize("space", ["shared", "global"])
def test_a_race_within_a_block(space: str, in_order: Any) -> None:
    base = "mov.u64 %d5, room;\n" if space == "shared" else "mov.u64 %d5, %d0;\n"
    mine = base + "mad.wide.u32 %d6, %r0, 4, %d5;\n"
    store, load = f"st.{space}.u32 [%d6], %r0;\n", f"ld.{space}.u32 %r6, [%d5+4];\n"
    wild = f"{base}st.{space}.u32 [%d5], %r0;\n"
    one = f"{base}st.{space}.u32 [%d5], 5;\n"
    for mode, seed in every_order():
        in_order(mode, seed, "race")
        run(mine + store + "bar.sync 0;\n" + load, np.zeros(8, np.uint64), 1, 8, shared=SHARED)
        run(one, np.zeros(8, np.uint64), 1, 8, shared=SHARED)  # all write the same
        for body in (mine + store + load.replace("+4", "+8"), wild):
            with pytest.raises(MachineError, match=f"race in {space} memory|before it is written"):
                run(body, np.zeros(8, np.uint64), 1, 8, shared=SHARED)


def test_atomics_are_no_race_with_each_other(in_order: Any) -> None:
    for mode, seed in every_order():
        in_order(mode, seed, "race")
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


# Counts.


def test_launches_are_counted(in_order: Any) -> None:
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
        in_order(mode, seed)
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
