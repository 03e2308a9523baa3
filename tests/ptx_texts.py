"""Kernels written as PTX, for the tests of the machine, and arrays that they run on."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.ptx.machine import Program

SHARED = ".shared .align 8 .b8 room[64];"
SEEDS = range(1, 9)
REGISTERS = """
    .reg .pred %p<20>;
    .reg .b16 %h<20>;
    .reg .b32 %r<40>;
    .reg .b64 %d<40>;
"""
# %d0: the first array; %r0: the thread in its block; %r1: the thread in the grid; %r2: the block.
BEGIN = """
    ld.param.u64 %d0, [array];
    cvta.to.global.u64 %d0, %d0;
    mov.u32 %r0, %tid.x;
    mov.u32 %r2, %ctaid.x;
    mov.u32 %r3, %ntid.x;
    mad.lo.s32 %r1, %r2, %r3, %r0;
"""


def text(body: str, shared: str = "", bounds: str = "") -> str:
    """Return a kernel `test(array, scalar)` of one body, which need not end in `ret`."""
    return f"""
.version 8.8
.target sm_90
.address_size 64
{shared}
.visible .entry test(.param .u64 array, .param .u64 scalar)
{bounds}
{{
{REGISTERS}
{BEGIN}
{body}
    ret;
}}
"""


def run(
    body: str,
    array: Any,
    grid: int = 1,
    block: int = 1,
    scalar: int = 0,
    shared: str = "",
) -> Any:
    """Run a body on an array, which it may change; return the array."""
    program = Program("test", text(body, shared))
    program.launch(grid, block, [array.ctypes.data, scalar], [(array.ctypes.data, array.nbytes)])
    return array


def element(register: str, index: str, size: int = 8, array: str = "%d0") -> str:
    """Return code that puts the address of an element of the array into a register."""
    return f"""
    cvt.u64.u32 {register}, {index};
    mad.lo.s64 {register}, {register}, {size}, {array};
"""


def words(*values: int) -> Any:
    return np.array([value % 2**64 for value in values], np.uint64)


def every_order() -> list[tuple[str, int]]:
    """Return what a launch is tried in: modes and seeds."""
    return [("order", 1), ("reversed", 1), *(("random", seed) for seed in SEEDS)]
