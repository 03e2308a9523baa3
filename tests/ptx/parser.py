"""PTX as text to a list of instructions with labels, registers, parameters and shared arrays.

Knows what numba-cuda makes of a kernel: one `.entry` without functions beside it. All else is an
error that shows the text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

SIZES = {f"{kind}{8 * size}": size for kind in "bus" for size in (1, 2, 4, 8)} | {"pred": 1}
VARIABLE = re.compile(r"\.(\w+)\s+([\w$]+)\s*(?:\[(\d*)\])?$")
STATEMENT = re.compile(r"(?:@(!?)(%[\w$]+)\s+)?([a-z][\w.]*)\s*(.*)$", re.S)
TOKEN = re.compile(r"\s*(?:([\w$]+):(?!:)|(\{)(?=\s)|(\})|([^;{}]*(?:\{[^;{}]*\}[^;{}]*)*);)")
ENTRY = re.compile(r"(?:\.visible\s+)?\.entry\s+([\w$]+)\s*\(([^)]*)\)([^{]*)\{")
HEADERS = re.compile(r"\.(version|target|address_size)\s+[\w.]+")


class PtxError(Exception):
    """Something in the text that the machine does not know."""


@dataclass
class Instruction:
    """One instruction, as written; braces and brackets of an argument are kept together."""

    line: int
    text: str
    op: list[str]  # the mnemonic, split at dots
    args: list[str]
    guard: str | None = None  # predicate register
    negated: bool = False
    labels: list[str] = field(default_factory=list)  # that stand before it

    @property
    def kind(self) -> str:
        """The last modifier: mostly the type."""
        return self.op[-1]


@dataclass
class Kernel:
    """One `.entry`."""

    name: str
    params: list[tuple[str, str]]  # name, type
    registers: dict[str, str]  # name to type; ranges are expanded
    shared: dict[str, tuple[int, int]]  # name to bytes and alignment
    code: list[Instruction]
    most_threads: int | None


def parse(text: str) -> Kernel:
    """Return the only kernel in a text; lines are counted from 1."""
    text = re.sub(r"//[^\n]*", "", text)
    text = re.sub(r"/\*.*?\*/", lambda found: "\n" * found.group().count("\n"), text, flags=re.S)
    entry = ENTRY.search(text)
    if entry is None:
        raise PtxError("no .entry")
    shared = _shared(text[: entry.start()])
    bounds = re.search(r"\.maxntid\s+(\d+)", entry.group(3))
    made = Kernel(
        entry.group(1),
        [_parameter(each) for each in split(entry.group(2))],
        {},
        shared,
        [],
        int(bounds.group(1)) if bounds else None,
    )
    end = _Body(made, text, entry.end()).read()
    if text[end:].strip():
        raise PtxError(f"behind the kernel stands {text[end:].strip()[:100]!r}")
    return made


def split(text: str) -> list[str]:
    """Split at commas that stand in no bracket."""
    if not re.search(r"[{\[(]", text):
        return [each.strip() for each in text.split(",") if each.strip()]
    return [
        each.strip() for each in re.findall(r"(?:[^,{\[(]|\{[^}]*\}|\[[^\]]*\]|\([^)]*\))+", text)
    ]


def _shared(text: str) -> dict[str, tuple[int, int]]:
    """Return the shared arrays among the declarations of a module."""
    made: dict[str, tuple[int, int]] = {}
    for each in HEADERS.sub("", text).split(";"):
        declared = " ".join(each.split())
        # Numba's environments, which nothing refers to.
        if not declared or declared.startswith(".common .global"):
            continue
        found = re.match(r"(?:\.visible\s+)?\.shared\s+(?:\.align\s+(\d+)\s+)?(.*)$", declared)
        array = VARIABLE.match(found.group(2)) if found else None
        if found is None or array is None or array.group(3) == "" or array.group(1) not in SIZES:
            raise PtxError(f"directive {declared[:100]!r}")
        size = SIZES[array.group(1)]
        made[array.group(2)] = size * int(array.group(3) or 1), int(found.group(1) or size)
    return made


def _parameter(text: str) -> tuple[str, str]:
    found = re.match(r"\.param\s+\.(\w+)\s+([\w$]+)$", text)
    if found is None or found.group(1) not in SIZES:
        raise PtxError(f"parameter {text[:100]!r}")
    return found.group(2), found.group(1)


class _Body:
    """Reads a body; registers declared in inner braces get names of their own."""

    def __init__(self, kernel: Kernel, text: str, at: int) -> None:
        self.kernel, self.text, self.at = kernel, text, at
        self.line = text.count("\n", 0, at) + 1
        self.scopes: list[dict[str, str]] = [{}]
        self.opened = 0

    def read(self) -> int:
        """Read up to the closing brace; return where the text goes on."""
        labels: list[str] = []
        while self.scopes:
            found = TOKEN.match(self.text, self.at)
            if found is None:
                raise PtxError(f"line {self.line}: {self.text[self.at :].strip()[:100]!r}")
            label, opens, closes, statement = found.groups()
            begin = found.end() - len(found.group().lstrip())
            here = self.line + self.text.count("\n", self.at, begin)
            self.line += found.group().count("\n")
            self.at = found.end()
            if label:
                labels.append(label)
            elif opens:
                self.opened += 1
                self.scopes.append({"": f"_scope{self.opened}"})
            elif closes:
                self.scopes.pop()
            elif self._statement(statement.strip(), here, labels):
                labels = []
        if labels:
            raise PtxError(f"labels {labels} at the end")
        return self.at

    def _statement(self, statement: str, line: int, labels: list[str]) -> bool:
        """Take one statement; return whether it is an instruction."""
        if statement.startswith(".reg"):
            self._registers(statement, line)
            return False
        if statement.startswith(".pragma"):
            return False
        made = STATEMENT.match(statement)
        if made is None:
            raise PtxError(f"line {line}: {statement[:100]!r}")
        negated, guard, op, args = made.groups()
        if self.opened:
            guard = guard and self._own(guard)
            args = re.sub(r"%[\w$]+", lambda name: self._own(name.group()), args)
        self.kernel.code.append(
            Instruction(line, statement, op.split("."), split(args), guard, negated == "!", labels)
        )
        return True

    def _own(self, name: str) -> str:
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        return name  # a special register

    def _registers(self, statement: str, line: int) -> None:
        found = re.match(r"\.reg\s+\.(\w+)\s+(.*)$", statement, re.S)
        if found is None or found.group(1) not in SIZES:
            raise PtxError(f"line {line}: {statement[:100]!r}")
        scope = self.scopes[-1]
        for each in found.group(2).split(","):
            many = re.match(r"(%\w+)<(\d+)>$", each.strip())
            names = [each.strip()]
            if many:
                names = [f"{many.group(1)}{i}" for i in range(int(many.group(2)))]
            for name in names:
                scope[name] = name + scope.get("", "")
                self.kernel.registers[scope[name]] = found.group(1)
