"""What a replay reports: samples over time, JSON, pictures."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from jitalloc.errors import InvalidArgument, JitallocError
from jitalloc.replay import ReplayOptions, Request, generate, replay, save_plot
from jitalloc.replay.timeline import MOST_SAMPLES
from tests.oracle_replay import requests, small

SECTIONS = ("requests", "tokens", "prefix", "allocator")


def test_samples_are_means_over_intervals_of_equal_length() -> None:
    # Two pages for four steps of a second, one page for the next; idle till 10; two pages again.
    report = replay(requests((0, 5, 3), (4, 4, 0), (10, 5, 0)), small())
    assert [sample.start for sample in report.samples] == [i / 4 for i in range(44)]
    assert [sample.held for sample in report.samples] == [2] * 16 + [1] * 4 + [0] * 20 + [2] * 4
    assert [sample.running for sample in report.samples] == [1] * 20 + [0] * 20 + [1] * 4


def test_samples_stay_few_and_lose_nothing() -> None:
    trace = requests((0, 4, 2_000), (1e6, 4, 3_000), (1e6 + 1e5, 4, 2_000))
    report = replay(trace, small(num_pages=2_000, step_ms=700))
    assert MOST_SAMPLES // 2 <= len(report.samples) <= MOST_SAMPLES
    starts = np.array([sample.start for sample in report.samples])
    lengths = np.diff([*starts, report.virtual_seconds])
    assert np.ptp(lengths[:-1]) == 0
    assert 0 < lengths[-1] <= lengths[0]
    mean = np.average([sample.held for sample in report.samples], weights=lengths)
    assert mean / 2_000 == pytest.approx(report.pool.held_mean)


def chat(*shapes: tuple[float, int, list[int]]) -> list[Request]:
    return [Request(at, tokens, 0, 4, np.array(ids, np.int64)) for at, tokens, ids in shapes]


def test_what_is_held_cached_and_free_adds_up() -> None:
    # Two pages held for a second each, first computed, then found; two of four in between.
    trace = chat((0, 8, [1, 2]), (3, 8, [1, 2]), (4, 8, [1, 9]))
    report = replay(trace, small())
    pool, prefix, tokens = report.pool, report.prefix, report.tokens
    assert report.virtual_seconds == 5
    assert pool.held_mean == pytest.approx((2 * 1 + 2 * 1 + 2 * 1) / 5 / 4)
    assert pool.cached_mean == pytest.approx((2 * 2 + 1 * 1) / 5 / 4)
    assert pool.free_mean == pytest.approx(1 - pool.held_mean - pool.cached_mean)
    assert (pool.held_peak, pool.cached_peak, pool.pages_peak) == (0.5, 0.5, 3)
    assert (tokens.prompt, tokens.cached) == (8 + 1 + 4, 7 + 4)  # the last token is always read
    assert (prefix.lookup_tokens, prefix.hit_tokens) == (24, 8 + 4)
    assert (prefix.lookup_pages, prefix.hit_pages) == (6, 2 + 1)
    assert prefix.hit_rate_pages == 0.5
    assert (prefix.pages_inserted, prefix.pages_cached, sum(prefix.evicted.values())) == (3, 3, 0)
    assert [each.hit_tokens for each in report.samples if each.lookup_tokens] == [0, 8, 4]


def test_without_a_cache_of_prefixes_nothing_is_found() -> None:
    trace = chat((0, 8, [1, 2]), (3, 8, [1, 2]))
    for mode in ("serve", "cache"):
        report = replay(trace, small(mode=mode, policy="none"))
        assert report.tokens.prompt == report.prefix.lookup_tokens == 16
        assert (report.prefix.hit_rate_tokens, report.pool.cached_peak) == (0, 0)
        assert report.prefix.evicted == {}


def test_in_cache_mode_a_partly_filled_block_is_found_as_a_whole() -> None:
    trace = chat((0, 6, [1, 2]), (0, 6, [1, 2]), (0, 40, [*range(1, 11)]))
    report = replay(trace, small(mode="cache"))
    assert (report.tokens.prompt, report.tokens.cached) == (6, 6)
    assert (report.prefix.lookup_pages, report.prefix.hit_pages) == (2 + 2 + 10, 2)
    assert (report.prefix.lookup_tokens, report.requests.rejected) == (52, 1)
    assert sum(each.lookup_tokens for each in report.samples) == 52


def test_the_report_as_json_has_these_keys(tmp_path: Path) -> None:
    report = replay(requests((0, 5, 3)), small(limit=7), trace="a trace")
    path = tmp_path / "report.json"
    path.write_text("old")
    report.save(path)
    assert list(tmp_path.iterdir()) == [path]  # nothing partial is left behind
    found = json.loads(path.read_text())
    assert found["schema"] == "jitalloc-replay/2"
    assert (found["trace"], found["interrupted"]) == ("a trace", False)
    assert found["options"]["num_pages"] == 4
    assert found["options"]["limit"] == 7
    assert {section: set(found[section]) for section in SECTIONS} == {
        "requests": {"seen", "finished", "rejected", "unfinished", "preemptions"},
        "tokens": {"prompt", "cached", "decode", "recomputed", "restored"},
        "prefix": {
            "lookup_tokens",
            "hit_tokens",
            "hit_rate_tokens",
            "lookup_pages",
            "hit_pages",
            "hit_rate_pages",
            "pages_inserted",
            "pages_cached",
            "evicted",
        },
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
        "held_mean",
        "held_peak",
        "cached_mean",
        "cached_peak",
        "free_mean",
        "pages_peak",
        "pages_allocated",
        "pages_copied",
        "fragmentation_mean",
        "fragmentation_peak",
        "runs_per_sequence",
    }
    assert set(found["samples"]) == {
        *("start", "held", "cached", "running", "waiting", "fragmentation"),
        *("lookup_tokens", "hit_tokens"),
    }
    assert found["samples"]["held"] == [sample.held for sample in report.samples]
    assert 0 < found["allocator"]["step_us_median"] <= found["allocator"]["step_us_p99"]
    assert found["allocator"]["seconds"] <= found["wall_seconds"]


@pytest.mark.parametrize("policy", ["lru", "none"])
@pytest.mark.parametrize("mode", ["serve", "cache"])
@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_the_picture_is_drawn(policy: str, mode: str, suffix: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    options = ReplayOptions(mode=mode, num_pages=20_000, policy=policy)
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
