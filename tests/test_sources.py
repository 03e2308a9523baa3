"""What compiled kernels are kept under: a digest of every file that they are made from."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import jitalloc
from jitalloc import _jit, _sources
from jitalloc.gpu import images as _cuda_images
from jitalloc.gpu import kernel as _cuda

PACKAGE = Path(jitalloc.__file__).parent

# Edits each file that kernels are made from, in the copy of the package that it imports, and says
# whether the keys of both devices changed by it.
EDIT_EACH = """
import jitalloc
from jitalloc import _jit, _sources
from jitalloc.gpu import images as _cuda_images
from jitalloc.gpu import kernel as _cuda
of_cpu = [_jit.compile_kernels, *(each.function for each in _jit.kernels().values())]
of_cuda = [_cuda_images.kernel_image, *(each.function for each in _cuda.cuda_kernels().values())]
for functions in (of_cpu, of_cuda):
    before = _sources.source_digest(functions)
    for file in _sources.kernel_sources(functions):
        text = file.read_text()
        file.write_text(text + "\\n")
        after = _sources.source_digest(functions)
        file.write_text(text)
        print(file, after != before, _sources.source_digest(functions) == before)
"""


def functions_of(kernels: dict[str, Any]) -> list[Callable[..., Any]]:
    return [each.function for each in kernels.values()]


def run(code: str, *paths: Path) -> subprocess.CompletedProcess[str]:
    begin = f"import sys; sys.path[:0] = {[str(path) for path in paths]}\n"
    command = [sys.executable, "-P", "-c", begin + code]
    return subprocess.run(command, capture_output=True, text=True)


def parsed_imports(file: Path) -> set[str]:
    """Every name of the package that a file imports, as a parser sees it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found.update(each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{each.name}" for each in node.names)
    return {name for name in found if name.partition(".")[0] == "jitalloc"}


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.name)
def test_imports_are_found_as_a_parser_finds_them(file: Path) -> None:
    modules = {name for name in parsed_imports(file) if _sources._is_module(name)}
    packages = {name.rpartition(".")[0] for name in parsed_imports(file)} - {""}
    found = set(_sources._imported(file.read_text()))
    assert modules <= found
    assert found <= parsed_imports(file) | packages


@pytest.mark.parametrize("of_cuda", [False, True], ids=["cpu", "cuda"])
def test_sources_are_all_that_kernels_reach_by_imports(of_cuda: bool) -> None:
    functions = functions_of(_cuda.cuda_kernels() if of_cuda else _jit.kernels())
    found = set(_sources.kernel_sources(functions))
    assert {Path(sys.modules[each.__module__].__file__ or "") for each in functions} <= found
    for file in found:
        for name in parsed_imports(file):
            if _sources._is_module(name):
                assert Path(sys.modules[name].__file__ or "") in found, f"{file} imports {name}"
    compiler = PACKAGE / ("gpu/kernel.py" if of_cuda else "_jit.py")
    assert {compiler, PACKAGE / "errors.py"} <= found


def test_each_edit_of_a_source_changes_the_key(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "jitalloc")
    done = run(EDIT_EACH, tmp_path)
    assert not done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    expected = [
        *_sources.kernel_sources([_jit.compile_kernels, *functions_of(_jit.kernels())]),
        *_sources.kernel_sources(
            [_cuda_images.kernel_image, *functions_of(_cuda.cuda_kernels())],
        ),
    ]
    copies = [tmp_path / "jitalloc" / file.relative_to(PACKAGE) for file in expected]
    assert [Path(file) for file, _changed, _back in lines] == copies
    assert all(answers == ["True", "True"] for _file, *answers in lines)


def test_no_source_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="no kernel stands in jitalloc"):
        _sources.kernel_sources([])
    with pytest.raises(RuntimeError, match="no kernel"):
        _sources.source_digest([run])  # stands in the tests


def test_folders_are_named_after_the_digests() -> None:
    assert (
        _sources.source_digest([_jit.compile_kernels, *functions_of(_jit.kernels())])
        in _jit.cache_folder()
    )
    if _cuda_images.CACHE_ENABLED:
        kernels = [_cuda_images.kernel_image, *functions_of(_cuda.cuda_kernels())]
        assert _sources.source_digest(kernels) == _cuda_images.cuda_digest()


def test_sources_out_of_reach_are_no_reason_to_fail(tmp_path: Path) -> None:
    archive = tmp_path / "jitalloc.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for source in PACKAGE.rglob("*.py"):
            file.write(source, Path("jitalloc") / source.relative_to(PACKAGE))
    code = """
import jitalloc
from jitalloc.info import describe_machine
print(jitalloc.__file__)
print(jitalloc.PagePool(8).alloc(2))
print(describe_machine()["kernel cache"])
"""
    done = run(code, archive)
    assert not done.stderr
    place, pages, cache = done.stdout.splitlines()
    assert (Path(place).parents[1], pages) == (archive, "[0 1]")
    assert cache.startswith("off: ")
