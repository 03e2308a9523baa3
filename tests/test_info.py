"""What `jitalloc info` says of GPU, driver and packages, from files that a driver would write."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from jitalloc import info

OLD = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  {}  Thu Feb 22 01:44:30 UTC 2024\n"
OPEN = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {}  Release Build  (builder@host)\n"
    "GCC version:  gcc version 13.3.0\n"
)


def describe(
    monkeypatch: pytest.MonkeyPatch, folder: Path, version: str | None, *packages: tuple[str, str]
) -> dict[str, str]:
    if version is not None:
        (folder / "gpus" / "0000:17:00.0").mkdir(parents=True)
        information = "Model: \t\t NVIDIA H200\nIRQ:   \t\t 91\n"
        (folder / "gpus" / "0000:17:00.0" / "information").write_text(information)
        (folder / "version").write_text(version)
    found = [SimpleNamespace(name=name, version=number) for name, number in packages]
    monkeypatch.setattr(info, "DRIVER", folder)
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: found)
    return info.describe_machine()


CUPY12, CUPY13 = ("cupy-cuda12x", "13.4.0"), ("cupy-cuda13x", "14.2.0")
NUMBA = ("numba-cuda", "0.30.4")
CASES = [
    (OLD.format("550.54.14"), "550.54.14, CUDA 12", [CUPY12, NUMBA], ""),
    (OPEN.format("570.86.15"), "570.86.15, CUDA 12", [], "not installed; pip install 'x[cuda12]'"),
    (OPEN.format("580.65.06"), "580.65.06, CUDA 13", [], "not installed; pip install 'x[cuda13]'"),
    (OPEN.format("610.1"), "610.1, CUDA 13", [CUPY12, NUMBA], ""),
    (OLD.format("525.60.13"), "525.60.13, CUDA 12", [NUMBA], "no cupy: pip install 'x[cuda12]'"),
    (
        OPEN.format("580.65.06"),
        "580.65.06, CUDA 13",
        [CUPY13],
        "no numba-cuda: pip install 'x[cuda13]'",
    ),
    (
        OLD.format("550.54.14"),
        "550.54.14, CUDA 12",
        [CUPY13, NUMBA],
        "cupy-cuda13x needs a newer driver: pip install 'x[cuda12]'",
    ),
    (
        OLD.format("470.256.02"),
        "470.256.02, too old: CUDA 12 needs 525 or newer",
        [],
        "not installed; pip install 'x[cuda12]' or 'x[cuda13]'",
    ),
    (None, "none seen", [], "not installed; pip install 'x[cuda12]' or 'x[cuda13]'"),
    ("what a driver never writes", "none seen", [CUPY12, NUMBA], ""),
]


@pytest.mark.parametrize(("version", "driver", "packages", "advice"), CASES)
def test_driver_and_packages(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    version: str | None,
    driver: str,
    packages: list[tuple[str, str]],
    advice: str,
) -> None:
    rows = describe(monkeypatch, tmp_path, version, ("numpy", "2.4"), *packages)
    assert rows["gpu"] == ("none seen" if version is None else "NVIDIA H200")
    assert rows["driver"] == driver
    shown = ", ".join(f"{name} {number}" for name, number in packages)
    both = [each for each in (shown, advice.replace("x[", "jitalloc[")) if each]
    assert rows["cuda packages"] == "; ".join(both)


def test_the_extras_are_those_of_the_project() -> None:
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    for cuda, _least in info.CUDA_DRIVERS:
        assert f"cuda{cuda} = " in text
