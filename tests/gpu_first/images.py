"""Images of all kernels, compiled beforehand on a machine without a GPU, and taken into use."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

from jitalloc.gpu import images as _cuda_images
from jitalloc.gpu import kernel as _cuda

MANIFEST = "images.json"


def commit() -> str:
    """Return the commit of this checkout, `unknown` where there is none."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"


def build(folder: Path, capability: tuple[int, int]) -> int:
    """Compile every kernel into `folder` with a manifest; return how many there are."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, kernel in _cuda.cuda_kernels().items():
        image = _cuda_images._compile(kernel, capability)
        if image.code[:4] != b"\x7fELF":
            raise SystemExit(f"{name} was not linked: the package of nvjitlink is missing")
        _cuda_images._write(folder / f"{name}.image", image)
    facts = {
        "commit": commit(),
        "sources": _cuda_images.cuda_digest(),
        "compiler": _cuda_images.compiler_versions(),
        "capability": capability,
        "kernels": sorted(_cuda.cuda_kernels()),
    }
    (folder / MANIFEST).write_text(json.dumps(facts, indent=1))
    return len(facts["kernels"])


def take(folder: Path, capability: tuple[int, int]) -> str:
    """Put images built beforehand where jitalloc looks; return what they are.

    Refused are those of another commit's sources, another kind of GPU, or not of all kernels.
    """
    facts = json.loads((folder / MANIFEST).read_text())
    wanted = {
        "sources": _cuda_images.cuda_digest(),
        "capability": list(capability),
        "kernels": sorted(_cuda.cuda_kernels()),
    }
    for fact, value in wanted.items():
        if facts[fact] != value:
            raise SystemExit(f"{folder}: {fact} is {facts[fact]}, this checkout has {value}")
    there = _cuda_images.image_folder(capability)
    there.mkdir(parents=True, exist_ok=True)
    for name in wanted["kernels"]:
        shutil.copy(folder / f"{name}.image", there)
    return f"{len(facts['kernels'])} images of {facts['commit']} by numba-cuda and CUDA " + str(
        facts["compiler"]
    )
