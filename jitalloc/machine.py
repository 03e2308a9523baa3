"""What this machine has: versions, processor, graphics cards, compiled kernels."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

from jitalloc import _jit


def describe_machine() -> dict[str, str]:
    """Return versions, devices and the folder of compiled kernels, by label.

    CUDA itself is not loaded.
    """
    rows = {"python": f"{platform.python_version()} ({sys.platform})"}
    rows |= _jit.versions()
    rows["cpu"] = f"{_cpu_name()}, {os.cpu_count()} cores"
    rows["gpu"] = _gpu_names() or "none seen"
    rows["cuda packages"] = _cuda_packages()
    rows["kernel cache"] = _jit.CACHE_FOLDER if _jit.CACHE_ENABLED else "off: JITALLOC_CACHE=0"
    if _jit.CACHE_ENABLED:
        files = [file for file in Path(_jit.CACHE_FOLDER).rglob("*") if file.is_file()]
        size = sum(file.stat().st_size for file in files)
        rows["compiled"] = f"{len(files)} files, {size / 2**20:.1f} MiB"
    return rows


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
    for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        for line in file.read_text(encoding="utf-8").splitlines():
            if line.startswith("Model:"):
                models.append(line.partition(":")[2].strip())
    return ", ".join(models)


def _cuda_packages() -> str:
    """Return what of the CUDA extras is installed, from the metadata: nothing is imported."""
    from importlib.metadata import distributions

    wanted = ("cupy", "numba-cuda")
    found = {
        f"{each.name} {each.version}"
        for each in distributions()
        if (each.name or "").lower().startswith(wanted)
    }
    return ", ".join(sorted(found)) or (
        "not installed; pip install 'jitalloc[cuda12]' or 'jitalloc[cuda13]'"
    )
