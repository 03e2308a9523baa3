"""The rules of the house: import order, sizes, one door to backends, names, chains of classes."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

import jitalloc
from jitalloc import PagePool
from jitalloc.cuda import CudaPagePool
from jitalloc.errors import DoubleFree
from jitalloc.on_device import OnDevice
from tests.house import MODULES, PACKAGE, ROOT, imports, name_of, sources

# The flow of data: a module imports only what stands above it. Modules of one line, of each
# other as well.
ORDER = [
    ["_sources"],
    ["errors"],
    ["state"],
    ["prefix_state"],
    ["slot_state", "slot_prefix_state"],
    ["_jit"],
    ["_intrinsics"],
    ["_cuda_views"],
    ["_cuda"],
    ["_cuda_images"],
    ["_cuda_cupy"],
    ["_cuda_device"],
    ["warming"],
    ["kernels"],
    ["arguments"],
    ["on_device"],
    ["moves"],
    ["stats"],
    ["interrupts"],
    ["snapshot"],
    ["upkeep"],
    ["pool"],
    ["namespaces"],
    ["matches"],
    ["prefix_upkeep"],
    ["prefix"],
    ["mirror"],
    ["tables"],
    ["ids"],
    ["rows"],
    ["eviction"],
    ["sequence_files"],
    ["sequence_check"],
    ["sequence_arguments"],
    ["seq_upkeep"],
    ["sequences"],
    ["slots"],
    ["slot_copy"],
    ["slot_records"],
    ["slot_prefix"],
    ["cuda"],
    ["__init__"],
    ["precompile"],
    ["replay"],
    ["info"],
    ["cli"],
    ["__main__"],
]
# What imports numba.cuda and cupy, and only when asked for a device.
CUDA_DOOR = ("_cuda_views", "_cuda", "_cuda_images", "_cuda_cupy", "_cuda_device")


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
    """`jitalloc.kernels.pool` is in the room `kernels`; `jitalloc` itself is `__init__`."""
    return module.split(".")[1] if "." in module else "__init__"


def room_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_follow_the_flow_of_data(path: Path) -> None:
    mine = RANK[room_of(path)]
    for module in imports(path):
        if module == "jitalloc" or module.startswith("jitalloc."):
            theirs = room(module)
            if theirs not in RANK:  # `from jitalloc import name`
                theirs = "__init__"
            inside = theirs == room_of(path) and path.parent != PACKAGE
            assert inside or RANK[theirs] < mine, f"{room_of(path)} imports {module}"


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
    if room_of(path) not in ("_jit", "_intrinsics", *CUDA_DOOR):
        assert not used & {"numba", "cupy", "llvmlite", "cuda"}
    if room_of(path) not in CUDA_DOOR:
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


def test_every_module_is_imported_by_some_test_or_module() -> None:
    found = {each.name for each in pkgutil.iter_modules(jitalloc.__path__)}
    assert found <= set(RANK)
