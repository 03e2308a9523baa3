"""The rules of the house: import order, sizes, one door to backends, names, chains of classes."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

from jitalloc import PagePool
from jitalloc.cuda import CudaPagePool
from jitalloc.errors import DoubleFree
from jitalloc.on_device import OnDevice
from tests.house import MODULES, PACKAGE, ROOT, imports, name_of, sources

# The flow of data: a module imports only what stands above it, and within its wing only what
# stands above it there.
GROUND = ["_sources", "choices", "errors", "state", "_jit", "_intrinsics"]
GROUND += ["arguments", "on_device", "interrupts", "snapshot", "forking"]
WINGS = ["gpu", "pool", "slots", "prefix", "sequences"]
ORDER = [*GROUND, *WINGS, "cuda", "warming", "__init__", "replay", "info", "cli", "__main__"]
INSIDE = {
    wing: names.split()
    for wing, names in {
        "gpu": """
            record views kernel scan calls images cupy_device device arguments slab
        """,
        "pool": """
            state records holders loops upkeep pool shadow_cuda faults_cuda upkeep_cuda
            pool_cuda
        """,
        "slots": "state prefix_state records loops slots copy prefix slots_cuda",
        "prefix": "state records namespaces matches loops upkeep prefix prefix_cuda",
        "sequences": """
            state records files loops mirror attention tables arguments batches ids rows check
            eviction upkeep sequences tables_cuda mirror_cuda ids_cuda launcher_cuda
            host_table_cuda host_index_cuda rows_cuda prefix_rows_cuda upkeep_cuda
            sequences_cuda
        """,
    }.items()
}
# Slots need nothing of the pool, nor of what stands on it.
APART = {("slots", "pool"), ("prefix", "slots"), ("sequences", "slots")}


@cache
def free_lines(text: str) -> frozenset[int]:
    """Numbers of the lines that are no code: docstrings, comments, imports, blank lines."""
    free = {
        number
        for number, line in enumerate(text.splitlines(), 1)
        if not line.strip() or line.strip().startswith("#")
    }
    for each in ast.walk(ast.parse(text)):
        if isinstance(each, ast.Import | ast.ImportFrom):
            free.update(range(each.lineno, (each.end_lineno or 0) + 1))
        elif isinstance(each, DOCUMENTED) and ast.get_docstring(each, clean=False) is not None:
            free.update(range(each.body[0].lineno, (each.body[0].end_lineno or 0) + 1))
    return frozenset(free)


def code_lines(text: str, node: ast.AST | None = None) -> int:
    """How many lines of a file, or of a function in it, are code."""
    first, last = 1, len(text.splitlines())
    if isinstance(node, ast.FunctionDef):
        first, last = node.lineno, node.end_lineno or 0
    return sum(number not in free_lines(text) for number in range(first, last + 1))


DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def room(module: str) -> str:
    """`jitalloc.pool.loops.pool` is in the room `pool`; `jitalloc` itself is `__init__`."""
    first = module.split(".")[1] if "." in module else "__init__"
    return first if first in ORDER else "__init__"  # `from jitalloc import name`


def of_path(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def place(module: str) -> int:
    """Where a module of a wing stands in it; what its `__init__` hands on is behind all of it."""
    _package, wing, *inside = module.split(".")
    return INSIDE[wing].index(inside[0]) if inside and inside[0] in INSIDE[wing] else 99


def obeys(path: Path, module: str) -> bool:
    mine, theirs = room(of_path(path)), room(module)
    if mine != theirs:
        return ORDER.index(theirs) < ORDER.index(mine) and (mine, theirs) not in APART
    if mine not in WINGS or path.stem == "__init__":
        return True
    looped = "loops" in path.parts and module.split(".")[2:3] == ["loops"]  # test_house_loops.py
    return looped or place(module) < place(of_path(path))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_follow_the_flow_of_data(path: Path) -> None:
    for module in imports(path):
        if module.split(".")[0] == "jitalloc":
            assert obeys(path, module), f"{name_of(path)} imports {module}"


def test_what_the_flow_of_data_forbids() -> None:
    pool = PACKAGE / "pool" / "pool.py"
    assert obeys(pool, "jitalloc.pool.upkeep.PoolUpkeep")
    assert obeys(pool, "jitalloc.pool.loops.owners")
    assert not obeys(pool, "jitalloc.pool.pool_cuda")
    assert not obeys(pool, "jitalloc.pool.PagePool")
    assert not obeys(pool, "jitalloc.prefix.state")
    assert not obeys(pool, "jitalloc.PagePool")
    assert not obeys(PACKAGE / "slots" / "loops" / "slots.py", "jitalloc.pool.loops.pool")
    assert not obeys(PACKAGE / "errors.py", "jitalloc.state")


def test_every_room_has_its_place() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} | {
        path.parent.name for path in PACKAGE.glob("*/__init__.py")
    } == set(ORDER)
    for wing, names in INSIDE.items():
        found = {path.stem for path in (PACKAGE / wing).glob("*.py")} - {"__init__"}
        loops = {"loops"} if (PACKAGE / wing / "loops").is_dir() else set()
        assert found | loops == set(names)


@pytest.mark.parametrize("wing", WINGS)
def test_a_twin_stands_beside_what_it_is_the_twin_of(wing: str) -> None:
    """`pool_cuda.py` beside `pool.py`; ALONE is what only a pool of the GPU needs."""
    for path in (PACKAGE / wing).rglob("*_cuda.py"):
        beside = path.with_name(path.name.replace("_cuda", ""))
        assert beside.is_file() != (path.stem in ALONE), path.stem


# On the GPU: the host's view of a pool and of an index, faults told late, launches of sequences;
# parts that several kernels are built from.
ALONE = {"shadow_cuda", "faults_cuda", "launcher_cuda", "host_table_cuda", "host_index_cuda"}
ALONE |= {"prefix_rows_cuda"}
ALONE |= {"batches_cuda", "merging_cuda", "releasing_cuda", "page_frees_cuda", "slot_frees_cuda"}
ALONE |= {"extends_cuda", "row_facts_cuda", "row_batches_cuda", "leading_cuda", "dropping_cuda"}
ALONE |= {"appends_cuda", "append_writes_cuda", "forking_cuda"}


@pytest.mark.parametrize("path", sources(ROOT), ids=name_of)
def test_no_file_is_too_long(path: Path) -> None:
    assert code_lines(path.read_text()) <= 300


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_function_is_too_long(path: Path) -> None:
    text = path.read_text()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert code_lines(text, node) <= 60, node.name


def test_what_counts_as_code() -> None:
    text = (
        '"""What it is."""\n\nimport a\n# why\n\n\ndef f():\n    """Do."""\n    return (\n  1\n )\n'
    )
    (function,) = (each for each in ast.parse(text).body if isinstance(each, ast.FunctionDef))
    assert code_lines(text) == code_lines(text, function) == 4


def arrows(cls: type) -> int:
    """How many classes of the package stand above `cls`, one above the other."""
    above = [each for each in cls.__bases__ if of_package(each) and each is not OnDevice]
    return max((1 + arrows(each) for each in above), default=0)


def of_package(cls: type) -> bool:
    return cls.__module__.split(".")[0] == "jitalloc"


def module_of(path: Path) -> ModuleType:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return importlib.import_module(".".join(parts).removesuffix(".__init__"))


# Those of the package, but for exceptions.
CLASSES = [
    each
    for module in (module_of(path) for path in MODULES if path.stem != "__main__")
    for each in vars(module).values()
    if isinstance(each, type) and each.__module__ == module.__name__
    if not issubclass(each, BaseException)
]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_a_method_is_found_two_classes_up_at_most(cls: type) -> None:
    assert arrows(cls) <= 2


def test_what_counts_as_a_chain() -> None:
    assert arrows(DoubleFree) == 3  # InvalidPage, InvalidArgument, JitallocError
    assert arrows(CudaPagePool) == 2
    assert arrows(PagePool) == 1
    assert {PagePool, CudaPagePool} < {*CLASSES}


TOP_LEVEL = {"pyproject.toml", "README.md", "LICENSE", "jitalloc", "tests", "asv_benchmarks"}
TOP_LEVEL |= {"asv.conf.json"}


def test_nothing_else_stands_at_the_top() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("no checkout: what is committed is not known")
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    top = {name.split("/")[0] for name in listed.stdout.splitlines()}
    assert {name for name in top if name[0] != "."} == TOP_LEVEL


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_backends_come_in_by_one_door(path: Path) -> None:
    used = {module.split(".")[0] for module in imports(path)}
    if room(of_path(path)) not in ("_jit", "_intrinsics", "gpu"):
        assert not used & {"numba", "cupy", "llvmlite", "cuda"}
    if room(of_path(path)) != "gpu":
        assert not any(re.match(r"cupy|cuda|numba\.cuda", module) for module in imports(path))


@pytest.mark.parametrize("module", ["jitalloc", "jitalloc.cli", "jitalloc.sequences"])
def test_importing_loads_nothing_of_cuda(module: str) -> None:
    # What a `.pth` file of the environment loads is there before.
    code = f"import sys; old = {{*sys.modules}}; import {module}; print({{*sys.modules}} - old)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(ast.literal_eval(done.stdout))
    backends = [name for name in loaded if re.match(r"(cupy|numba\.cuda|numba_cuda|cuda)\b", name)]
    assert not backends


FORBIDDEN = re.compile(r"\b(TODO|FIXME|XXX|HACK|NotImplementedError)\b")


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_nothing_is_left_open(path: Path) -> None:
    text = path.read_text()
    assert not FORBIDDEN.search(text)
    tree = ast.parse(text)
    for node in ast.walk(tree):
        assert not isinstance(node, ast.Assert), f"line {node.lineno}: python -O drops it"
    assert ast.get_docstring(tree), "no docstring of the module"
