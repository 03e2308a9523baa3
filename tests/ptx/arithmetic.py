"""Instructions of one thread that touch no memory. Integers; floating point is unknown here."""

from __future__ import annotations

import re

from tests.ptx.layout import Error
from tests.ptx.parser import SIZES, Instruction, PtxError
from tests.ptx.translate import Handler, Translator, bit_type, registering

INSTRUCTIONS: dict[str, Handler] = {}
instruction = registering(INSTRUCTIONS)

COMPARE = {
    "eq": "eq",
    "ne": "ne",
    "lo": "ult",
    "ls": "ule",
    "hi": "ugt",
    "hs": "uge",
    **{each: each for each in ("lt", "le", "gt", "ge")},
}
PAIR = re.compile(r"\{\s*([%\w$-]+)\s*,\s*([%\w$-]+)\s*\}$")
PLAIN = {"add": "add", "sub": "sub", "and": "and", "or": "or", "xor": "xor"}


def kind_of(i: Instruction, words: int, kinds: str = "bus") -> str:
    """Return the type of an instruction whose mnemonic has exactly so many words."""
    kind = i.kind
    if len(i.op) != words or kind not in SIZES or (kind[0] not in kinds and kind != "pred"):
        raise PtxError("unknown modifiers")
    if kind == "pred" and "p" not in kinds:
        raise PtxError("unknown type")
    return kind


def operands(t: Translator, i: Instruction, kind: str, count: int) -> list[str]:
    """Return the operands behind the result, which have to be so many."""
    if len(i.args) != count + 1:
        raise PtxError(f"{len(i.args)} operands")
    return [t.read(each, kind) for each in i.args[1:]]


def clamped(t: Translator, of: str, by: str, bits: int) -> tuple[str, str]:
    """Return a 32-bit shift as a value of `of` that LLVM takes, and whether it was too large."""
    large = t.value(f"icmp uge i32 {by}, {bits}")
    return t.resize(t.value(f"and i32 {by}, {bits - 1}"), "i32", of), large


@instruction(*PLAIN)
def two(t: Translator, i: Instruction) -> None:
    kind = kind_of(i, 2, "bp" if i.op[0] in ("and", "or", "xor") else "us")
    a, b = operands(t, i, kind, 2)
    t.write(i.args[0], kind, t.value(f"{PLAIN[i.op[0]]} {bit_type(kind)} {a}, {b}"))


@instruction("not")
def invert(t: Translator, i: Instruction) -> None:
    kind = kind_of(i, 2, "bp")
    (a,) = operands(t, i, kind, 1)
    t.write(i.args[0], kind, t.value(f"xor {bit_type(kind)} {a}, -1"))


@instruction("cnot")
def logical_not(t: Translator, i: Instruction) -> None:
    kind = kind_of(i, 2, "b")
    (a,) = operands(t, i, kind, 1)
    zero = t.value(f"icmp eq {bit_type(kind)} {a}, 0")
    t.write(i.args[0], kind, t.resize(zero, "i1", bit_type(kind)))


@instruction("neg", "abs")
def sign(t: Translator, i: Instruction) -> None:
    kind = kind_of(i, 2, "s")
    (a,) = operands(t, i, kind, 1)
    of = bit_type(kind)
    made = t.value(f"sub {of} 0, {a}")
    if i.op[0] == "abs":
        made = t.value(f"select i1 {t.value(f'icmp slt {of} {a}, 0')}, {of} {made}, {of} {a}")
    t.write(i.args[0], kind, made)


@instruction("min", "max")
def lower(t: Translator, i: Instruction) -> None:
    kind = kind_of(i, 2, "us")
    a, b = operands(t, i, kind, 2)
    of = bit_type(kind)
    less = t.value(f"icmp {kind[0]}{'lt' if i.op[0] == 'min' else 'gt'} {of} {a}, {b}")
    t.write(i.args[0], kind, t.value(f"select i1 {less}, {of} {a}, {of} {b}"))


@instruction("mul", "mad")
def multiply(t: Translator, i: Instruction) -> None:
    kind = kind_of(i, 3, "us")
    how, of, bits = i.op[1], bit_type(kind), 8 * SIZES[kind]
    if len(i.args) != (3 if i.op[0] == "mul" else 4):
        raise PtxError("operands")
    a, b = (t.read(each, kind) for each in i.args[1:3])
    if how == "lo":
        made, result = t.value(f"mul {of} {a}, {b}"), kind
    elif how in ("wide", "hi"):
        wide, extend = f"i{2 * bits}", "sext" if kind[0] == "s" else "zext"
        a, b = (t.value(f"{extend} {of} {each} to {wide}") for each in (a, b))
        made, result = t.value(f"mul {wide} {a}, {b}"), f"{kind[0]}{2 * bits}"
        if how == "hi":
            made, result = t.resize(t.value(f"lshr {wide} {made}, {bits}"), wide, of), kind
    else:
        raise PtxError("unknown modifiers")
    if i.op[0] == "mad":
        made = t.value(f"add {bit_type(result)} {made}, {t.read(i.args[3], result)}")
    t.write(i.args[0], result, made)


@instruction("div", "rem")
def divide(t: Translator, i: Instruction) -> None:
    kind = kind_of(i, 2, "us")
    a, b = operands(t, i, kind, 2)
    of = bit_type(kind)
    t.fail_if(t.value(f"icmp eq {of} {b}, 0"), Error.DIVISION, i.line)
    name = f"{kind[0]}{i.op[0]}"
    if kind[0] == "u":
        t.write(i.args[0], kind, t.value(f"{name} {of} {a}, {b}"))
        return
    # LLVM leaves open what the least number by -1 is; the GPU's division wraps.
    minus = t.value(f"icmp eq {of} {b}, -1")
    made = t.value(f"{name} {of} {a}, {t.value(f'select i1 {minus}, {of} 1, {of} {b}')}")
    other = t.value(f"sub {of} 0, {a}") if i.op[0] == "div" else "0"
    t.write(i.args[0], kind, t.value(f"select i1 {minus}, {of} {other}, {of} {made}"))


@instruction("shl", "shr")
def shift(t: Translator, i: Instruction) -> None:
    kind = kind_of(i, 2, "b" if i.op[0] == "shl" else "bus")
    a, of, bits = t.read(i.args[1], kind), bit_type(kind), 8 * SIZES[kind]
    by, large = clamped(t, of, t.read(i.args[2], "u32"), bits)
    name = "shl" if i.op[0] == "shl" else "ashr" if kind[0] == "s" else "lshr"
    other = t.value(f"ashr {of} {a}, {bits - 1}") if name == "ashr" else "0"
    made = t.value(f"{name} {of} {a}, {by}")
    t.write(i.args[0], kind, t.value(f"select i1 {large}, {of} {other}, {of} {made}"))


@instruction("shf")
def funnel(t: Translator, i: Instruction) -> None:
    if i.op[1:] not in (["l", "wrap", "b32"], ["r", "wrap", "b32"]):
        raise PtxError("unknown modifiers")
    low, high, by = operands(t, i, "b32", 3)
    by = t.value(f"and i32 {by}, 31")
    made = f"call i32 @llvm.fsh{i.op[1]}.i32(i32 {high}, i32 {low}, i32 {by})"
    t.write(i.args[0], "b32", t.value(made))


@instruction("setp")
def compare(t: Translator, i: Instruction) -> None:
    kind = kind_of(i, 3)
    if i.op[1] not in COMPARE or "|" in i.args[0]:
        raise PtxError("unknown modifiers")
    a, b = operands(t, i, kind, 2)
    how = COMPARE[i.op[1]]
    if how in ("lt", "le", "gt", "ge"):
        if kind[0] == "b":
            raise PtxError("an order of bits")
        how = kind[0] + how
    t.write(i.args[0], "pred", t.value(f"icmp {how} {bit_type(kind)} {a}, {b}"))


@instruction("selp")
def select(t: Translator, i: Instruction) -> None:
    kind = kind_of(i, 2)
    a, b = (t.read(each, kind) for each in i.args[1:3])
    which, of = t.read(i.args[3], "pred"), bit_type(kind)
    t.write(i.args[0], kind, t.value(f"select i1 {which}, {of} {a}, {of} {b}"))


@instruction("mov")
def move(t: Translator, i: Instruction) -> None:
    kind = kind_of(i, 2, "busp")
    to, of = PAIR.match(i.args[0]), PAIR.match(i.args[1])
    if not to and not of:
        t.write(i.args[0], kind, t.read(i.args[1], kind))
        return
    if kind != "b64" or (to and of):
        raise PtxError("vector")
    if to:
        whole = t.read(i.args[1], kind)
        t.write(to.group(1), "b32", t.resize(whole, "i64", "i32"))
        t.write(to.group(2), "b32", t.resize(t.value(f"lshr i64 {whole}, 32"), "i64", "i32"))
    elif of:
        low, high = (t.resize(t.read(each, "b32"), "i32", "i64") for each in of.groups())
        t.write(i.args[0], kind, t.value(f"or i64 {low}, {t.value(f'shl i64 {high}, 32')}"))


@instruction("cvt")
def convert(t: Translator, i: Instruction) -> None:
    of = kind_of(i, 3, "us")
    to = i.op[1]
    if to not in SIZES or to[0] not in "us":
        raise PtxError("unknown modifiers")
    value = t.read(i.args[1], of, wider=True)
    made = t.resize(value, bit_type(of), bit_type(to), of[0] == "s")
    t.write(i.args[0], to, made, wider=True)


@instruction("cvta")
def convert_address(t: Translator, i: Instruction) -> None:
    if i.op[1:] not in (["to", "global", "u64"], ["global", "u64"]):
        raise PtxError("unknown space")
    t.write(i.args[0], "u64", t.read(i.args[1], "u64"))


@instruction("popc", "clz", "bfind", "brev")
def count_bits(t: Translator, i: Instruction) -> None:
    kind = kind_of(i, 2, "u" if i.op[0] == "bfind" else "b")
    of, bits = bit_type(kind), 8 * SIZES[kind]
    if bits < 32:
        raise PtxError("unknown type")
    (a,) = operands(t, i, kind, 1)
    if i.op[0] == "brev":
        t.write(i.args[0], kind, t.value(f"call {of} @llvm.bitreverse.{of}({of} {a})"))
        return
    if i.op[0] == "popc":
        made = t.value(f"call {of} @llvm.ctpop.{of}({of} {a})")
    else:
        made = t.value(f"call {of} @llvm.ctlz.{of}({of} {a}, i1 false)")
    if i.op[0] == "bfind":  # of 0 it is all ones, which is bits - 1 - bits as well
        made = t.value(f"sub {of} {bits - 1}, {made}")
    t.write(i.args[0], "u32", t.resize(made, of, "i32"))


def _field(t: Translator, kind: str, at: str, length: str) -> tuple[str, str, str]:
    """Return a position, whether it lies outside, and so many low ones."""
    of, bits = bit_type(kind), 8 * SIZES[kind]
    at, length = (t.value(f"and i32 {each}, 255") for each in (at, length))
    by, outside = clamped(t, of, at, bits)
    size, whole = clamped(t, of, length, bits)
    ones = t.value(f"sub {of} {t.value(f'shl {of} 1, {size}')}, 1")
    return by, outside, t.value(f"select i1 {whole}, {of} -1, {of} {ones}")


@instruction("bfi")
def insert_bits(t: Translator, i: Instruction) -> None:
    kind = kind_of(i, 2, "b")
    of = bit_type(kind)
    a, b = (t.read(each, kind) for each in i.args[1:3])
    by, outside, ones = _field(t, kind, *(t.read(each, "u32") for each in i.args[3:5]))
    mask = t.value(f"select i1 {outside}, {of} 0, {of} {t.value(f'shl {of} {ones}, {by}')}")
    new = t.value(f"and {of} {t.value(f'shl {of} {a}, {by}')}, {mask}")
    kept = t.value(f"and {of} {b}, {t.value(f'xor {of} {mask}, -1')}")
    t.write(i.args[0], kind, t.value(f"or {of} {new}, {kept}"))


@instruction("bfe")
def extract_bits(t: Translator, i: Instruction) -> None:
    kind = kind_of(i, 2, "u")
    of = bit_type(kind)
    a = t.read(i.args[1], kind)
    by, outside, ones = _field(t, kind, *(t.read(each, "u32") for each in i.args[2:4]))
    made = t.value(f"and {of} {t.value(f'lshr {of} {a}, {by}')}, {ones}")
    t.write(i.args[0], kind, t.value(f"select i1 {outside}, {of} 0, {of} {made}"))


@instruction("prmt")
def permute(t: Translator, i: Instruction) -> None:
    if i.op != ["prmt", "b32"]:
        raise PtxError("unknown modifiers")
    a, b, how = operands(t, i, "b32", 3)
    low, high = (t.resize(each, "i32", "i64") for each in (a, b))
    pool = t.value(f"or i64 {low}, {t.value(f'shl i64 {high}, 32')}")
    made = "0"
    for n in range(4):
        chosen = t.value(f"lshr i32 {how}, {4 * n}")
        place = t.value(f"shl i32 {t.value(f'and i32 {chosen}, 7')}, 3")
        byte = t.resize(t.value(f"lshr i64 {pool}, {t.resize(place, 'i32', 'i64')}"), "i64", "i8")
        spread = t.value(f"icmp ne i32 {t.value(f'and i32 {chosen}, 8')}, 0")
        signs = t.value(f"ashr i8 {byte}, 7")
        byte = t.value(f"select i1 {spread}, i8 {signs}, i8 {byte}")
        wide = t.value(f"shl i32 {t.resize(byte, 'i8', 'i32')}, {8 * n}")
        made = t.value(f"or i32 {made}, {wide}")
    t.write(i.args[0], "b32", made)
