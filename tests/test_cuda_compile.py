"""Every CUDA kernel, compiled for GPUs of five generations without one: `compile_ptx` and ptxas.

Neither a type error nor a spill shows in the simulator. Needs numba-cuda, and ptxas of the wheel
nvidia-cuda-nvcc; skipped where they are not installed.
"""

from __future__ import annotations

import re
from copy import copy
from pathlib import Path

import pytest

from asv_benchmarks.ptxas import CAPABILITIES, assemble, find_ptxas
from jitalloc.gpu import device as _cuda_device
from jitalloc.gpu import images as _cuda_images
from jitalloc.gpu import kernel as _cuda

SHARED_BYTES = 48 * 1024  # of a block, without asking for more
REGISTERS = 65536  # of a multiprocessor

pytestmark = [
    pytest.mark.skipif(_cuda.SIMULATED, reason="the simulator compiles nothing"),
    pytest.mark.skipif(find_ptxas() is None, reason="no ptxas: pip install jitalloc[cudatest]"),
    pytest.mark.filterwarnings("ignore"),  # numba-cuda's own
]


# All capabilities of a kernel in one test: types are inferred but once a process.
@pytest.mark.parametrize("name", sorted(_cuda.cuda_kernels()))
def test_kernel_compiles_without_spills(name: str, tmp_path: Path) -> None:
    kernel = _cuda.cuda_kernels()[name]
    for capability in CAPABILITIES:
        text = kernel.ptx(capability)
        assert "ld.global.nc" not in text, capability  # the state changes while a kernel runs
        used = assemble(text, capability, tmp_path)
        assert (used.spills, used.stack) == (0, 0), capability
        assert used.shared <= SHARED_BYTES, capability
        assert used.registers * kernel.most_threads <= REGISTERS, capability
    assert kernel.most_threads >= _cuda_device.CupyDevice.threads
    launches_hand_over_what_it_takes(kernel, text)


def launches_hand_over_what_it_takes(kernel: _cuda.CudaKernel, text: str) -> None:
    assert kernel.words <= _cuda.MOST_WORDS  # and in the text: `CudaKernel.ptx` compares them
    assert f".entry {_cuda.entry_name(text)}(" in text
    assert text.count(".entry") == 1
    # The elements stand at the address in the fifth word of an array; its third word counts them.
    assert "_param_4]" in text


@pytest.mark.parametrize("words", [-1, 1])
def test_other_parameters_than_launches_hand_over_are_refused(words: int) -> None:
    kernel = copy(_cuda.cuda_kernels()["pool_merge_cuda"])
    made = kernel.words
    kernel.words += words
    said = f"pool_merge_cuda: numba-cuda .* made {made} parameters, {made} .*, not {made + words};"
    with pytest.raises(RuntimeError, match=said):
        kernel.ptx((9, 0))


def test_parameters_of_another_size_are_refused() -> None:
    kernel = copy(_cuda.cuda_kernels()["pool_merge_cuda"])
    kernel.words = 2
    text = ".visible .entry merge(\n.param .u64 {}merge_0,\n.param .u{} merge_1\n)\n{{"
    kernel._takes_what_launches_hand_over(text.format(".ptr .align 8 ", 64))
    with pytest.raises(RuntimeError, match="made 2 parameters, 1 of them of 8 bytes"):
        kernel._takes_what_launches_hand_over(text.format("", 32))


@pytest.mark.parametrize("capability", CAPABILITIES, ids=str)
def test_what_is_kept_on_disk_is_linked(
    capability: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cubin: a driver has nothing left to compile, and may be older than the compiler."""
    monkeypatch.setattr(_cuda_images, "CACHE_ENABLED", True)
    monkeypatch.setattr(_cuda_images, "cache_folder", lambda: str(tmp_path))
    image = _cuda_images.kernel_image(_cuda.cuda_kernels()["pool_merge_cuda"], capability)
    assert image.code.startswith(b"\x7fELF")
    assert image.entry.encode() in image.code
    (file,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert file.parent == _cuda_images.image_folder(capability)


def test_only_the_file_of_scans_has_warp_intrinsics() -> None:
    package = Path(_cuda.__file__).parents[1]
    files = [*package.rglob("*_cuda.py"), *(package / "gpu").glob("*.py")]
    assert package / "gpu" / "scan.py" in files
    for file in files:
        found = re.search(r"shfl|ballot|match_any|activemask|laneid", file.read_text())
        assert not found or file.stem == "scan"
