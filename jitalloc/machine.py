"""What this machine has: versions, processor, graphics cards, compiled kernels."""

from __future__ import annotations

import os
import platform
import re
import sys
from pathlib import Path
from typing import Final

from jitalloc import _jit

DRIVER: Final = Path("/proc/driver/nvidia")
# The least driver for each CUDA that there is an extra for.
CUDA_DRIVERS: Final = ((13, 580), (12, 525))


def describe_machine() -> dict[str, str]:
    """Return versions, devices and the folder of compiled kernels, by label.

    CUDA itself is not loaded.
    """
    rows = {"python": f"{platform.python_version()} ({sys.platform})"}
    rows |= _jit.versions()
    rows["cpu"] = f"{_cpu_name()}, {os.cpu_count()} cores"
    driver = _driver_version()
    rows["gpu"] = _gpu_names() or "none seen"
    rows["driver"] = f"{driver}, {_driver_cuda(driver)}" if driver else "none seen"
    rows["cuda packages"] = _cuda_packages(driver)
    return rows | _compiled()


def _compiled() -> dict[str, str]:
    """Return where compiled kernels lie, and how many files and bytes they are."""
    if not _jit.CACHE_ENABLED:
        return {"kernel cache": "off: JITALLOC_CACHE=0"}
    try:
        folder = _jit.cache_folder()
    except OSError as error:
        return {"kernel cache": f"off: the sources cannot be read: {error}"}
    files = [file for file in Path(folder).rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    return {"kernel cache": folder, "compiled": f"{len(files)} files, {size / 2**20:.1f} MiB"}


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass  # no Linux
    return platform.processor() or platform.machine()


def _gpu_names() -> str:
    """Return the models that NVIDIA's driver lists; CUDA itself is not loaded."""
    models = []
    for file in sorted((DRIVER / "gpus").glob("*/information")):
        for line in file.read_text(encoding="utf-8").splitlines():
            if line.startswith("Model:"):
                models.append(line.partition(":")[2].strip())
    return ", ".join(models)


def _driver_version() -> str:
    """Return the version of NVIDIA's driver, or an empty string."""
    try:
        text = (DRIVER / "version").read_text(encoding="utf-8")
    except OSError:
        return ""
    found = re.search(r"Kernel Module(?: for \S+)?\s+(\d+(?:\.\d+)+)", text)
    return found.group(1) if found else ""


def _cuda_of(driver: str) -> int:
    """Return the newest CUDA of `CUDA_DRIVERS` that a driver supports; 0: none of them."""
    major = int(driver.partition(".")[0])
    return next((cuda for cuda, least in CUDA_DRIVERS if major >= least), 0)


def _driver_cuda(driver: str) -> str:
    cuda = _cuda_of(driver)
    return f"CUDA {cuda}" if cuda else f"too old: CUDA 12 needs {CUDA_DRIVERS[-1][1]} or newer"


def _cuda_packages(driver: str) -> str:
    """Return what of the CUDA extras is installed, from the metadata, and what to install."""
    from importlib.metadata import distributions

    found = {
        (each.name or "").lower(): each.version
        for each in distributions()
        if (each.name or "").lower().startswith(("cupy", "numba-cuda"))
    }
    shown = ", ".join(f"{name} {version}" for name, version in sorted(found.items()))
    missing = [
        wanted
        for wanted in ("cupy", "numba-cuda")
        if not any(name.startswith(wanted) for name in found)
    ]
    cuda = _cuda_of(driver) if driver else 0
    newer = [name for name in sorted(found) if 0 < cuda < _made_for(name)]
    extra = f"pip install 'jitalloc[cuda{cuda}]'"
    if not cuda:
        extra = "pip install 'jitalloc[cuda12]' or 'jitalloc[cuda13]'"
    if newer:
        return f"{shown}; {newer[0]} needs a newer driver: {extra}"
    if not found:
        return f"not installed; {extra}"
    return f"{shown}; no {' and no '.join(missing)}: {extra}" if missing else shown


def _made_for(name: str) -> int:
    """Return which CUDA a package such as cupy-cuda13x is for; 0: its name does not say."""
    found = re.fullmatch(r"cupy-cuda(\d+)x?", name)
    return int(found.group(1)) if found else 0
