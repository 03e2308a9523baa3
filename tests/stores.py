"""Stores of CUDA kernels, counted before and after the passes of numba-cuda, and in the PTX.

`python -m tests.stores [--pass-on] kernel ...` prints what was lost as JSON. It is a process of its
own: helpers are compiled but once a process, here with the lines that they come from.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import sys
import textwrap
import types
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jitalloc.gpu import kernel as _cuda
from jitalloc.gpu.kernel import gpu

CAPABILITY = (9, 0)

Place = tuple[str, int, str]  # file, line, "store" or "atomic"


# The kernel that shows that a loss is seen.


def itself(words):  # type: ignore[no-untyped-def]
    return words


def planted_cuda(words, counts, place):  # type: ignore[no-untyped-def]
    words[1:].view(np.int32)[place] = 7  # a store at a constant place is kept
    itself(counts)[0] = 7
    gpu.atomic.add(counts, 1, np.int64(7))


def planted_kernel() -> _cuda.CudaKernel:
    """Return a kernel whose first store is to a view, and that has a helper inlined."""
    from numba import cuda
    from numba.cuda.extending import register_jitable

    globals()["gpu"] = cuda
    register_jitable(inline="always")(itself)
    signature = "void(int64[::1], int64[::1], int64)"
    return _cuda.CudaKernel(planted_cuda, signature)


# In the source.


def functions_of(function: Any, found: set[Any]) -> set[Any]:
    """Return a function of ours and all that it names, and so on; whether it calls them or not."""
    if function not in found:
        found.add(function)
        for name in names_in(function.__code__):
            value = function.__globals__.get(name)
            value = getattr(value, "py_func", value)
            if isinstance(value, types.FunctionType) and is_ours(value.__module__):
                functions_of(value, found)
    return found


def is_ours(module: str) -> bool:
    return module == __name__ or module.startswith("jitalloc.")


def names_in(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for each in code.co_consts:
        if isinstance(each, types.CodeType):
            yield from names_in(each)


def source_stores(function: Any) -> Iterator[Place]:
    """Yield where a function stores into arrays."""
    lines, first = inspect.getsourcelines(function)
    file = function.__code__.co_filename
    for node in ast.walk(ast.parse(textwrap.dedent("".join(lines)))):
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
            yield file, first - 1 + node.lineno, "store"
        elif isinstance(node, ast.Call) and ast.unparse(node.func).startswith("gpu.atomic."):
            yield file, first - 1 + node.lineno, "atomic"


# In the PTX.


def ptx_stores(text: str) -> Iterator[Place]:
    """Yield where the stores come from that are left in a kernel compiled with lines."""
    files = dict(re.findall(r'\.file\s+(\d+) "(.*)"', text))
    file, number = "", 0
    for line in text.splitlines():
        place = re.match(r"\s*\.loc\s+(\d+) (\d+)", line)
        if place:
            file, number = files[place[1]], int(place[2])
        made = re.match(r"\s*(?:@!?%p\d+\s+)?(st\.(?!local|param)|red\.|atom\.)", line)
        if made:
            yield file, number, "store" if made[1] == "st." else "atomic"


# In numba's own program, between typing and lowering.


def typed_stores(func_ir: Any, typemap: Any) -> Counter[Place]:
    """Count the stores of a typed function."""
    from numba.cuda.core import ir

    counts: Counter[Place] = Counter()
    stores = (*ir.setitem_types, ir.StaticSetItem)
    for block in func_ir.blocks.values():
        for each in block.body:
            call = getattr(each, "value", None)
            if isinstance(each, stores):
                counts[each.loc.filename, each.loc.line, "store"] += 1
            elif getattr(call, "op", None) == "call" and ".atomic." in str(
                typemap.get(call.func.name)
            ):
                counts[each.loc.filename, each.loc.line, "atomic"] += 1
    return counts


class Watch:
    """Sees each function once: after typing, what is inlined into it, and when it is lowered.

    Attributes
    ----------
    seen : int
        Stores that were to be kept.
    lost : list of (Place, int, str)
        How many of a place, and the function.
    """

    def __init__(self, pass_on: bool) -> None:
        self.seen = 0
        self.lost: list[tuple[Place, int, str]] = []
        self._due: dict[int, tuple[Any, Counter[Place]]] = {}  # by id of the program, kept alive
        compiler, dispatcher, self._passes, inlining = (
            importlib.import_module(f"numba.cuda.{name}")
            for name in ("compiler", "dispatcher", "core.typed_passes", "core.inline_closurecall")
        )
        dead_code_elimination = self._passes.dead_code_elimination

        def with_lines(real: Any, *args: Any, **options: Any) -> Any:
            if pass_on:  # what `CudaKernel.ptx` has put out of the way
                self._passes.dead_code_elimination = dead_code_elimination
            return real(*args, **{**options, "lineinfo": True})

        around(compiler, "compile_cuda", with_lines)
        around(dispatcher, "compile_cuda", with_lines)
        around(self._passes.PreLowerStripPhis, "run_pass", self._typed)
        around(inlining.InlineWorker, "inline_ir", self._inlined)
        around(compiler.CUDANativeLowering, "run_pass", self._lowered)

    def _typed(self, real: Any, one: Any, state: Any) -> Any:
        result = real(one, state)
        self._due[id(state.func_ir)] = state.func_ir, typed_stores(state.func_ir, state.typemap)
        return result

    def _inlined(self, real: Any, worker: Any, caller_ir: Any, *args: Any, **options: Any) -> Any:
        before = typed_stores(caller_ir, worker.typemap)
        result = real(worker, caller_ir, *args, **options)
        if id(caller_ir) in self._due:
            self._due[id(caller_ir)][1].update(typed_stores(caller_ir, worker.typemap) - before)
        return result

    def _lowered(self, real: Any, one: Any, state: Any) -> Any:
        due = self._due.pop(id(state.func_ir))[1]
        self.seen += due.total()
        gone = due - typed_stores(state.func_ir, state.typemap)
        name = state.func_id.func_qualname
        self.lost += [(place, count, name) for place, count in gone.items()]
        return real(one, state)


def around(owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
    """Put a wrapper, which takes what it wraps first, in place of a function or method."""
    real = getattr(owner, name)
    setattr(owner, name, lambda *args, **options: wrapper(real, *args, **options))


def main(arguments: list[str]) -> dict[str, Any]:
    """Compile kernels by name ("planted": the one above) and tell what became of their stores."""
    warnings.simplefilter("ignore")  # numba-cuda's own
    _cuda.load_compiler()
    watch = Watch("--pass-on" in arguments)
    report: dict[str, Any] = {"lost": [], "without_lines": [], "wanted": {}, "kept": {}}
    for name in arguments:
        if name.startswith("--"):
            continue
        kernel = planted_kernel() if name == "planted" else _cuda.cuda_kernels()[name]
        try:
            text = kernel.ptx(CAPABILITY)
        except Exception as error:
            if type(error).__name__ != "nvvmError":
                raise
            report["without_lines"].append(name)
        else:
            functions = functions_of(kernel.function, set())
            report["wanted"][name] = [p for each in functions for p in source_stores(each)]
            report["kept"][name] = list(ptx_stores(text))
        report["lost"] += [(*each, name) for each in watch.lost]
        watch.lost.clear()
    return {**report, "seen": watch.seen}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1:])))
