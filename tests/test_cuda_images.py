"""CUDA kernels kept on disk: by all that makes them, whole or not at all, for many processes.

What would be compiled is a line of text; `test_cuda_compile.py` compiles. CuPy is a stand-in.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jitalloc import PagePool
from jitalloc.gpu import images as _cuda_images
from jitalloc.gpu import kernel as _cuda
from tests.cupy_stand_in import Cupy, compile_to_text, install

pytestmark = pytest.mark.skipif(_cuda.SIMULATED, reason="the simulator takes the place of CuPy")


@pytest.fixture(autouse=True)
def compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What was compiled: kernels as text, in a folder of the test's own."""
    return compile_to_text(monkeypatch, tmp_path / "cache")


def merge_anew(monkeypatch: pytest.MonkeyPatch) -> Cupy:
    """A first use in a process that has loaded nothing."""
    cupy = install(monkeypatch)
    pool: Any = PagePool(8, device="cuda")
    pool.merge()
    assert len(cupy.launches) == 1
    return cupy


def the_file() -> Path:
    (file,) = Path(_cuda_images.cache_folder()).rglob("pool_merge_cuda*")
    return file


def test_a_second_process_compiles_nothing(
    monkeypatch: pytest.MonkeyPatch, compiled: list[str]
) -> None:
    for _ in range(2):
        merge_anew(monkeypatch)
    assert compiled == ["pool_merge_cuda"]
    assert "cuda-1.2-12.9-sm_90-" in str(the_file())


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:40],
        lambda content: content[:-1],
        lambda content: content[:-1] + b"x",
        lambda content: b"x" + content[1:],
        lambda content: content.replace(b"\n", b" "),
    ],
)
def test_a_damaged_file_is_made_anew(
    monkeypatch: pytest.MonkeyPatch, compiled: list[str], damage: Any
) -> None:
    merge_anew(monkeypatch)
    whole = the_file().read_bytes()
    the_file().write_bytes(damage(whole))
    merge_anew(monkeypatch)
    assert len(compiled) == 2
    assert the_file().read_bytes() == whole


def test_an_image_that_the_driver_refuses_is_made_anew(
    monkeypatch: pytest.MonkeyPatch, compiled: list[str]
) -> None:
    merge_anew(monkeypatch)
    _cuda_images._write(the_file(), _cuda_images.Image("entry", b"of another time"))
    merge_anew(monkeypatch)
    assert len(compiled) == 2
    merge_anew(monkeypatch)
    assert len(compiled) == 2


def test_without_the_folder_each_process_compiles(
    monkeypatch: pytest.MonkeyPatch, compiled: list[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(_cuda_images, "CACHE_ENABLED", False)
    for _ in range(2):
        merge_anew(monkeypatch)
    assert (len(compiled), Path(_cuda_images.cache_folder()).exists()) == (2, False)
    monkeypatch.setattr(_cuda_images, "CACHE_ENABLED", True)
    (tmp_path / "file").touch()
    monkeypatch.setattr(_cuda_images, "cache_folder", lambda: str(tmp_path / "file" / "below"))
    merge_anew(monkeypatch)  # nowhere to write


def test_images_are_told_apart_by_all_that_makes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    folders = {_cuda_images.image_folder((9, 0)), _cuda_images.image_folder((10, 0))}
    monkeypatch.setattr(_cuda_images, "compiler_versions", lambda: ("1.3", "12.9"))
    folders.add(_cuda_images.image_folder((9, 0)))
    monkeypatch.setattr(_cuda_images, "compiler_versions", lambda: ("1.2", "13.0"))
    folders.add(_cuda_images.image_folder((9, 0)))
    monkeypatch.setattr(_cuda_images, "cuda_digest", lambda: "other")
    folders.add(_cuda_images.image_folder((9, 0)))
    monkeypatch.setattr(_cuda_images, "cache_folder", lambda: "/elsewhere")
    folders.add(_cuda_images.image_folder((9, 0)))
    assert len(folders) == 6


PROCESS = """
import sys, time
from jitalloc.gpu import images as _cuda_images
from jitalloc.gpu import kernel as _cuda
_cuda_images.CACHE_ENABLED, _cuda_images.cache_folder = True, lambda: sys.argv[1]
_cuda_images.compiler_versions = lambda: ("1.2", "12.9")
code = bytes(range(256)) * 4_000
def compile(kernel, capability):
    return _cuda_images.Image("entry of " + kernel.name, code)
_cuda_images._compile = compile
print("ready", flush=True)
sys.stdin.readline()
for name, kernel in _cuda.cuda_kernels().items():
    for anew in (False, True, False):
        image = _cuda_images.kernel_image(kernel, (9, 0), anew)
        assert image == ("entry of " + name, code), name
print("done", flush=True)
"""


def test_eight_processes_that_start_at_once(tmp_path: Path) -> None:
    """Each reads while others write; nobody sees half a file, and none is left over."""
    command = [sys.executable, "-c", PROCESS, str(tmp_path)]
    started = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(8)
    ]
    for each in started:
        assert each.stdout is not None
        assert each.stdout.readline() == "ready\n"
    said = []
    for each in started:
        assert each.stdin is not None
        each.stdin.write("\n")
        each.stdin.flush()
    for each in started:
        said.append(each.communicate()[0])
    assert said == ["done\n"] * 8
    files = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(files) == sorted(f"{name}.image" for name in _cuda.cuda_kernels())
