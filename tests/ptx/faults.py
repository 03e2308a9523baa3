"""What went wrong in a launch, in words."""

from __future__ import annotations

from typing import Any

from tests.ptx.layout import NOTE_FIELDS, Error, Launch, State, Thread

TEXTS = {
    Error.DIVISION: "division by zero",
    Error.ENDLESS: "more instructions than the limit: an endless loop?",
    Error.TRAP: "trap",
    Error.GLOBAL_ALIGN: "global access of {a} bytes at {b:#x}, which is not aligned",
    Error.GLOBAL_BOUNDS: "global access of {a} bytes out of bounds: {b} bytes from the start of "
    "array {c}",
    Error.SHARED_ALIGN: "shared access of {a} bytes at {b}, which is not aligned",
    Error.SHARED_BOUNDS: "shared access of {a} bytes out of bounds, at {b}",
    Error.SHARED_UNWRITTEN: "shared memory at {b} is read before it is written",
    Error.NOT_IN_MASK: "the lane is not in its own mask {a:#x}",
    Error.MASK_OUTSIDE: "mask {a:#x} names lanes that the warp has not; it has {b:#x}",
    Error.MASK_EXITED: "mask {a:#x} names lanes that have exited; {b:#x} live",
    Error.MASKS_DIFFER: "lanes of one mask {a:#x} are at different points: lane {b} at line {c}",
    Error.SHUFFLE_FROM: "shuffle from lane {a}, which is not in mask {b:#x}",
    Error.BARRIER_KINDS: "barriers of two kinds meet; the other is at line {a}",
    Error.BARRIER_LINES: "lanes of a warp are at different barriers; the other is at line {a}",
    Error.DEADLOCK: "deadlock: {a} of {b} threads live",
}
VERBS = {0: "read", 1: "write"}


class MachineError(RuntimeError):
    """A kernel did what no GPU would forgive."""


def fault_text(words: Any, lines: list[str], threads: Any) -> str:
    """Return why a launch ended. `lines`: the PTX; `threads`: those of the blocks under way."""
    error, line, block, thread, a, b, c = (
        int(each) for each in words[Launch.ERROR : Launch.ERROR_C + 1]
    )
    told = TEXTS[Error(error)].format(a=a, b=b, c=c)
    if error == Error.DEADLOCK:
        return f"block {block}: {told};{_waiting(words, lines, threads, c)}"
    return f"block {block}, thread {thread}: {told}, at {place(lines, line)}"


def place(lines: list[str], line: int) -> str:
    """Return a line of PTX with its number."""
    return f"line {line} ({lines[line - 1].strip()})"


def _waiting(words: Any, lines: list[str], threads: Any, slot: int) -> str:
    count, width = int(words[Launch.BLOCK]), int(words[Launch.THREAD_WORDS])
    rows = threads.reshape(-1, count, width)[slot]
    told, before = "", (-1, -1)
    for n in range(count):
        state, line = int(rows[n, Thread.STATE]), int(rows[n, Thread.SITE])
        if state != State.EXITED and (state, line) != before and len(told) < 500:
            what = "a barrier" if state == State.AT_BARRIER else "lanes of its warp"
            told += f" thread {n} waits for {what} at {place(lines, line)};"
        before = (state, line)
    return told.rstrip(";")


def races(words: Any, notes: Any, lines: list[str]) -> list[str]:
    """Return the races that were found, each pair of places once.

    Harmless are two: a write of what stands there already, and a plain read of a word that an
    atomic changes meanwhile, as words are read as a whole.
    """
    made = []
    for row in notes.reshape(-1, NOTE_FIELDS)[: words[Launch.NUM_NOTES]].tolist():
        space = "global" if row[0] else "shared"
        one, other = (
            f"{'atomic ' if atomic else ''}{VERBS[write]} at {place(lines, line)} "
            f"by block {block}, thread {thread}"
            for write, atomic, line, block, thread in (row[1:6], row[7:12])
        )
        mixed = row[2] != row[8] and not (row[1] and row[7])
        if not row[13] and not mixed:
            made.append(f"race in {space} memory: {one}, and {other}; {row[14]} times")
    return made
