"""What a replay reports: samples over time, JSON, pictures."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from jitalloc.errors import InvalidArgument, JitallocError
from jitalloc.replay import ReplayOptions, generate, replay, save_plot
from jitalloc.replay.timeline import MOST_SAMPLES
from tests.oracle_replay import requests, small


def test_samples_are_means_over_intervals_of_equal_length() -> None:
    # Two pages for four steps of a second, one page for the next; idle till 10; two pages again.
    report = replay(requests((0, 5, 3), (4, 4, 0), (10, 5, 0)), small())
    assert [sample.start for sample in report.samples] == [i / 4 for i in range(44)]
    assert [sample.used for sample in report.samples] == [2] * 16 + [1] * 4 + [0] * 20 + [2] * 4
    assert [sample.running for sample in report.samples] == [1] * 20 + [0] * 20 + [1] * 4


def test_samples_stay_few_and_lose_nothing() -> None:
    trace = requests((0, 4, 2_000), (1e6, 4, 3_000), (1e6 + 1e5, 4, 2_000))
    report = replay(trace, small(num_pages=2_000, step_ms=700))
    assert MOST_SAMPLES // 2 <= len(report.samples) <= MOST_SAMPLES
    starts = np.array([sample.start for sample in report.samples])
    lengths = np.diff([*starts, report.virtual_seconds])
    assert np.ptp(lengths[:-1]) == 0
    assert 0 < lengths[-1] <= lengths[0]
    mean = np.average([sample.used for sample in report.samples], weights=lengths)
    assert mean / 2_000 == pytest.approx(report.pool.occupancy_mean)


def test_the_report_as_json_has_these_keys(tmp_path: Path) -> None:
    report = replay(requests((0, 5, 3)), small(limit=7), trace="a trace")
    path = tmp_path / "report.json"
    path.write_text("old")
    report.save(path)
    assert list(tmp_path.iterdir()) == [path]  # nothing partial is left behind
    found = json.loads(path.read_text())
    assert found["schema"] == "jitalloc-replay/1"
    assert (found["trace"], found["interrupted"]) == ("a trace", False)
    assert found["options"]["num_pages"] == 4
    assert found["options"]["limit"] == 7
    assert {section: set(found[section]) for section in ("requests", "tokens", "allocator")} == {
        "requests": {"seen", "finished", "rejected", "unfinished", "preemptions"},
        "tokens": {"prompt", "decode", "recomputed"},
        "allocator": {
            "steps",
            "calls",
            "calls_per_second",
            "seconds",
            "step_us_median",
            "step_us_p99",
        },
    }
    assert set(found["pool"]) == {
        "occupancy_mean",
        "occupancy_peak",
        "pages_peak",
        "pages_allocated",
        "pages_copied",
        "fragmentation_mean",
        "fragmentation_peak",
        "runs_per_sequence",
    }
    assert found["samples"]["used"] == [sample.used for sample in report.samples]
    assert 0 < found["allocator"]["step_us_median"] <= found["allocator"]["step_us_p99"]
    assert found["allocator"]["seconds"] <= found["wall_seconds"]


@pytest.mark.parametrize("mode", ["serve", "cache"])
@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_the_picture_is_drawn(mode: str, suffix: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    options = ReplayOptions(mode=mode, num_pages=20_000)
    report = replay(generate(0, 40), options, trace="forty seconds")
    path = tmp_path / f"picture.{suffix}"
    save_plot(report, path)
    assert list(tmp_path.iterdir()) == [path]
    begins = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
    assert path.read_bytes().startswith(begins[suffix])
    if suffix == "png":
        from matplotlib.image import imread

        pixels = imread(path)
        assert pixels.shape[0] > 600
        assert len(np.unique(pixels[::3, ::3].reshape(-1, pixels.shape[2]), axis=0)) > 20
    if suffix == "svg":
        assert path.stat().st_size > 20_000


def test_a_picture_that_cannot_be_drawn_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = replay(requests((0, 5, 3)), small())
    with pytest.raises(InvalidArgument, match=r"must end in \.png, \.svg, \.pdf"):
        save_plot(report, tmp_path / "picture.gif")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(JitallocError, match=r"jitalloc\[plot\]"):
        save_plot(report, tmp_path / "picture.png")
