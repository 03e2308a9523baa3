"""Compiling all kernels before the first use."""

from __future__ import annotations

from jitalloc._cuda_device import load_kernels
from jitalloc._jit import compile_kernels
from jitalloc.errors import WrongDevice


def warmup(device: str = "cpu") -> int:
    """Compile every kernel of a device now, or load it from the disk cache.

    Parameters
    ----------
    device : {"cpu", "cuda"}
        `"cuda"`: the kernels for CuPy's current GPU, which are loaded there as well.

    Returns
    -------
    int
        How many kernels there are.

    Raises
    ------
    WrongDevice
        The device is none of these, or no GPU can be used.

    Notes
    -----
    Without it each kernel compiles at its first call, which takes up to two seconds the first
    time on a machine (on the GPU up to twelve), and a few milliseconds from the disk cache. On the
    GPU no first call should fall into the capture of a CUDA graph.
    """
    if device not in ("cpu", "cuda"):
        raise WrongDevice("device", device, "must be 'cpu' or 'cuda'")
    return compile_kernels() if device == "cpu" else load_kernels()
