"""Instructions that read and write memory: parameters, shared memory, global memory."""

from __future__ import annotations

from tests.ptx.layout import Launch, Thread
from tests.ptx.parser import SIZES, Instruction, PtxError
from tests.ptx.translate import Handler, Translator, bit_type, registering

INSTRUCTIONS: dict[str, Handler] = {}
instruction = registering(INSTRUCTIONS)

ATOMICS = {"add": "add", "and": "and", "or": "or", "xor": "xor"}
WRITES, ATOMIC = 1, 2  # how shared memory is accessed

# Functions beside each kernel, so that an access is one call in it.
CHECK = """
define internal i1 @outside_{n}(ptr %L, ptr %B, ptr %T, i64 %at, i64 %site, i64 %line) {{
  %sites_at = getelementptr ptr, ptr %L, i64 {sites}
  %sites = load ptr, ptr %sites_at
  %double = shl i64 %site, 1
  %low_at = getelementptr i64, ptr %sites, i64 %double
  %low = load i64, ptr %low_at
  %span_at = getelementptr i64, ptr %low_at, i64 1
  %span = load i64, ptr %span_at
  %from = sub i64 %at, %low
  %far = icmp ugt i64 %from, %span
  %rest = and i64 %at, {rest}
  %odd = icmp ne i64 %rest, 0
  %bad = or i1 %far, %odd
  br i1 %bad, label %look, label %fine
fine:
  ret i1 false
look:
  %check_at = getelementptr ptr, ptr %L, i64 {check}
  %check = load ptr, ptr %check_at
  %ok = call i64 %check(ptr %L, ptr %B, ptr %T, i64 %at, i64 {n}, i64 %site, i64 %line)
  %failed = icmp eq i64 %ok, 0
  ret i1 %failed
}}
"""
PRELUDE = """
declare i32 @llvm.fshl.i32(i32, i32, i32)
declare i32 @llvm.fshr.i32(i32, i32, i32)
define internal void @report(ptr %L, ptr %B, ptr %T, i64 %error, i64 %line) {{
  %error_at = getelementptr i64, ptr %L, i64 {error}
  store i64 %error, ptr %error_at
  %line_at = getelementptr i64, ptr %L, i64 {line}
  store i64 %line, ptr %line_at
  %block = load i64, ptr %B
  %block_at = getelementptr i64, ptr %L, i64 {block}
  store i64 %block, ptr %block_at
  %id_at = getelementptr i64, ptr %T, i64 {id}
  %id = load i64, ptr %id_at
  %thread_at = getelementptr i64, ptr %L, i64 {thread}
  store i64 %id, ptr %thread_at
  ret void
}}
"""


def prelude() -> str:
    """Return the functions that stand beside a kernel's."""
    text = PRELUDE.format(
        error=int(Launch.ERROR),
        line=int(Launch.ERROR_LINE),
        block=int(Launch.ERROR_BLOCK),
        thread=int(Launch.ERROR_THREAD),
        id=int(Thread.ID),
    )
    for name, sizes in (("ctpop", (32, 64)), ("bitreverse", (32, 64))):
        text += "".join(f"declare i{n} @llvm.{name}.i{n}(i{n})\n" for n in sizes)
    text += "".join(f"declare i{n} @llvm.ctlz.i{n}(i{n}, i1)\n" for n in (32, 64))
    for n in (1, 2, 4, 8):
        text += CHECK.format(
            n=n, rest=n - 1, sites=int(Launch.SITES), check=int(Launch.GLOBAL_CHECK)
        )
    return text


def call(t: Translator, function: Launch, *arguments: object) -> str:
    """Call a function of the runtime; return its value."""
    at = t.value(f"getelementptr ptr, ptr %L, i64 {int(function)}")
    address = t.value(f"load ptr, ptr {at}")
    given = ", ".join(f"i64 {each}" for each in arguments)
    return t.value(f"call i64 {address}(ptr %L, ptr %B, ptr %T, {given})")


def space_of(i: Instruction, words: int, *spaces: str) -> str:
    """Return the state space of an instruction whose mnemonic has so many words."""
    if len(i.op) != words or i.op[1] not in spaces or i.kind not in SIZES or i.kind == "pred":
        raise PtxError("unknown modifiers")
    return i.op[1]


def shared_pointer(t: Translator, i: Instruction, arg: str, how: int, value: str = "0") -> str:
    """Return a checked place of shared memory. `value`: what is stored there."""
    at = t.effective(arg)
    place = call(t, Launch.SHARED_CHECK, at, SIZES[i.kind], how, value, i.line)
    t.unless(t.value(f"icmp eq i64 {place}, 0"))
    return t.value(f"inttoptr i64 {place} to ptr")


def global_address(t: Translator, i: Instruction, arg: str) -> str:
    t.may_leave(i)
    at, size = t.effective(arg), SIZES[i.kind]
    given = f"ptr %L, ptr %B, ptr %T, i64 {at}, i64 {t.site()}, i64 {i.line}"
    t.unless(t.value(f"call i1 @outside_{size}({given})"))
    return at


def watched(t: Translator) -> str:
    """Branch to where launches are watched; return the label of where they are not."""
    asked = t.load_word("L", Launch.WATCH)
    return t.branch(t.value(f"icmp ne i64 {asked}, 0"))


@instruction("ld")
def load(t: Translator, i: Instruction) -> None:
    space, of, size = space_of(i, 3, "param", "shared", "global"), bit_type(i.kind), SIZES[i.kind]
    if space == "param":
        base, offset = t.address(i.args[1])
        if offset or base not in t.params:
            raise PtxError("unknown parameter")
        at = t.value(f"getelementptr i64, ptr %params, i64 {t.params[base]}")
        t.write(i.args[0], i.kind, t.value(f"load {of}, ptr {at}"), wider=True)
    elif space == "shared":
        at = shared_pointer(t, i, i.args[1], 0)
        t.write(i.args[0], i.kind, t.value(f"load {of}, ptr {at}, align {size}"), wider=True)
    else:
        address = global_address(t, i, i.args[1])
        done = t.fresh()
        if t.preempt:
            plain = watched(t)
            value = call(t, Launch.WATCH_LOAD, address, size, i.line)
            t.write(i.args[0], i.kind, t.resize(value, "i64", of), wider=True)
            t.end(f"br label %{done}")
            t.label(plain)
        at = t.value(f"inttoptr i64 {address} to ptr")
        t.write(i.args[0], i.kind, t.value(f"load {of}, ptr {at}, align {size}"), wider=True)
        t.label(done)


@instruction("st")
def store(t: Translator, i: Instruction) -> None:
    space, of, size = space_of(i, 3, "shared", "global"), bit_type(i.kind), SIZES[i.kind]
    if space == "shared":
        value = t.read(i.args[1], i.kind, wider=True)
        wide = t.resize(value, of, "i64")
        at = shared_pointer(t, i, i.args[0], WRITES, wide)
        t.emit(f"store {of} {value}, ptr {at}, align {size}")
        return
    address = global_address(t, i, i.args[0])
    value = t.read(i.args[1], i.kind, wider=True)
    done = t.fresh()
    if t.preempt:
        plain = watched(t)
        call(t, Launch.WATCH_STORE, address, t.resize(value, of, "i64"), size, i.line)
        t.end(f"br label %{done}")
        t.label(plain)
    at = t.value(f"inttoptr i64 {address} to ptr")
    t.emit(f"store {of} {value}, ptr {at}, align {size}")
    t.label(done)


@instruction("atom", "red")
def atomic(t: Translator, i: Instruction) -> None:
    space, of, size = space_of(i, 4, "shared", "global"), bit_type(i.kind), SIZES[i.kind]
    result = i.op[0] == "atom"
    where, *given = i.args[1:] if result else i.args
    if size < 4 or len(given) != (2 if i.op[2] == "cas" else 1):
        raise PtxError("unknown form")
    if space == "shared":
        at = shared_pointer(t, i, where, WRITES | ATOMIC)
    else:
        address = global_address(t, i, where)
        if t.preempt:
            plain = watched(t)
            call(t, Launch.WATCH_ATOMIC, address, size, i.line)
            t.label(plain)
        at = t.value(f"inttoptr i64 {address} to ptr")
    values = [t.read(each, i.kind) for each in given]
    old = t.value(f"load {of}, ptr {at}, align {size}")
    t.emit(f"store {of} {changed(t, i, old, values)}, ptr {at}, align {size}")
    if result:
        t.write(i.args[0], i.kind, old)


def changed(t: Translator, i: Instruction, old: str, values: list[str]) -> str:
    """Return what an atomic leaves."""
    what, of = i.op[2], bit_type(i.kind)
    if what in ATOMICS:
        return t.value(f"{ATOMICS[what]} {of} {old}, {values[0]}")
    if what == "exch":
        return values[0]
    if what in ("min", "max") and i.kind[0] in "us":
        less = t.value(f"icmp {i.kind[0]}{'lt' if what == 'min' else 'gt'} {of} {old}, {values[0]}")
        return t.value(f"select i1 {less}, {of} {old}, {of} {values[0]}")
    if what == "cas":
        same = t.value(f"icmp eq {of} {old}, {values[0]}")
        return t.value(f"select i1 {same}, {of} {values[1]}, {of} {old}")
    raise PtxError("unknown atomic")


@instruction("membar", "fence")
def fence(t: Translator, i: Instruction) -> None:
    if i.op not in (
        ["membar", "gl"],
        ["membar", "sys"],
        ["membar", "cta"],
        ["fence", "acq_rel", "gpu"],
    ):
        raise PtxError("unknown modifiers")
    if not t.preempt or i.op[-1] == "cta":  # orders within the block only
        return
    t.may_leave(i)
    plain = watched(t)
    call(t, Launch.WATCH_FENCE, i.line)
    t.label(plain)
