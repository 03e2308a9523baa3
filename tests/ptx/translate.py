"""A parsed kernel to LLVM IR: one function that runs a thread up to its next meeting point.

`step(launch, block, thread)` gets addresses of words (see `layout`) and returns a `Run`. Registers
that live across a point lie in the thread; the others are variables of the function.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.ptx.flow import FENCES, MEETINGS, Flow, Span, is_global
from tests.ptx.layout import GUARD_BYTES, Block, Error, Kind, Launch, Run, Thread
from tests.ptx.parser import SIZES, Instruction, Kernel, PtxError

Handler = Callable[["Translator", Instruction], None]

# What one run of a span executes.
FACTS = ("instructions", "loads", "stores", "atomics", "bytes", "shared", "fences", "meetings")
INTEGER = re.compile(r"-?(?:0[xX][0-9a-fA-F]+|\d+)U?$")
ADDRESS = re.compile(r"\[\s*([%\w$]+)\s*(?:\+\s*(-?\d+))?\s*\]$")


def registering(handlers: dict[str, Handler]) -> Callable[..., Callable[[Handler], Handler]]:
    """Return a decorator that enters a function as what translates instructions of some names."""

    def instruction(*names: str) -> Callable[[Handler], Handler]:
        def put(handler: Handler) -> Handler:
            handlers.update(dict.fromkeys(names, handler))
            return handler

        return put

    return instruction


def bit_type(kind: str) -> str:
    """Return the LLVM type of a PTX type."""
    if kind not in SIZES:
        raise PtxError(f"type {kind}")
    return "i1" if kind == "pred" else f"i{8 * SIZES[kind]}"


@dataclass
class Translation:
    """One kernel as LLVM IR, and what the machine has to know about it."""

    text: str
    facts: list[list[int]]  # of each span, in the order of FACTS
    slots: int
    sites: int
    shared_bytes: int
    shared: list[tuple[int, int]]  # place and size of each array


class Translator:
    """Translates one kernel.

    Parameters
    ----------
    preempt : bool
        Threads may be left at accesses of global memory, which are watched where that is asked for.
    name : str
        Of the function.
    handlers : dict of str to callable
        What translates an instruction, by the first word of its mnemonic.
    """

    def __init__(
        self, kernel: Kernel, preempt: bool, name: str, handlers: dict[str, Handler]
    ) -> None:
        self.kernel, self.preempt, self.name, self.handlers = kernel, preempt, name, handlers
        self.flow = Flow(kernel, preempt)
        self.params = {param: n for n, (param, _kind) in enumerate(kernel.params)}
        self.place: dict[str, int] = {}
        at = GUARD_BYTES
        for array, (size, align) in kernel.shared.items():
            at = -(-at // align) * align
            self.place[array] = at
            at += size + GUARD_BYTES
        self.shared_bytes = -(-at // 8) * 8
        self.lines: list[str] = []
        self.cases: list[int] = []  # points where a thread goes on
        self.sites = 0
        self.names = 0
        self.open = True  # the last basic block of LLVM has no end yet

    # What is written.

    def emit(self, text: str) -> None:
        self.lines.append(text)

    def value(self, text: str) -> str:
        """Emit an instruction of LLVM that has a value; return the value."""
        self.names += 1
        self.lines.append(f"%t{self.names} = {text}")
        return f"%t{self.names}"

    def end(self, text: str) -> None:
        """Emit what ends a basic block of LLVM."""
        self.lines.append(text)
        self.open = False

    def label(self, name: str) -> None:
        """Begin a basic block of LLVM."""
        if self.open:
            self.lines.append(f"br label %{name}")
        self.lines.append(f"{name}:")
        self.open = True

    def fresh(self) -> str:
        self.names += 1
        return f"l{self.names}"

    def branch(self, condition: str, no: str | None = None) -> str:
        """Branch to a new label, and go on at `no`, or another new one; return the first."""
        yes, no = self.fresh(), no or self.fresh()
        self.end(f"br i1 {condition}, label %{yes}, label %{no}")
        self.label(yes)
        return no

    def unless(self, failed: str) -> None:
        """Leave with what has been said about an error, if so."""
        go = self.fresh()
        self.end(f"br i1 {failed}, label %failed, label %{go}")
        self.label(go)

    def fail_if(self, condition: str, error: Error, line: int) -> None:
        go = self.branch(condition)
        self.emit(f"call void @report(ptr %L, ptr %B, ptr %T, i64 {int(error)}, i64 {line})")
        self.end("br label %failed")
        self.label(go)

    # Words.

    def load_word(self, of: str, word: int) -> str:
        at = self.value(f"getelementptr i64, ptr %{of}, i64 {int(word)}")
        return self.value(f"load i64, ptr {at}")

    def store_word(self, of: str, word: int, value: Any) -> None:
        at = self.value(f"getelementptr i64, ptr %{of}, i64 {int(word)}")
        self.emit(f"store i64 {value}, ptr {at}")

    # Operands.

    def resize(self, value: str, of: str, to: str, signed: bool = False) -> str:
        """Return a value of one LLVM type as one of another."""
        a, b = int(of[1:]), int(to[1:])
        if a == b:
            return value
        how = "trunc" if a > b else "sext" if signed else "zext"
        return self.value(f"{how} {of} {value} to {to}")

    def pointer(self, name: str) -> str:
        if name in self.flow.slots:
            return f"%s{self.flow.slots[name]}"
        return "%x_" + name.strip("%")

    def read(self, arg: str, kind: str, wider: bool = False) -> str:
        """Return an operand, as a value of a PTX type. `wider`: registers may be, as for st."""
        if arg in self.flow.number:
            of = bit_type(self.kernel.registers[arg])
            size = SIZES[self.kernel.registers[arg]]
            if size != SIZES[kind] and not (wider and size > SIZES[kind]):
                raise PtxError(f"{arg} is not of the size of {kind}")
            stored = "i8" if of == "i1" else of
            return self.resize(
                self.value(f"load {stored}, ptr {self.pointer(arg)}"), stored, bit_type(kind)
            )
        if INTEGER.match(arg):
            value = int(arg.rstrip("U"), 0)
            return str(int(value != 0) if kind == "pred" else value % 2 ** (8 * SIZES[kind]))
        if arg in self.place:
            return str(self.place[arg])
        if arg in SPECIAL_VALUES:
            return self.resize(SPECIAL_VALUES[arg](self), "i64", bit_type(kind))
        raise PtxError(f"operand {arg[:100]!r}")

    def write(self, name: str, kind: str, value: str, wider: bool = False) -> None:
        """Assign a value of a PTX type. `wider`: it is extended to the register, as by ld."""
        if name not in self.flow.number:
            raise PtxError(f"result {name[:100]!r}")
        of = self.kernel.registers[name]
        fits = SIZES[of] == SIZES[kind] or (wider and SIZES[of] > SIZES[kind])
        if not fits or (of == "pred") != (kind == "pred"):
            raise PtxError(f"{name} does not hold {kind}")
        stored = "i8" if of == "pred" else bit_type(of)
        value = self.resize(value, bit_type(kind), stored, kind[0] == "s")
        self.emit(f"store {stored} {value}, ptr {self.pointer(name)}")

    def address(self, arg: str) -> tuple[str, int]:
        """Return the base of an address as written, and its offset."""
        found = ADDRESS.match(arg)
        if found is None:
            raise PtxError(f"address {arg[:100]!r}")
        return found.group(1), int(found.group(2) or 0)

    def effective(self, arg: str) -> str:
        """Return an address as a value."""
        base, offset = self.address(arg)
        value = self.read(base, "u64")
        return self.value(f"add i64 {value}, {offset}") if offset else value

    def site(self) -> int:
        """Return the number of a new place that accesses global memory."""
        self.sites += 1
        return self.sites - 1

    # Points.

    def point(self) -> int:
        self.cases.append(len(self.cases) + 1)
        return self.cases[-1]

    def may_leave(self, i: Instruction) -> None:
        """A place where another thread may have its turn."""
        if not self.flow.may_yield(i):
            return
        n = self.point()
        left = self.value(f"sub i64 {self.load_word('T', Thread.QUANTUM)}, 1")
        self.store_word("T", Thread.QUANTUM, left)
        negative = self.value(f"icmp slt i64 {left}, 0")
        self.branch(negative, f"p{n}")
        self.store_word("T", Thread.PC, n)
        self.end(f"ret i64 {int(Run.YIELD)}")
        self.label(f"p{n}")

    def leave(self, i: Instruction, kind: Kind, how: Run) -> None:
        """Wait for other threads; the operands stand in the thread."""
        n = self.point()
        for word, value in ((Thread.KIND, int(kind)), (Thread.SITE, i.line), (Thread.PC, n)):
            self.store_word("T", word, value)
        self.end(f"ret i64 {int(how)}")
        self.label(f"p{n}")

    # The whole.

    def translate(self) -> Translation:
        facts = []
        for n, span in enumerate(self.flow.spans):
            self.label(f"b{n}")
            facts.append(self._facts(span))
            self._count(n, facts[-1])
            for i in self.kernel.code[span.first : span.last]:
                try:
                    self._instruction(i)
                except PtxError as error:
                    raise PtxError(f"line {i.line}, {i.text[:200]!r}: {error}") from None
        if self.open:
            self.end("unreachable")
        shared = [(self.place[name], size) for name, (size, _) in self.kernel.shared.items()]
        return Translation(
            self._text(), facts, self.flow.num_slots, self.sites, self.shared_bytes, shared
        )

    def _facts(self, span: Span) -> list[int]:
        made = dict.fromkeys(FACTS, 0)
        for i in self.kernel.code[span.first : span.last]:
            made["instructions"] += 1
            if is_global(i):
                made[{"ld": "loads", "st": "stores"}.get(i.op[0], "atomics")] += 1
                made["bytes"] += SIZES.get(i.kind, 0)
            elif i.op[0] in ("ld", "st", "atom", "red"):
                made["shared"] += i.op[1] == "shared"
            made["fences"] += i.op[0] in FENCES
            made["meetings"] += i.op[0] in MEETINGS
        return list(made.values())

    def _count(self, n: int, facts: list[int]) -> None:
        accesses = sum(facts[1:4])
        done = self.value(f"add i64 {self.load_word('T', Thread.INSTRUCTIONS)}, {facts[0]}")
        self.store_word("T", Thread.INSTRUCTIONS, done)
        if accesses:
            made = self.value(f"add i64 {self.load_word('T', Thread.ACCESSES)}, {accesses}")
            self.store_word("T", Thread.ACCESSES, made)
        at = self.value(f"getelementptr i64, ptr %counts, i64 {n}")
        runs = self.value(f"load i64, ptr {at}")
        self.emit(f"store i64 {self.value(f'add i64 {runs}, 1')}, ptr {at}")
        if any(each >= n for each in self.flow.spans[n].before):  # a loop begins here
            limit = self.load_word("L", Launch.LIMIT)
            line = self.kernel.code[self.flow.spans[n].first].line
            self.fail_if(self.value(f"icmp ugt i64 {done}, {limit}"), Error.ENDLESS, line)

    def _instruction(self, i: Instruction) -> None:
        name = i.op[0]
        if name not in self.handlers:
            raise PtxError("unknown instruction")
        if i.guard is None or name == "bra":
            self.handlers[name](self, i)
            return
        if name in MEETINGS or self.flow.may_yield(i):
            raise PtxError("a synchronising instruction under a predicate")
        skip = self.branch(self.guard(i))
        self.handlers[name](self, i)
        self.label(skip)

    def guard(self, i: Instruction) -> str:
        """Return the predicate of an instruction as a value."""
        value = self.read(i.guard or "", "pred")
        return self.value(f"xor i1 {value}, true") if i.negated else value

    def _text(self) -> str:
        head = [f"define i64 @{self.name}(ptr %L, ptr %B, ptr %T) {{", "entry:"]
        head += [
            f"%s{n} = getelementptr i64, ptr %T, i64 {Thread.REGISTERS + n}"
            for n in range(self.flow.num_slots)
        ]
        undefined = set(self.flow.undefined)
        for n, name in enumerate(self.flow.names):
            kind = self.kernel.registers[name]
            if self.flow.used >> n & 1 and name not in self.flow.slots:
                stored = "i8" if kind == "pred" else bit_type(kind)
                head.append(f"{self.pointer(name)} = alloca {stored}")
        for word in (Launch.PARAMS, Launch.COUNTS):
            name = word.name.lower()
            head += [
                f"%{name}_at = getelementptr ptr, ptr %L, i64 {int(word)}",
                f"%{name} = load ptr, ptr %{name}_at",
            ]
        head += [f"%pc_at = getelementptr i64, ptr %T, i64 {int(Thread.PC)}"]
        head += ["%pc = load i64, ptr %pc_at"]
        cases = " ".join(f"i64 {n}, label %p{n}" for n in self.cases)
        head += [f"switch i64 %pc, label %failed [ i64 0, label %begin {cases} ]"]
        head += ["failed:", f"ret i64 {int(Run.ERROR)}", "begin:"]
        if undefined:
            head += [f"%poison_at = getelementptr i64, ptr %L, i64 {int(Launch.POISON)}"]
            head += ["%poison = load i64, ptr %poison_at"]
            head += [f"%poison_{n} = trunc i64 %poison to i{n}" for n in (8, 16, 32)]
            head += ["%poison_1 = and i8 %poison_8, 1"]
        for name in sorted(undefined):
            kind = self.kernel.registers[name]
            size = 8 * SIZES[kind]
            value = "%poison_1" if kind == "pred" else f"%poison_{size}" if size < 64 else "%poison"
            head.append(f"store i{size} {value}, ptr {self.pointer(name)}")
        return "\n".join([*head, *self.lines, "}"])


def _thread_id(t: Translator) -> str:
    return t.load_word("T", Thread.ID)


def _lane(t: Translator) -> str:
    return t.value(f"and i64 {_thread_id(t)}, 31")


def _lanes_below(t: Translator) -> str:
    return t.value(f"sub i64 {t.value(f'shl i64 1, {_lane(t)}')}, 1")


SPECIAL_VALUES: dict[str, Callable[[Translator], str]] = {
    "%tid.x": _thread_id,
    "%ntid.x": lambda t: t.load_word("L", Launch.BLOCK),
    "%ctaid.x": lambda t: t.load_word("B", Block.ID),
    "%nctaid.x": lambda t: t.load_word("L", Launch.GRID),
    "%laneid": _lane,
    "%warpid": lambda t: t.value(f"lshr i64 {_thread_id(t)}, 5"),
    "%lanemask_eq": lambda t: t.value(f"shl i64 1, {_lane(t)}"),
    "%lanemask_lt": _lanes_below,
    **dict.fromkeys(("%tid.y", "%tid.z", "%ctaid.y", "%ctaid.z"), lambda _t: "0"),
    **dict.fromkeys(("%ntid.y", "%ntid.z", "%nctaid.y", "%nctaid.z"), lambda _t: "1"),
}
