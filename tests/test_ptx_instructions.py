"""Each instruction of the PTX machine against a line of Python, at the edges and at random."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import pytest

from jitalloc.gpu import kernel as _cuda
from tests.ptx.parser import PtxError
from tests.ptx_texts import run

pytestmark = pytest.mark.skipif(_cuda.SIMULATED, reason="the machine is compiled by Numba")

THREADS = 256
BITS = {"b16": 16, "u16": 16, "s16": 16, "b32": 32, "u32": 32, "s32": 32}
BITS |= {"b64": 64, "u64": 64, "s64": 64, "pred": 1}
LETTER = {1: "p", 16: "h", 32: "r", 64: "d"}


def of_kind(value: int, kind: str) -> int:
    """Return the bits of `value` as a number of a type."""
    value %= 2 ** BITS[kind]
    return value - 2 ** BITS[kind] if kind[0] == "s" and value >> (BITS[kind] - 1) else value


def operands(random: Random, count: int) -> list[list[int]]:
    edges = [0, 1, 2, 31, 32, 63, 64, 127, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**32]
    edges += [2**63 - 1, 2**63, 2**64 - 1, 2**64 - 2, 2**33 + 5]
    return [
        [random.choice((random.choice(edges), random.getrandbits(64))) for _ in range(count)]
        for _ in range(THREADS)
    ]


def apply(code: str, kinds: list[str], result: str, rows: list[list[int]]) -> list[int]:
    """Run `code` once a thread; operands stand in registers 10 to 13 of their type, as does 14."""
    body = "mul.wide.u32 %d1, %r1, 40;\n add.s64 %d1, %d1, %d0;\n"
    for n, kind in enumerate(kinds):
        if kind == "pred":
            body += f"ld.global.u64 %d2, [%d1+{8 * n}];\n and.b64 %d2, %d2, 1;\n"
            body += f"setp.ne.s64 %p{10 + n}, %d2, 0;\n"
        else:
            body += f"ld.global.u{BITS[kind]} %{LETTER[BITS[kind]]}{10 + n}, [%d1+{8 * n}];\n"
    body += code.replace("\n", "\n    ") + "\n"
    if result == "pred":
        body += "selp.u64 %d3, 1, 0, %p14;\n"
    elif BITS[result] == 64:
        body += "mov.u64 %d3, %d14;\n"
    else:
        body += f"cvt.u64.u{BITS[result]} %d3, %{LETTER[BITS[result]]}14;\n"
    body += "st.global.u64 [%d1+32], %d3;\n"
    data = np.zeros((THREADS, 5), np.uint64)
    data[:, : len(kinds)] = np.array(rows, np.uint64)
    run(body, data.reshape(-1), 2, THREADS // 2)
    return [int(value) for value in data[:, 4]]


def check(
    code: str, kinds: str, result: str, model: Callable[..., int | None], seed: int = 1
) -> None:
    """Compare an instruction with its model; None: undefined, and not compared."""
    of = kinds.split()
    rows = operands(Random(f"{code} {seed}"), len(of))
    found = apply(code, of, result, rows)
    different = 0
    for row, got in zip(rows, found, strict=True):
        given = [of_kind(value, kind) for value, kind in zip(row, of, strict=True)]
        wanted = model(*given)
        if wanted is not None:
            assert got == wanted % 2 ** BITS[result], (code, given, got, wanted)
            different += 1
    assert different > THREADS // 2


def divided(a: int, b: int) -> int:
    return -(-a // b) if (a < 0) != (b < 0) else a // b


def shifted(a: int, by: int, left: bool, bits: int) -> int:
    by = min(by, bits)
    return a << by if left else a >> by


def field(b: int, at: int, length: int, bits: int) -> int:
    at, length = at & 255, length & 255
    return sum(1 << i for i in range(at, min(at + length, bits))) if at < bits else 0 * b


COMPARE: dict[str, Callable[[int, int], bool]] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}


@pytest.mark.parametrize("kind", ["s16", "u16", "s32", "u32", "s64", "u64"])
@pytest.mark.parametrize("name", ["add", "sub", "min", "max", "mul.lo", "div", "rem"])
def test_two_numbers(name: str, kind: str) -> None:
    letter = LETTER[BITS[kind]]
    models: dict[str, Callable[[int, int], int | None]] = {
        "add": lambda a, b: a + b,
        "sub": lambda a, b: a - b,
        "min": min,
        "max": max,
        "mul.lo": lambda a, b: a * b,
        "div": lambda a, b: divided(a, b or 1),
        "rem": lambda a, b: a - (b or 1) * divided(a, b or 1),
    }
    code = f"{name}.{kind} %{letter}14, %{letter}10, %{letter}11;"
    if name in ("div", "rem"):  # by zero is an error
        guard = f"setp.eq.{kind} %p1, %{letter}11, 0;\n"
        code = guard + f"selp.b{BITS[kind]} %{letter}11, 1, %{letter}11, %p1;\n" + code
    check(code, f"{kind} {kind}", kind, models[name])


@pytest.mark.parametrize("bits", [1, 16, 32, 64])
@pytest.mark.parametrize("name", ["and", "or", "xor"])
def test_bits(name: str, bits: int) -> None:
    kind, letter = "pred" if bits == 1 else f"b{bits}", LETTER[bits]
    models: dict[str, Callable[[int, int], int]] = {
        "and": lambda a, b: a & b,
        "or": lambda a, b: a | b,
        "xor": lambda a, b: a ^ b,
    }
    check(
        f"{name}.{kind} %{letter}14, %{letter}10, %{letter}11;",
        f"{kind} {kind}",
        kind,
        models[name],
    )


@pytest.mark.parametrize(
    ("code", "kind", "result", "model"),
    [
        ("not.b16 %h14, %h10;", "b16", "b16", lambda a: ~a),
        ("not.b64 %d14, %d10;", "b64", "b64", lambda a: ~a),
        ("not.pred %p14, %p10;", "pred", "pred", lambda a: ~a),
        ("cnot.b32 %r14, %r10;", "b32", "b32", lambda a: int(a == 0)),
        ("neg.s32 %r14, %r10;", "s32", "s32", lambda a: -a),
        ("neg.s64 %d14, %d10;", "s64", "s64", lambda a: -a),
        ("abs.s32 %r14, %r10;", "s32", "s32", abs),
        ("abs.s64 %d14, %d10;", "s64", "s64", abs),
        ("popc.b32 %r14, %r10;", "b32", "u32", lambda a: a.bit_count()),
        ("popc.b64 %r14, %d10;", "b64", "u32", lambda a: a.bit_count()),
        ("clz.b32 %r14, %r10;", "b32", "u32", lambda a: 32 - a.bit_length()),
        ("clz.b64 %r14, %d10;", "b64", "u32", lambda a: 64 - a.bit_length()),
        ("bfind.u32 %r14, %r10;", "u32", "u32", lambda a: a.bit_length() - 1),
        ("bfind.u64 %r14, %d10;", "u64", "u32", lambda a: a.bit_length() - 1),
        ("brev.b32 %r14, %r10;", "b32", "b32", lambda a: int(f"{a:032b}"[::-1], 2)),
        ("brev.b64 %d14, %d10;", "b64", "b64", lambda a: int(f"{a:064b}"[::-1], 2)),
        ("mov.b64 {%r14, %r1}, %d10;", "b64", "b32", lambda a: a),
        ("mov.b64 {%r1, %r14}, %d10;", "b64", "b32", lambda a: a >> 32),
        ("mov.u64 %d14, -7;", "u64", "u64", lambda a: -7),
        ("mov.u32 %r14, 0xFFFF0000U;", "u64", "u32", lambda a: 0xFFFF0000),
    ],
)
def test_one_number(code: str, kind: str, result: str, model: Callable[[int], int]) -> None:
    check(code, kind, result, model)


@pytest.mark.parametrize("kind", ["s32", "u32", "s64", "u64"])
def test_products(kind: str) -> None:
    bits, letter = BITS[kind], LETTER[BITS[kind]]
    both = f"{kind} {kind}"
    ab = f"%{letter}10, %{letter}11"
    check(f"mul.hi.{kind} %{letter}14, {ab};", both, kind, lambda a, b: (a * b) >> bits)
    three = f"{both} {kind}"
    check(f"mad.lo.{kind} %{letter}14, {ab}, %{letter}12;", three, kind, lambda a, b, c: a * b + c)
    code = f"mad.hi.{kind} %{letter}14, {ab}, %{letter}12;"
    check(code, three, kind, lambda a, b, c: ((a * b) >> bits) + c)
    if bits == 32:
        wide = f"{kind[0]}64"
        check(f"mul.wide.{kind} %d14, {ab};", both, wide, lambda a, b: a * b)
        code = f"mad.wide.{kind} %d14, {ab}, %d12;"
        check(code, f"{both} {wide}", wide, lambda a, b, c: a * b + c)


@pytest.mark.parametrize("kind", ["b16", "b32", "b64", "u32", "u64", "s16", "s32", "s64"])
@pytest.mark.parametrize("name", ["shl", "shr"])
def test_shifts(name: str, kind: str) -> None:
    if name == "shl" and kind[0] != "b":
        return
    bits, letter = BITS[kind], LETTER[BITS[kind]]
    code = f"and.b32 %r12, %r11, 127;\n{name}.{kind} %{letter}14, %{letter}10, %r12;"
    check(code, f"{kind} u32", kind, lambda a, by: shifted(a, by & 127, name == "shl", bits))
    whole = f"{name}.{kind} %{letter}14, %{letter}10, %r11;"
    check(whole, f"{kind} u32", kind, lambda a, by: shifted(a, by, name == "shl", bits))


def test_funnel_shifts() -> None:
    for name in "lr":

        def model(low: int, high: int, by: int, name: str = name) -> int:
            whole = high << 32 | low
            return (whole << (by & 31)) >> 32 if name == "l" else whole >> (by & 31)

        code = f"shf.{name}.wrap.b32 %r14, %r10, %r11, %r12;"
        check(code, "u32 u32 u32", "u32", model)


@pytest.mark.parametrize("kind", ["s16", "u16", "s32", "u32", "s64", "u64"])
@pytest.mark.parametrize("name", sorted(COMPARE))
def test_comparisons(name: str, kind: str) -> None:
    letter = LETTER[BITS[kind]]
    code = f"setp.{name}.{kind} %p14, %{letter}10, %{letter}11;"
    check(code, f"{kind} {kind}", "pred", lambda a, b: int(COMPARE[name](a, b)))
    # Most random numbers differ.
    code = f"mov.u{BITS[kind]} %{letter}11, %{letter}10;\n{code}"
    check(code, f"{kind} {kind}", "pred", lambda a, b: int(COMPARE[name](a, a)))


def test_orders_of_unsigned_numbers_by_their_old_names() -> None:
    for name, same in (("lo", "lt"), ("ls", "le"), ("hi", "gt"), ("hs", "ge")):
        code = f"setp.{name}.u32 %p14, %r10, %r11;"
        check(code, "u32 u32", "pred", lambda a, b, same=same: int(COMPARE[same](a, b)))


def test_selections() -> None:
    for kind, letter in (("b32", "r"), ("s64", "d"), ("u16", "h")):
        code = f"selp.{kind} %{letter}14, %{letter}10, %{letter}11, %p12;"
        check(code, f"{kind} {kind} pred", kind, lambda a, b, p: a if p else b)


@pytest.mark.parametrize("of", ["s16", "u16", "s32", "u32", "s64", "u64"])
@pytest.mark.parametrize("to", ["s16", "u16", "s32", "u32", "s64", "u64"])
def test_conversions(to: str, of: str) -> None:
    code = f"cvt.{to}.{of} %{LETTER[BITS[to]]}14, %{LETTER[BITS[of]]}10;"
    check(code, of, to, lambda a: a)


def test_a_narrow_conversion_fills_its_register() -> None:
    check("cvt.s8.s32 %r14, %r10;", "s32", "s32", lambda a: (a + 128) % 256 - 128)
    check("cvt.u8.u32 %r14, %r10;", "u32", "u32", lambda a: a % 256)


@pytest.mark.parametrize("bits", [32, 64])
def test_fields_of_bits(bits: int) -> None:
    kind, letter = f"b{bits}", LETTER[bits]
    small = "and.b32 %r12, %r12, 95;\n and.b32 %r13, %r13, 95;\n"

    def inserted(a: int, b: int, at: int, length: int) -> int:
        mask = field(b, at & 95, length & 95, bits)
        return (b & ~mask) | ((a << (at & 95)) & mask)

    code = f"{small}bfi.{kind} %{letter}14, %{letter}10, %{letter}11, %r12, %r13;"
    check(code, f"{kind} {kind} u32 u32", kind, inserted)

    def extracted(a: int, _b: int, at: int, length: int) -> int:
        return (a & field(0, at & 95, length & 95, bits)) >> (at & 95)

    code = f"{small}bfe.u{bits} %{letter}14, %{letter}10, %r12, %r13;"
    check(code, f"u{bits} u32 u32 u32", f"u{bits}", extracted)


def test_permutation_of_bytes() -> None:
    def model(a: int, b: int, how: int) -> int:
        pool, made = [*a.to_bytes(4, "little"), *b.to_bytes(4, "little")], 0
        for n in range(4):
            choice = how >> (4 * n) & 15
            byte = pool[choice & 7]
            made |= ((255 if byte & 128 else 0) if choice & 8 else byte) << (8 * n)
        return made

    check("prmt.b32 %r14, %r10, %r11, %r12;", "u32 u32 u32", "u32", model)


@pytest.mark.parametrize(
    "code",
    [
        "add.f32 %r14, %r10, %r11;",
        "add.cc.u32 %r14, %r10, %r11;",
        "add.sat.s32 %r14, %r10, %r11;",
        "cvt.rn.f32.s32 %r14, %r10;",
        "cvt.sat.s16.s32 %h14, %r10;",
        "setp.lt.b32 %p14, %r10, %r11;",
        "setp.lt.and.s32 %p14, %r10, %r11, %p1;",
        "shl.s32 %r14, %r10, %r11;",
        "popc.b16 %r14, %h10;",
        "ld.global.v2.u32 {%r14, %r15}, [%d0];",
        "ld.volatile.global.u32 %r14, [%d0];",
        "ld.local.u32 %r14, [%d0];",
        "ld.u32 %r14, [%d0];",
        "ld.global.f64 %d14, [%d0];",
        "atom.global.inc.u32 %r14, [%d0], 5;",
        "atom.global.add.f32 %r14, [%d0], %r10;",
        "atom.global.acquire.gpu.add.u32 %r14, [%d0], 1;",
        "bar.sync 1;",
        "bar.sync 0, 32;",
        "bar.arrive 0, 32;",
        "vote.any.pred %p14, %p1;",
        "shfl.up.b32 %r14, %r10, 1, 0;",
        "activemask.b32 %r14;",
        "elect.sync %r14|%p1, -1;",
        "mov.u32 %r14, %clock;",
        "mov.u32 %r14, other;",
        "mov.u32 %d14, %r10;",
        "mov.u64 %r14, %d10;",
        "@%p1 bar.sync 0;",
        "mov.u32 %r99, 0;",
        "bra Nowhere;",
        "fence.sc.gpu;",
        "membar.proxy;",
        "nanosleep.u32 20;",
    ],
)
def test_what_is_unknown_is_an_error_that_shows_it(code: str) -> None:
    with pytest.raises(PtxError) as caught:
        run(code, np.zeros(1, np.uint64))
    assert "line " in str(caught.value)
    assert code.rstrip(";")[:60] in str(caught.value)


def test_declarations_that_are_unknown() -> None:
    from tests.ptx.parser import parse
    from tests.ptx_texts import text

    good = text("")
    for old, new in (
        (".visible .entry", ".global .u32 x;\n.visible .entry"),
        (".visible .entry", ".extern .shared .align 8 .b8 x[];\n.visible .entry"),
        (".param .u64 scalar", ".param .f32 scalar"),
        (".reg .pred", ".reg .f32 %f<2>;\n.reg .pred"),
    ):
        with pytest.raises(PtxError, match=r"directive|parameter|line"):
            parse(good.replace(old, new))
    with pytest.raises(PtxError, match=r"no \.entry"):
        parse(".version 8.8")
    with pytest.raises(PtxError, match="behind the kernel"):
        parse(good + good)


def test_special_registers() -> None:
    names = ["tid.x", "ntid.x", "ctaid.x", "nctaid.x", "laneid", "warpid", "lanemask_eq"]
    names += ["lanemask_lt", "tid.y", "ntid.z"]
    body = f"mul.wide.u32 %d1, %r1, {4 * len(names)};\n add.s64 %d1, %d1, %d0;\n"
    for n, name in enumerate(names):
        body += f"mov.u32 %r5, %{name};\n st.global.u32 [%d1+{4 * n}], %r5;\n"
    found: Any = run(body, np.zeros(3 * 70 * len(names), np.uint32), 3, 70).reshape(3, 70, -1)
    for block in range(3):
        for thread in range(70):
            lane = thread % 32
            wanted = [thread, 70, block, 3, lane, thread // 32, 1 << lane, (1 << lane) - 1, 0, 1]
            assert found[block, thread].tolist() == wanted
