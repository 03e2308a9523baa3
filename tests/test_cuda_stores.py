"""No store is lost between the source of a CUDA kernel and `compile_ptx`.

Needs numba-cuda, no GPU; skipped where it is not installed.
"""

from __future__ import annotations

import importlib
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from asv_benchmarks.ptxas import find_ptxas
from jitalloc import _cuda

pytestmark = [
    pytest.mark.skipif(_cuda.SIMULATED, reason="the simulator compiles nothing"),
    pytest.mark.skipif(find_ptxas() is None, reason="no ptxas: pip install jitalloc[cudatest]"),
    pytest.mark.filterwarnings("ignore"),  # numba-cuda's own
]

CAPABILITY = (9, 0)


# The pass that drops them.


def typed_passes() -> Any:
    return importlib.import_module("numba.cuda.core.typed_passes")


def test_others_compile_with_the_pass_as_it_was() -> None:
    """Also those of another thread, and after a kernel that does not compile."""
    before = typed_passes().dead_code_elimination
    lock = importlib.import_module("numba.cuda.core.compiler_lock").global_compiler_lock
    seen: list[Any] = []

    def compile_something() -> None:
        with lock:
            seen.append(typed_passes().dead_code_elimination)

    def fail_meanwhile() -> None:
        with _cuda._compiling_for(CAPABILITY):
            assert typed_passes().dead_code_elimination is not before
            thread.start()
            thread.join(0.1)
            assert not seen
            raise ZeroDivisionError

    thread = threading.Thread(target=compile_something)
    with pytest.raises(ZeroDivisionError):
        fail_meanwhile()
    thread.join()
    assert seen == [before]


@pytest.mark.parametrize(
    "passes",
    [
        SimpleNamespace(),
        SimpleNamespace(dead_code_elimination=id),
        SimpleNamespace(dead_code_elimination=id, InlineOverloads=SimpleNamespace(run_pass=max)),
        SimpleNamespace(
            dead_code_elimination=id, InlineOverloads=SimpleNamespace(run_pass=typed_passes)
        ),
    ],
)
def test_a_numba_cuda_without_the_pass_is_refused(passes: Any) -> None:
    with pytest.raises(RuntimeError, match=r"numba-cuda .* does not call dead_code_elimination"):
        _cuda._has_dead_code_pass(passes)
