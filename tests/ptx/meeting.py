"""Instructions at which threads meet, and those that say where a thread goes."""

from __future__ import annotations

from tests.ptx.layout import Error, Kind, Run, Thread
from tests.ptx.parser import Instruction, PtxError
from tests.ptx.translate import Handler, Translator, registering

INSTRUCTIONS: dict[str, Handler] = {}
instruction = registering(INSTRUCTIONS)

REDUCTIONS = {"or": Kind.BAR_OR, "and": Kind.BAR_AND, "popc": Kind.BAR_POPC}


def give(t: Translator, word: Thread, value: str, of: str) -> None:
    """Put an operand into the thread, where the scheduler finds it."""
    t.store_word("T", word, t.resize(value, of, "i64"))


def predicate(t: Translator, arg: str) -> str:
    value = t.read(arg.lstrip("!"), "pred")
    return t.value(f"xor i1 {value}, true") if arg.startswith("!") else value


def take(t: Translator, name: str, kind: str) -> None:
    """Write the result that the scheduler left in the thread."""
    result = t.load_word("T", Thread.RESULT)
    t.write(name, kind, t.resize(result, "i64", "i1" if kind == "pred" else "i32"))


@instruction("bar", "barrier")
def barrier(t: Translator, i: Instruction) -> None:
    if i.op == ["bar", "sync"] and i.args == ["0"]:
        t.leave(i, Kind.BAR_SYNC, Run.BARRIER)
    elif i.op == ["bar", "warp", "sync"] and len(i.args) == 1:
        give(t, Thread.MASK, t.read(i.args[0], "u32"), "i32")
        t.leave(i, Kind.WARP_SYNC, Run.WARP)
    elif i.op[:2] == ["bar", "red"] and len(i.args) == 3 and i.args[1] == "0":
        if len(i.op) != 4 or i.op[2] not in REDUCTIONS:
            raise PtxError("unknown modifiers")
        give(t, Thread.A, predicate(t, i.args[2]), "i1")
        t.leave(i, REDUCTIONS[i.op[2]], Run.BARRIER)
        take(t, i.args[0], i.kind)
    else:
        raise PtxError("unknown barrier")


@instruction("shfl")
def shuffle(t: Translator, i: Instruction) -> None:
    kinds = {"up": Kind.SHFL_UP, "down": Kind.SHFL_DOWN, "bfly": Kind.SHFL_BFLY}
    kinds["idx"] = Kind.SHFL_IDX
    if len(i.op) != 4 or i.op[1] != "sync" or i.kind != "b32" or i.op[2] not in kinds:
        raise PtxError("unknown modifiers")
    words = (Thread.A, Thread.B, Thread.C, Thread.MASK)
    if len(i.args) != 5:
        raise PtxError("operands")
    for word, arg in zip(words, i.args[1:], strict=True):
        give(t, word, t.read(arg, "u32"), "i32")
    t.leave(i, kinds[i.op[2]], Run.WARP)
    to, _bar, inside = (each.strip() for each in i.args[0].partition("|"))
    take(t, to, "b32")
    if inside:
        flag = t.load_word("T", Thread.FLAG)
        t.write(inside, "pred", t.resize(flag, "i64", "i1"))


@instruction("vote")
def vote(t: Translator, i: Instruction) -> None:
    kinds = {"ballot": Kind.VOTE_BALLOT, "any": Kind.VOTE_ANY, "all": Kind.VOTE_ALL}
    kinds["uni"] = Kind.VOTE_UNI
    if len(i.op) != 4 or i.op[1] != "sync" or i.op[2] not in kinds or len(i.args) != 3:
        raise PtxError("unknown modifiers")
    if (i.kind == "b32") != (i.op[2] == "ballot"):
        raise PtxError("unknown type")
    give(t, Thread.A, predicate(t, i.args[1]), "i1")
    give(t, Thread.MASK, t.read(i.args[2], "u32"), "i32")
    t.leave(i, kinds[i.op[2]], Run.WARP)
    take(t, i.args[0], i.kind)


@instruction("match")
def match(t: Translator, i: Instruction) -> None:
    if i.op[1:3] != ["any", "sync"] or len(i.op) != 4 or i.kind not in ("b32", "b64"):
        raise PtxError("unknown modifiers")
    give(t, Thread.A, t.read(i.args[1], i.kind), f"i{i.kind[1:]}")
    give(t, Thread.MASK, t.read(i.args[2], "u32"), "i32")
    t.leave(i, Kind.MATCH_ANY, Run.WARP)
    take(t, i.args[0], "b32")


@instruction("bra")
def branch(t: Translator, i: Instruction) -> None:
    if i.op not in (["bra"], ["bra", "uni"]):
        raise PtxError("unknown modifiers")
    to = f"b{t.flow.label[i.args[0]]}"
    if i.guard is None:
        t.end(f"br label %{to}")
        return
    go = t.fresh()
    t.end(f"br i1 {t.guard(i)}, label %{to}, label %{go}")
    t.label(go)


@instruction("ret", "exit")
def leave(t: Translator, i: Instruction) -> None:
    if len(i.op) != 1:
        raise PtxError("unknown modifiers")
    t.end(f"ret i64 {int(Run.DONE)}")


@instruction("trap")
def trap(t: Translator, i: Instruction) -> None:
    t.fail_if("true", Error.TRAP, i.line)
    t.end("unreachable")
