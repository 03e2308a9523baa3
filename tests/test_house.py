"""The rules of the house: import order, sizes, one door to backends, names, chains of classes."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

import jitalloc
from jitalloc import PagePool, _cuda, _jit
from jitalloc.cuda import CudaPagePool
from jitalloc.devices import OnDevice
from jitalloc.errors import DoubleFree

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "jitalloc"
KERNEL_FILES = sorted(
    path.stem for path in (PACKAGE / "kernels").glob("*.py") if path.stem[0] != "_"
)
# Helpers that several nouns are built from: no kernel, so no facade and no benchmark.
SHARED_KERNELS = {"runs", "children", "wheel", "queues", "joints", "paths", "comparing", "search"}
SHARED_KERNELS |= {"insertion", "invariants", "list_invariants", "row_locks", "committing"}
NOUNS = [noun for noun in KERNEL_FILES if noun not in SHARED_KERNELS]

# The flow of data: a module imports only what stands above it. Modules of one line, of each
# other as well.
ORDER = [
    ["_sources"],
    ["errors"],
    ["state"],
    ["prefix_state"],
    ["slot_state", "slot_prefix_state"],
    ["_jit"],
    ["_cuda_views"],
    ["_cuda"],
    ["_cuda_images"],
    ["_cuda_cupy"],
    ["_cuda_device"],
    ["warming"],
    ["kernels"],
    ["arguments"],
    ["devices"],
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
    ["machine"],
    ["cli"],
    ["__main__"],
]
# Within kernels/: what the loops of one noun are built from.
KERNEL_ORDER = ["pool", "owners", "tokens", "upkeep"]
KERNEL_ORDER += ["runs", "children", "wheel", "queues", "joints", "paths", "comparing", "search"]
KERNEL_ORDER += ["insertion", "prefix", "reclaim", "invariants", "list_invariants", "prefix_upkeep"]
KERNEL_ORDER += ["tables", "mirror", "row_locks", "committing", "sharing", "rows", "sequences"]
KERNEL_ORDER += ["eviction"]
KERNEL_ORDER += ["slots", "slot_table", "slot_tree", "slot_entries", "slot_prefix"]
# What imports numba.cuda and cupy, and only when asked for a device.
CUDA_DOOR = ("_cuda_views", "_cuda", "_cuda_images", "_cuda_cupy", "_cuda_device")
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
# Launches that stand before the one which has the twin's name, and that twin.
PARTS = {
    name: twin for each in CUDA_REGISTRIES for name, twin in getattr(each, "PARTS", {}).items()
}
# Kernels of the GPU alone.
ALONE = {name for each in CUDA_REGISTRIES for name in getattr(each, "ALONE", {})}
CUDA_FILES = sorted(
    path.stem for path in (PACKAGE / "kernels" / "cuda").glob("*.py") if path.stem[0] != "_"
)


def sources(folder: Path) -> list[Path]:
    hidden = {part for path in folder.iterdir() for part in [path.name] if part.startswith(".")}
    skip = {*hidden, "build", "dist", "node_modules", "env", "venv"}
    return sorted(
        path
        for path in folder.rglob("*.py")
        if not skip.intersection(path.relative_to(folder).parts)
    )


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


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, anywhere in it, by its full name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{each.name}" for each in node.names)


def room(module: str) -> str:
    """`jitalloc.kernels.pool` is in the room `kernels`; `jitalloc` itself is `__init__`."""
    return module.split(".")[1] if "." in module else "__init__"


def room_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}
MODULES = sources(PACKAGE)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


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


@pytest.mark.parametrize("file", sources(PACKAGE / "kernels"), ids=lambda path: path.name)
def test_kernels_take_few_arguments(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef):
            assert len(node.args.args) <= 8, node.name
            others = [*node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
            assert not any(others), node.name
            assert node.col_offset == 0, f"{node.name} is no function of the module"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_backends_come_in_by_one_door(path: Path) -> None:
    used = {module.split(".")[0] for module in imports(path)}
    if room_of(path) not in ("_jit", *CUDA_DOOR):
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
def test_cuda_kernels_stand_in_the_file_named_like_that_of_their_twins(noun: str) -> None:
    module = importlib.import_module(f"jitalloc.kernels.cuda.{noun}")
    mine = [name for name, each in vars(module).items() if isinstance(each, _cuda.CudaKernel)]
    assert bool(mine) == (noun not in CUDA_SHARED)
    for name in mine:
        assert re.fullmatch(rf"{noun}_[a-z_]+_cuda", name)
        twin = PARTS.get(name, re.sub("_cuda", "_cpu", name))
        assert name in ALONE or twin in _jit.kernels()
        assert _cuda.cuda_kernels()[name].name == name


def test_every_cuda_kernel_is_registered_by_importing_the_package() -> None:
    code = "import jitalloc; from jitalloc import _cuda; print(sorted(_cuda.cuda_kernels()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    files = (PACKAGE / "kernels" / "cuda").glob("*.py")
    written = {
        name for file in files for name in re.findall(r"^def (\w+_cuda)\(", file.read_text(), re.M)
    }
    assert set(ast.literal_eval(done.stdout)) == written


def test_every_cuda_kernel_is_simulated() -> None:
    # test_cuda_twins.py runs these steps, test_cuda_compile.py compiles what is registered.
    steps = [name for each in CUDA_REGISTRIES for name in each.CUDA_STEPS]
    assert sorted(_cuda.cuda_kernels()) == sorted(steps)
    without = {name for each in CUDA_REGISTRIES for name in each.WITHOUT_TWIN}
    assert without <= set(_jit.kernels())


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
