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

from jitalloc import _cuda, _jit
from tests.house import MODULES, PACKAGE, ROOT, imports, sources

KERNEL_FILES = sorted(
    path.stem for path in (PACKAGE / "kernels").glob("*.py") if path.stem[0] != "_"
)
# Helpers that several nouns are built from: no kernel, so no facade and no benchmark.
SHARED_KERNELS = {"nodes", "children", "expiries", "queues", "split_join", "paths", "compare"}
SHARED_KERNELS |= {"search", "insertion", "check_nodes", "check_lists", "row_locks", "committing"}
NOUNS = [noun for noun in KERNEL_FILES if noun not in SHARED_KERNELS]
# Within kernels/: what the loops of one noun are built from.
KERNEL_ORDER = ["pool", "owners", "tokens", "upkeep"]
KERNEL_ORDER += ["nodes", "children", "expiries", "queues", "split_join", "paths", "compare"]
KERNEL_ORDER += ["search", "insertion", "prefix", "reclaim", "check_nodes", "check_lists"]
KERNEL_ORDER += ["prefix_upkeep"]
KERNEL_ORDER += ["tables", "mirror", "row_locks", "committing", "sharing", "rows", "sequences"]
KERNEL_ORDER += ["eviction"]
KERNEL_ORDER += ["slots", "slot_table", "slot_tree", "slot_entries", "slot_prefix"]
# Where the steps stand that run CUDA kernels in the simulator: CUDA_STEPS, and WITHOUT_TWIN.
CUDA_REGISTRIES = [
    importlib.import_module(f"tests.cuda_{name}_steps")
    for name in ("pool", "prefix", "tables", "mirror", "slot", "cache")
]
# Files of kernels/cuda/ that hold no twins, and where they stand among the others.
CUDA_SHARED = {"scan", "calls", "batches", "merging", "releasing", "row_batches", "appends"}
CUDA_SHARED |= {"page_frees", "slot_frees", "extends"}
CUDA_SHARED |= {"row_facts", "dropping", "append_writes", "forking", "leading"}
CUDA_ORDER = [
    "scan",
    "calls",
    "batches",
    "merging",
    "pool",
    "releasing",
    "page_frees",
    "slot_frees",
]
CUDA_ORDER += ["owners", "extends", *KERNEL_ORDER[2 : KERNEL_ORDER.index("tables")]]
CUDA_ORDER += ["row_facts", "tables", "mirror", "row_batches", "sharing", "leading", "dropping"]
CUDA_ORDER += ["appends", "append_writes", "forking"]
CUDA_ORDER += KERNEL_ORDER[KERNEL_ORDER.index("rows") :]
# Kernels of the GPU alone: the CPU needs no loop for what they do.
ALONE = ["rows_mark_cuda"]
CUDA_FILES = sorted(
    path.stem for path in (PACKAGE / "kernels" / "cuda").glob("*.py") if path.stem[0] != "_"
)


@pytest.mark.parametrize("noun", KERNEL_FILES)
def test_kernels_are_built_from_those_before(noun: str) -> None:
    for module in imports(PACKAGE / "kernels" / f"{noun}.py"):
        if module.startswith("jitalloc.kernels."):
            other = module.split(".")[2]
            assert KERNEL_ORDER.index(other) < KERNEL_ORDER.index(noun)


@pytest.mark.parametrize("noun", CUDA_FILES)
def test_cuda_kernels_are_built_from_those_before(noun: str) -> None:
    for module in imports(PACKAGE / "kernels" / "cuda" / f"{noun}.py"):
        if module.startswith("jitalloc.kernels.cuda."):
            assert CUDA_ORDER.index(module.split(".")[3]) < CUDA_ORDER.index(noun)


@pytest.mark.parametrize("file", sources(PACKAGE / "kernels"), ids=lambda path: path.name)
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


@pytest.mark.parametrize("noun", NOUNS)
def test_kernels_are_named_by_noun_verb_and_device(noun: str) -> None:
    module = importlib.import_module(f"jitalloc.kernels.{noun}")
    mine = [name for name, each in vars(module).items() if isinstance(each, _jit.Kernel)]
    assert mine, "a file of kernels without one"
    assert not SHARED_KERNELS - set(KERNEL_FILES)
    for name in mine:
        assert re.fullmatch(rf"{noun}_[a-z_]+_(cpu|cuda)", name)
        assert _jit.kernels()[name].name == name


@pytest.mark.parametrize("noun", CUDA_FILES)
def test_cuda_kernels_are_named_by_noun_verb_and_device(noun: str) -> None:
    module = importlib.import_module(f"jitalloc.kernels.cuda.{noun}")
    mine = [name for name, each in vars(module).items() if isinstance(each, _cuda.CudaKernel)]
    assert bool(mine) == (noun not in CUDA_SHARED)
    for name in mine:
        assert re.fullmatch(rf"{noun}_[a-z_]+_cuda", name)
        assert _cuda.cuda_kernels()[name].name == name


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
    code = "import jitalloc; from jitalloc import _cuda, _jit; "
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
