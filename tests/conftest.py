"""Settings and fixtures that the tests share."""

from __future__ import annotations

import os
import sys

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

from jitalloc import PagePool, _cuda, _cuda_device  # noqa: E402
from tests.cache_pairs import CachePair  # noqa: E402
from tests.ptx import install  # noqa: E402

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


@pytest.fixture
def few_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads a block, where the simulator runs them."""
    if _cuda.SIMULATED:
        monkeypatch.setattr(_cuda_device.device(), "threads", 2)


@pytest.fixture
def pool() -> PagePool:
    """Eight pages of four tokens, in order `sorted`; nothing taken."""
    return PagePool(8, page_size=4)


@pytest.fixture
def pair() -> CachePair:
    """A cache and its model: sixteen pages of four tokens, six rows of eight pages."""
    return CachePair()
