"""No store is lost between the source of a CUDA kernel and `compile_ptx`.

Needs numba-cuda, no GPU; skipped where it is not installed.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from asv_benchmarks.ptxas import find_ptxas
from jitalloc.gpu import kernel as _cuda

pytestmark = [
    pytest.mark.skipif(_cuda.SIMULATED, reason="the simulator compiles nothing"),
    pytest.mark.skipif(find_ptxas() is None, reason="no ptxas: pip install jitalloc[cudatest]"),
    pytest.mark.filterwarnings("ignore"),  # numba-cuda's own
]

CAPABILITY = (9, 0)
ROOT = Path(__file__).parents[1]


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


# What is left of the stores. Files and lines of the source are named.


def what_became_of(*arguments: str) -> dict[str, Any]:
    """Compile kernels in a process of their own: helpers are compiled but once a process."""
    command = [sys.executable, "-m", "tests.stores", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_no_store_is_lost() -> None:
    """In no function that is compiled by numba, and no line of the source from the PTX.

    A line has to be left in one of the kernels that may come to it, since a kernel may come to it
    with constants that rule it out.
    """
    kernels = _cuda.cuda_kernels()
    report = what_became_of(*kernels)
    assert report["lost"] == []
    assert report["seen"] > 5 * len(kernels)  # 336 stores in 50 kernels
    # NVVM refuses lines in this one (unsupported characters in a symbol); the first look has it.
    assert set(report["without_lines"]) <= {"owners_free_slots_cuda"}
    kernels = {name: each for name, each in kernels.items() if name in report["wanted"]}
    wanted = {tuple(place) for name in kernels for place in report["wanted"][name]}
    kept = {tuple(place) for name in kernels for place in report["kept"][name]}
    # Two stores to one place by both arms of an `if` may have become one, of no line: write one.
    assert sorted(wanted - kept) == []
    assert len(wanted) > 100


def test_a_lost_store_is_seen() -> None:
    """With the pass on, as numba-cuda has it: the planted kernel loses its first of three."""
    whole = what_became_of("planted")
    assert whole["lost"] == []
    assert sorted(whole["kept"]["planted"]) == sorted(whole["wanted"]["planted"])
    report = what_became_of("--pass-on", "planted")
    ((place, count, function, kernel),) = report["lost"]
    assert (count, function, kernel) == (1, "planted_cuda", "planted")
    file, line, kind = place
    assert (Path(file), kind) == (ROOT / "tests" / "stores.py", "store")
    assert ".view(np.int32)[place] = 7" in Path(file).read_text().splitlines()[line - 1]
    wanted, kept = (sorted(report[each]["planted"]) for each in ("wanted", "kept"))
    assert [each for each in wanted if each not in kept] == [place]
