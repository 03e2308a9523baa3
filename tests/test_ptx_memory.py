"""The PTX machine finds wild accesses, and what a thread does wrong by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from jitalloc.gpu import kernel as _cuda
from tests.ptx.faults import MachineError
from tests.ptx_texts import SHARED, run, words

pytestmark = [
    pytest.mark.skipif(_cuda.SIMULATED, reason="the machine is compiled by Numba"),
    pytest.mark.usefixtures("ask_machine"),
]


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
    with pytest.raises(MachineError, match=r"block 1, thread 0: .*read before it is written"):
        run(body, words(0), 2, shared=SHARED)


def test_a_register_that_was_never_set_is_poison(ask_machine: Any) -> None:
    found = set()
    for seed in (1, 2):
        ask_machine("order", seed)
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
