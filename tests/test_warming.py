"""Kernels that a second process compiles: they are there afterwards, or nobody is the worse."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jitalloc import _jit, warming
from jitalloc.warming import Precompiled

pytestmark = pytest.mark.skipif(_jit.JIT_DISABLED, reason="nothing is compiled")

CHILD = """
import sys
from jitalloc import _jit, warming
from jitalloc.warming import Precompiled
with Precompiled([sys.argv[1]]) as elsewhere:
    print(elsewhere._process is not None)
    elsewhere.wait()
began = []
compiled = _jit.Kernel._compiled
_jit.Kernel._compiled = lambda self, anew=False: began.append(anew) or compiled(self, anew)
with Precompiled([sys.argv[1]]) as again:
    print(again._process is not None)
if sys.argv[1] in _jit.kernels():
    kernel = _jit.kernels()[sys.argv[1]]
    dispatcher = kernel._compiled()
    print(sum(dispatcher.stats.cache_hits.values()))
"""


def run(tmp_path: Path, name: str, **settings: str) -> list[str]:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), **settings}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, name], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core")
def test_a_kernel_is_compiled_by_the_other_process(tmp_path: Path) -> None:
    assert run(tmp_path, "owners_count_cpu") == ["True", "False", "1"]


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core")
def test_a_process_that_fails_changes_nothing(tmp_path: Path) -> None:
    assert run(tmp_path, "no_such_kernel") == ["True", "True"]


def test_without_a_disk_cache_there_is_no_process(tmp_path: Path) -> None:
    assert run(tmp_path, "owners_count_cpu", JITALLOC_CACHE="0") == ["False", "False", "0"]


def test_what_is_left_at_the_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warming, "CHILD", "import time; time.sleep(600)")
    monkeypatch.setattr(_jit, "CACHE_ENABLED", True)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    with Precompiled(["missing"]) as elsewhere:
        process: Any = elsewhere._process
        assert process.poll() is None
    assert process.poll() is not None
