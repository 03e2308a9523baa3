"""The rules of the house for loops: names, arguments, twins, what their docstrings say."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jitalloc import _jit
from jitalloc.gpu import kernel as _cuda
from tests.house import MODULES, PACKAGE, ROOT, imports, name_of

# What the loops of a wing are built from: a file imports only those before it, and none of them a
# loop of another wing that the order of wings forbids (test_house.py).
ORDER = {
    wing: names.split()
    for wing, names in {
        "pool": """
            pool owners tokens upkeep batches_cuda merging_cuda pool_cuda releasing_cuda
            page_frees_cuda slot_frees_cuda owners_cuda extends_cuda tokens_cuda
            upkeep_cuda
        """,
        "prefix": """
            nodes children expiries queues split_join paths compare search insertion
            prefix dropping freeing reclaim check_nodes check_lists upkeep prefix_cuda upkeep_cuda
        """,
        "sequences": """
            tables attention mirror row_locks committing sharing rows commits appending
            sequences room batches eviction row_facts_cuda tables_cuda attention_cuda mirror_cuda
            row_batches_cuda commits_cuda sharing_cuda leading_cuda dropping_cuda appends_cuda
            append_writes_cuda forking_cuda rows_cuda sequences_cuda room_cuda eviction_cuda
        """,
        "slots": "slots slot_table slot_tree slot_entries slot_prefix slots_cuda",
    }.items()
}
FILES = sorted(path for path in PACKAGE.glob("*/loops/*.py") if path.stem != "__init__")
# Helpers that several nouns are built from: no kernel, so no tests or benchmarks of that name.
SHARED = {"nodes", "children", "expiries", "queues", "split_join", "paths", "compare", "search"}
SHARED |= {"insertion", "dropping", "freeing", "check_nodes", "check_lists", "row_locks"}
SHARED |= {"committing", "appending"}
SHARED |= {"batches_cuda", "merging_cuda", "releasing_cuda", "page_frees_cuda", "slot_frees_cuda"}
SHARED |= {"extends_cuda", "row_facts_cuda", "row_batches_cuda", "leading_cuda", "dropping_cuda"}
SHARED |= {"appends_cuda", "append_writes_cuda", "forking_cuda"}
# Where the steps stand that run CUDA kernels in the simulator: CUDA_STEPS, and WITHOUT_TWIN.
CUDA_REGISTRIES = [
    importlib.import_module(f"tests.cuda_{name}_steps")
    for name in ("pool", "prefix", "tables", "mirror", "slot", "cache")
]
# Kernels of the GPU alone: the CPU needs no loop for what they do.
ALONE = ["rows_mark_cuda"]


def wing_of(file: Path) -> str:
    return file.parents[1].name


def noun_of(file: Path) -> str:
    """What the kernels of a file are named after."""
    noun = file.stem.removesuffix("_cuda")
    return f"prefix_{noun}" if (wing_of(file), noun) == ("prefix", "upkeep") else noun


NOUNS = sorted({noun_of(file) for file in FILES if file.stem not in SHARED})


def test_every_file_of_loops_has_its_place() -> None:
    for wing, names in ORDER.items():
        assert {file.stem for file in FILES if wing_of(file) == wing} == set(names)
    assert {file.stem for file in FILES} > SHARED


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_loops_are_built_from_those_before(file: Path) -> None:
    mine = ORDER[wing_of(file)]
    for module in imports(file):
        _package, wing, *inside = [*module.split("."), "", ""]
        if wing == wing_of(file) and inside[0] == "loops":
            assert mine.index(inside[1]) < mine.index(file.stem), module


LOOPS = [*FILES, PACKAGE / "gpu" / "scan.py", PACKAGE / "gpu" / "calls.py"]


@pytest.mark.parametrize("file", LOOPS, ids=name_of)
def test_kernels_take_few_arguments(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef):
            assert len(node.args.args) <= 8, node.name
            others = [*node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
            assert not any(others), node.name
            assert node.col_offset == 0, f"{node.name} is no function of the module"


@pytest.mark.parametrize("noun", NOUNS)
def test_loops_of_a_noun_have_tests_and_benchmarks_of_its_name(noun: str) -> None:
    assert (ROOT / "tests" / f"test_{noun}.py").is_file()
    assert (ROOT / "asv_benchmarks" / f"bench_{noun}.py").is_file()


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_kernels_are_named_by_noun_verb_and_device(file: Path) -> None:
    module = importlib.import_module(f"jitalloc.{wing_of(file)}.loops.{file.stem}")
    kinds = {"cuda": _cuda.CudaKernel, "cpu": _jit.Kernel}
    device = "cuda" if file.stem.endswith("_cuda") else "cpu"
    made = {name: each for name, each in vars(module).items() if isinstance(each, kinds[device])}
    mine = {
        name: each for name, each in made.items() if each.function.__module__ == module.__name__
    }
    assert bool(mine) == (file.stem not in SHARED)
    registered = _cuda.cuda_kernels() if device == "cuda" else _jit.kernels()
    for name, each in mine.items():
        assert re.fullmatch(rf"{noun_of(file)}_[a-z_]+_{device}", name)
        assert registered[name] is each
        assert each.name == name


def made_by(decorator: str) -> set[str]:
    """The functions of the package that stand behind a decorator."""
    return {
        node.name
        for path in MODULES
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef)
        for each in node.decorator_list
        if isinstance(each, ast.Call) and ast.unparse(each.func) == decorator
    }


def test_every_kernel_is_registered_by_importing_the_package() -> None:
    code = "import jitalloc; from jitalloc import _jit; from jitalloc.gpu import kernel as _cuda; "
    code += "print(sorted(_jit.kernels()), sorted(_cuda.cuda_kernels()), sep=',')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    cpu, cuda = ast.literal_eval(done.stdout)
    assert set(cpu) == made_by("kernel")
    assert set(cuda) == made_by("cuda_kernel")


KERNELS = [*_jit.kernels().values(), *_cuda.cuda_kernels().values()]


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_a_kernel_says_what_it_mutates_and_what_it_reads(kernel: _jit.Kernel) -> None:
    said = inspect.getdoc(kernel.function) or ""
    assert said.startswith("Mutates ")
    assert re.search(r"^Reads .*\brequires\b", said, re.M | re.S | re.I)


def test_every_kernel_has_a_twin_or_a_reason_to_have_none() -> None:
    twins = {each.twin for each in _cuda.cuda_kernels().values() if each.twin is not None}
    for twin in twins:
        assert _jit.kernels()[twin.name] is twin
    without = {name for each in CUDA_REGISTRIES for name in each.WITHOUT_TWIN}
    assert without.isdisjoint(twin.name for twin in twins)
    assert without | {twin.name for twin in twins} == set(_jit.kernels())
    assert [name for name, each in _cuda.cuda_kernels().items() if each.twin is None] == ALONE


def test_every_cuda_kernel_is_simulated() -> None:
    # test_cuda_twins.py runs these steps, test_cuda_compile.py compiles what is registered.
    steps = [name for each in CUDA_REGISTRIES for name in each.CUDA_STEPS]
    assert sorted(_cuda.cuda_kernels()) == sorted(steps)


def test_a_cuda_kernel_stands_beside_its_twin() -> None:
    for each in _cuda.cuda_kernels().values():
        if each.twin is not None:
            wing, mine = each.function.__module__.split(".")[1::2]
            assert each.twin.function.__module__.split(".")[1] in (wing, "pool", "prefix"), mine
