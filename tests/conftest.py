"""Settings and fixtures that the tests share."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.register_assert_rewrite(
    "tests.pairs",
    "tests.cache_pairs",
    "tests.cuda_cache_pairs",
    "tests.prefix_pairs",
    "tests.cuda_prefix_pairs",
    "tests.sharing_pairs",
    "tests.sharing_whole",
    "tests.slot_pairs",
)

from hypothesis import HealthCheck, Phase, settings  # noqa: E402

from jitalloc import PagePool, _jit  # noqa: E402
from jitalloc.gpu import device as _cuda_device  # noqa: E402
from jitalloc.gpu import kernel as _cuda  # noqa: E402
from tests.cache_pairs import CachePair  # noqa: E402
from tests.ptx import install  # noqa: E402
from tests.ptx.settings import Settings  # noqa: E402
from tests.ptx.settings import settings as machine_settings  # noqa: E402

if install.ASKED:  # before somebody looks for a GPU
    install.install()

# `HYPOTHESIS_PROFILE=long pytest tests/test_machine.py` looks further, at random.
QUIET = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much)
settings.register_profile(
    "ci",
    derandomize=True,
    max_examples=300,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=QUIET,
)
settings.register_profile(
    "long", max_examples=3000, stateful_step_count=80, deadline=None, suppress_health_check=QUIET
)
settings.register_profile(
    "quick", settings.get_profile("ci"), phases=(Phase.explicit, Phase.generate)
)
if _cuda.SIMULATED:
    sys.setswitchinterval(2e-5)  # the simulator's threads wait for each other in a busy loop
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(params=["sorted", "fifo", "lifo"])
def order(request: pytest.FixtureRequest) -> str:
    """Each order of the freelist."""
    return str(request.param)


@pytest.fixture(autouse=True)
def _on_its_own() -> Iterator[None]:
    """On the PTX machine, a test's seed does not go on where another test has left it.

    And what the test has started fails within it, where streams do it late.
    """
    if not install.ASKED:
        yield
        return
    from tests.ptx import machine, streams

    machine.restart()
    yield
    streams.finish()


@pytest.fixture
def few_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads a block, where the simulator runs them."""
    if _cuda.SIMULATED:
        monkeypatch.setattr(_cuda_device.device(), "threads", 2)


@pytest.fixture
def many_small_blocks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Blocks of few threads, and at most five; returns the launches, with their blocks."""
    gpu: Any = _cuda_device.device()
    launches: list[tuple[str, int]] = []
    launch = gpu.launch

    def noted(kernel: Any, blocks: int, threads: int, *arguments: Any) -> None:
        launches.append((kernel.name, blocks))
        launch(kernel, blocks, threads, *arguments)

    monkeypatch.setattr(gpu, "launch", noted)
    monkeypatch.setattr(gpu, "threads", 4 if isinstance(gpu, _cuda_device.SimulatedDevice) else 32)
    monkeypatch.setattr("jitalloc.gpu.slab.ITEMS", 1)
    monkeypatch.setattr("jitalloc.gpu.slab.MOST_BLOCKS", 5)
    monkeypatch.setattr("jitalloc.pool.pool_cuda.LARGE", 8)
    monkeypatch.setattr("jitalloc.pool.pool_cuda.MANY", 8)
    return launches


@pytest.fixture
def pool() -> PagePool:
    """Eight pages of four tokens, in order `sorted`; nothing taken."""
    return PagePool(8, page_size=4)


@pytest.fixture
def pair() -> CachePair:
    """A cache and its model: sixteen pages of four tokens, six rows of eight pages."""
    return CachePair()


@pytest.fixture
def kernels() -> Path:
    """The folder of kernels that this process uses too."""
    return Path(_jit.cache_folder()).parents[1]


@pytest.fixture
def ask_machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Say how the PTX machine runs launches, whatever the environment says; in order at first."""

    from tests.ptx import machine

    def ask(mode: str = "order", seed: int = 1, *watch: str) -> None:
        asked = Settings(mode, seed, watch, quantum=3, limit=100_000)
        for name, value in vars(asked).items():
            monkeypatch.setattr(machine_settings, name, value)
        machine.restart()

    ask()
    return ask
