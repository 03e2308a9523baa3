"""Basic blocks of a kernel, what lives across its meeting points, and places to keep it."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field

from tests.ptx.parser import Instruction, Kernel, PtxError

SPECIAL = re.compile(r"%(n?tid|n?ctaid)\.[xyz]$|%(laneid|warpid|lanemask_\w+|clock\w*|smid)$")
REGISTER = re.compile(r"%[\w$]+(?:\.[xyz])?")
ENDS = {"bra", "ret", "exit", "trap"}
WITHOUT_RESULT = {*ENDS, "st", "red", "membar", "fence"}
MEETINGS = {"bar", "barrier", "shfl", "vote", "match"}
FENCES = {"membar", "fence"}


@dataclass
class Span:
    """A basic block: instructions `first` to `last`, less one."""

    first: int
    last: int
    follow: list[int] = field(default_factory=list)
    before: list[int] = field(default_factory=list)
    live_in: int = 0  # sets of registers, as bits
    live_out: int = 0
    use: int = 0
    kill: int = 0


def is_global(i: Instruction) -> bool:
    """Whether it reads or writes global memory."""
    return i.op[0] in ("ld", "st", "atom", "red") and i.op[1] == "global"


def registers(arg: str) -> list[str]:
    """Return the registers that an argument names."""
    return [each for each in REGISTER.findall(arg) if not SPECIAL.match(each)]


def defs_uses(i: Instruction) -> tuple[list[str], list[str]]:
    """Return the registers that an instruction sets, and those that it reads."""
    if i.op[0] in WITHOUT_RESULT or (i.op[0] in ("bar", "barrier") and i.op[1] != "red"):
        defs, rest = [], i.args
    else:
        defs, rest = registers(i.args[0]), i.args[1:]
    uses = [each for arg in rest for each in registers(arg)]
    return defs, [*uses, i.guard] if i.guard else uses


class Flow:
    """Analysis of one kernel. `preempt`: threads may be left at each access of global memory.

    Attributes
    ----------
    spans : list of Span
    undefined : list of str
        Registers that may be read before they are written: LLVM leaves such where it thinks that
        nothing comes of them.
    slots : dict of str to int
        Registers that live across a point, and their places in the thread.
    """

    def __init__(self, kernel: Kernel, preempt: bool) -> None:
        self.kernel, self.preempt = kernel, preempt
        self.number = {name: n for n, name in enumerate(kernel.registers)}
        self.names = list(kernel.registers)
        self.facts = [self._facts(i) for i in kernel.code]
        self.used = 0
        for defs, uses in self.facts:
            self.used |= defs | uses
        self._cut()
        self._live()
        self.undefined = [self.names[n] for n in bits(self.spans[0].live_in)]
        self.slots: dict[str, int] = {}
        self.num_slots = 0
        self._keep()

    def may_yield(self, i: Instruction) -> bool:
        """Whether a thread may be left at an instruction, to go on later by itself."""
        return self.preempt and (is_global(i) or i.op[0] in FENCES)

    def _facts(self, i: Instruction) -> tuple[int, int]:
        made = []
        for names in defs_uses(i):
            for each in names:
                if each not in self.number:
                    raise PtxError(f"line {i.line}: {each} in {i.text[:100]!r} is unknown")
            made.append(sum(1 << n for n in {self.number[each] for each in names}))
        return made[0], made[1]

    def _cut(self) -> None:
        code = self.kernel.code
        self.label: dict[str, int] = {}  # to the number of a span
        starts, at = {0}, {}
        for n, i in enumerate(code):
            at.update(dict.fromkeys(i.labels, n))
            if i.labels:
                starts.add(n)
            if i.op[0] in ENDS:
                starts.add(n + 1)
        cuts = [*sorted(each for each in starts if each < len(code)), len(code)]
        self.spans = [Span(a, b) for a, b in itertools.pairwise(cuts)]
        of = {span.first: n for n, span in enumerate(self.spans)}
        self.label = {name: of[n] for name, n in at.items()}
        for n, span in enumerate(self.spans):
            last = code[span.last - 1]
            if last.op[0] == "bra":
                if last.args[0] not in self.label:
                    raise PtxError(f"line {last.line}: no such label: {last.text}")
                span.follow.append(self.label[last.args[0]])
            if last.op[0] not in ENDS or last.guard:
                if n + 1 == len(self.spans):
                    raise PtxError(f"line {last.line}: the code runs off its end")
                span.follow.append(n + 1)
            for each in span.follow:
                self.spans[each].before.append(n)

    def _live(self) -> None:
        for span in self.spans:
            for n in range(span.first, span.last):
                defs, uses = self.facts[n]
                span.use |= uses & ~span.kill
                if not self.kernel.code[n].guard:
                    span.kill |= defs
        work = list(range(len(self.spans)))
        while work:
            span = self.spans[work.pop()]
            span.live_out = 0
            for each in span.follow:
                span.live_out |= self.spans[each].live_in
            new = span.use | (span.live_out & ~span.kill)
            if new != span.live_in:
                span.live_in = new
                work.extend(span.before)

    def _keep(self) -> None:
        """Find the registers that are live at a point, and give them places."""
        across = 0
        first = [len(self.facts)] * len(self.names)
        last = [0] * len(self.names)

        def touch(which: int, at: int) -> None:
            for n in bits(which):
                first[n] = min(first[n], at)
                last[n] = max(last[n], at)

        for span in self.spans:
            live = span.live_out
            touch(span.live_out, span.last)
            touch(span.live_in, span.first)
            for n in range(span.last - 1, span.first - 1, -1):
                i = self.kernel.code[n]
                defs, uses = self.facts[n]
                touch(defs | uses, n)
                if i.op[0] in MEETINGS:
                    across |= live & ~(0 if i.guard else defs)
                if not i.guard:
                    live &= ~defs
                live |= uses
                if self.may_yield(i):
                    across |= live
        # A place is used again by a register whose life begins behind the end of another's.
        free: list[int] = []
        busy: list[tuple[int, int]] = []
        for begin, end, n in sorted((first[n], last[n], n) for n in bits(across)):
            for each in [each for each in busy if each[0] < begin]:
                busy.remove(each)
                free.append(each[1])
            if not free:
                free.append(self.num_slots)
                self.num_slots += 1
            slot = free.pop()
            busy.append((end, slot))
            self.slots[self.names[n]] = slot


def bits(of: int) -> list[int]:
    """Return the numbers of the bits that are set."""
    made = []
    while of:
        low = of & -of
        made.append(low.bit_length() - 1)
        of ^= low
    return made
