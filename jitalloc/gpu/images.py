"""CUDA kernels as a driver loads them: compiled and linked for one kind of GPU, kept on disk.

What is linked (a cubin) runs under each driver of the same CUDA major; PTX only under a driver at
least as new as the compiler. Nothing of CUDA is imported before a kernel has to be compiled.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Final, NamedTuple

from jitalloc._jit import CACHE_ENABLED, cache_folder
from jitalloc._sources import source_digest
from jitalloc.gpu.kernel import CudaKernel, cuda_kernels, entry_name

DIGEST_BYTES: Final = 32


class Image(NamedTuple):
    """One kernel for one compute capability.

    Attributes
    ----------
    entry : str
        Name of the kernel in it.
    code : bytes
        A cubin, or PTX with a zero byte behind it.
    """

    entry: str
    code: bytes


def kernel_image(kernel: CudaKernel, capability: tuple[int, int], anew: bool = False) -> Image:
    """Return a kernel from the folder of compiled kernels, or compile it and put it there.

    `anew`: what stands there is replaced. A file that is damaged always is.
    """
    file = None
    with contextlib.suppress(OSError):  # the sources cannot be read: compile each time
        file = image_folder(capability) / f"{kernel.name}.image" if CACHE_ENABLED else None
    found = None if anew or file is None else _read(file)
    if found is None:
        found = _compile(kernel, capability)
        if file is not None:
            _write(file, found)
    return found


def image_folder(capability: tuple[int, int]) -> Path:
    """Return where images for a compute capability lie: by compiler, GPU and source."""
    name = "cuda-{}-{}-sm_{}{}-{}".format(*compiler_versions(), *capability, cuda_digest())
    return Path(cache_folder()) / name


@cache
def compiler_versions() -> tuple[str, str]:
    """Return the versions of numba-cuda and of the CUDA behind it; ImportError: not installed."""
    return version("numba-cuda"), version("cuda-bindings")


@cache
def cuda_digest() -> str:
    """Return a digest of what kernels of the GPU are made from, this file included."""
    return source_digest([kernel_image, *(each.function for each in cuda_kernels().values())])


def _compile(kernel: CudaKernel, capability: tuple[int, int]) -> Image:
    text = kernel.ptx(capability)
    return Image(entry_name(text), _linked(text.encode(), capability) or text.encode() + b"\0")


def _linked(text: bytes, capability: tuple[int, int]) -> bytes | None:
    """Return a text of PTX as a cubin; None where the linker is missing or knows no such GPU.

    Then the driver has to do it, if it is new enough, each time that a process loads the kernel.
    """
    try:
        from cuda.bindings import nvjitlink

        linker = nvjitlink.create(1, ["-arch=sm_{}{}".format(*capability)])
        try:
            nvjitlink.add_data(linker, nvjitlink.InputType.PTX, text, len(text), "kernel")
            nvjitlink.complete(linker)
            code = bytearray(nvjitlink.get_linked_cubin_size(linker))
            nvjitlink.get_linked_cubin(linker, code)
        finally:
            nvjitlink.destroy(linker)
    except Exception:  # ImportError, what cuda.pathfinder raises, nvJitLinkError
        return None
    return bytes(code)


def _read(file: Path) -> Image | None:
    """Return the image in a file; None where there is none, or none that is whole."""
    try:
        content = file.read_bytes()
    except OSError:
        return None
    digest, rest = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
    if hashlib.blake2b(rest, digest_size=DIGEST_BYTES).digest() != digest:
        return None
    entry, _newline, code = rest.partition(b"\n")
    return Image(entry.decode(), code)


def _write(file: Path, image: Image) -> None:
    """Put an image on disk as a whole: processes that start together may do so at once."""
    rest = image.entry.encode() + b"\n" + image.code
    content = hashlib.blake2b(rest, digest_size=DIGEST_BYTES).digest() + rest
    with contextlib.suppress(OSError):  # nowhere to write: compile each time
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, beside = tempfile.mkstemp(dir=file.parent, prefix=f"{file.stem}.", suffix=".new")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(content)
            os.replace(beside, file)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(beside)
            raise
