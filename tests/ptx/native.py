"""LLVM IR to machine code through llvmlite, kept on disk."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding as llvm

from jitalloc._jit import cache_folder
from tests.ptx import arithmetic, meeting, memory
from tests.ptx.compiled import source_digest
from tests.ptx.parser import parse
from tests.ptx.translate import Translator

OPTIMISATION = 0
HANDLERS = arithmetic.INSTRUCTIONS | memory.INSTRUCTIONS | meeting.INSTRUCTIONS


class Native:
    """One variant of a kernel as machine code.

    Attributes
    ----------
    address : int
        Of its function.
    facts : dict
        What `Translation` says about it, and `threads` and `parameters` of the kernel.
    """

    def __init__(self, ptx: str, preempt: bool) -> None:
        digest = _digest(ptx, preempt)
        name = f"step_{digest}"
        file = Path(cache_folder()) / "ptx" / f"{digest}.object"
        found = file.read_bytes() if file.exists() else b""
        if not found:
            facts, code = _compile(ptx, preempt, name)
            found = json.dumps(facts).encode() + b"\n" + code
            _write(file, found)
        head, _, code = found.partition(b"\n")
        self.facts: dict[str, Any] = json.loads(head)
        engine = _engine()
        engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        engine.finalize_object()
        self.address: int = engine.get_function_address(name)


def _compile(ptx: str, preempt: bool, name: str) -> tuple[dict[str, Any], bytes]:
    kernel = parse(ptx)
    made = Translator(kernel, preempt, name, HANDLERS).translate()
    module = llvm.parse_assembly(made.text + memory.prelude())
    module.verify()
    machine = _machine()
    options = llvm.create_pipeline_tuning_options(speed_level=OPTIMISATION)
    passes = llvm.create_new_function_pass_manager()
    passes.add_sroa_pass()
    builder = llvm.create_pass_builder(machine, options)
    for function in module.functions:
        if not function.is_declaration:
            passes.run(function, builder)
    facts = {
        "spans": made.facts,
        "slots": made.slots,
        "sites": made.sites,
        "shared_bytes": made.shared_bytes,
        "shared": made.shared,
        "parameters": len(kernel.params),
        "threads": kernel.most_threads or 1024,
        "name": kernel.name,
    }
    return facts, machine.emit_object(module)


@cache
def _machine() -> Any:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_default_triple()
    return target.create_target_machine(
        cpu=llvm.get_host_cpu_name(), opt=OPTIMISATION, codemodel="jitdefault", jit=True
    )


@cache
def _engine() -> Any:
    _machine()
    return llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine())


def _digest(ptx: str, preempt: bool) -> str:
    """Return the name of what a text of PTX becomes, here and with these sources."""
    told = (llvmlite.__version__, llvm.get_host_cpu_name(), source_digest(), preempt, ptx)
    return hashlib.blake2b("\n".join(map(str, told)).encode(), digest_size=12).hexdigest()


def _write(file: Path, content: bytes) -> None:
    """Put a file on disk as a whole: processes that start together may do so at once."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(dir=file.parent, suffix=".new")
    with os.fdopen(handle, "wb") as stream:
        stream.write(content)
    os.replace(beside, file)
