"""Sizing a cache: published hit rates, what knowing the future gives, tables and pictures."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import numpy as np
import pytest

from jitalloc.errors import InvalidArgument
from jitalloc.replay import ReplayOptions, Request, read_trace, replay, run_sweep, save_curves
from jitalloc.replay.clairvoyant import PagePaths
from jitalloc.replay.options import REPLAY_POLICIES
from jitalloc.replay.table import print_sweep
from jitalloc.replay.traces import read_traces
from tests.oracle_cache import one_after_another

DATA = Path(__file__).parents[2] / "shared" / "data"
MOONCAKE = DATA / "mooncake" / "conversation_trace.jsonl"

recorded = pytest.mark.skipif(not DATA.is_dir(), reason=f"no recorded traces in {DATA}")


def prompts(*ids: list[int], block: int = 4) -> list[Request]:
    """One request a second, of whole blocks."""
    return [
        Request(second, block * len(each), 3, block, np.array(each, np.int64))
        for second, each in enumerate(ids)
    ]


# --- the recorded hour ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hour() -> list[Request]:
    return list(read_trace(MOONCAKE))


@recorded
@pytest.mark.parametrize(
    ("num_pages", "hits", "rate", "bound"),
    [
        (1_953, 15_370, 0.0533, 0.2527),
        (5_859, 39_258, 0.1361, 0.3532),
        (19_531, 82_273, 0.2852, 0.3664),
        (182_790, 105_710, 0.3664, 0.3664),
    ],
)
def test_the_hour_has_the_published_hit_rates(
    hour: list[Request], num_pages: int, hits: int, rate: float, bound: float
) -> None:
    options = ReplayOptions("cache", num_pages, 512)
    found = replay(hour, options).prefix
    assert (found.lookup_pages, found.hit_pages) == (288_500, hits)
    assert found.hit_rate_pages == pytest.approx(rate, abs=5e-5)
    assert found.lookup_tokens == 144_793_823
    cached = 288_500 - hits
    assert found.pages_inserted == cached
    assert found.evicted["pressure"] == max(0, cached - num_pages)
    paths = PagePaths(hour, 512)
    assert (paths.num_pages, paths.num_distinct) == (288_500, 182_790)
    assert paths.best_hits(num_pages) / 288_500 == pytest.approx(bound, abs=5e-5)


@recorded
def test_the_model_has_the_published_hit_rates(hour: list[Request]) -> None:
    assert one_after_another(hour, 5_859, 512).hits == 39_258
    assert one_after_another(hour, 182_790, 512).hits == 105_710


@recorded
@pytest.mark.parametrize("policy", REPLAY_POLICIES)
@pytest.mark.parametrize(("num_pages", "size"), [(900, 512), (2_500, 192), (500, 1024)])
def test_the_hour_goes_as_in_the_model(
    hour: list[Request], policy: str, num_pages: int, size: int
) -> None:
    begin = hour[:600]
    expected = one_after_another(begin, num_pages, size, policy)
    found = replay(begin, ReplayOptions("cache", num_pages, size, policy=policy)).prefix
    assert (found.lookup_pages, found.hit_pages) == (expected.pages, expected.hits)
    assert sum(found.evicted.values()) == expected.evicted > 0


@recorded
@pytest.mark.parametrize(("num_pages", "size"), [(4_000, 64), (20_000, 64), (9_000, 16)])
def test_agents_together_go_as_in_the_model(num_pages: int, size: int) -> None:
    requests = list(read_traces(sorted((DATA / "agents").glob("*.json"))))
    if size < 64:
        requests = requests[:100]
    expected = one_after_another(requests, num_pages, size)
    report = replay(requests, ReplayOptions("cache", num_pages, size))
    found = report.prefix
    assert (found.lookup_pages, found.hit_pages) == (expected.pages, expected.hits)
    assert sum(found.evicted.values()) == expected.evicted > 0
    assert report.requests.rejected == expected.rejected
    # The hits of an unlimited cache bound all; scopes are never mixed up.
    assert expected.hits <= PagePaths(requests, size).best_hits(10**6)


# --- knowing the future --------------------------------------------------------------------------


def best_of_all(trace: list[list[int]], room: int) -> int:
    """Return the most hits that any choice of what to keep gives: all of them are tried."""
    states: dict[frozenset[int], int] = {frozenset(): 0}
    for path in trace:
        after: dict[frozenset[int], int] = {}
        for held, hits in states.items():
            found = next((i for i, each in enumerate(path) if each not in held), len(path))
            pages = held | set(path)
            for kept in itertools.combinations(sorted(pages), min(room, len(pages))):
                state = frozenset(kept)
                after[state] = max(after.get(state, 0), hits + found)
        states = after
    return max(states.values())


@pytest.mark.parametrize("seed", range(20))
def test_clairvoyant_eviction_is_the_best_there_is(seed: int) -> None:
    draw = random.Random(seed)
    parents = {i: draw.randrange(-1, i) for i in range(8)}

    def path(node: int) -> list[int]:
        return [] if node < 0 else [*path(parents[node]), node]

    trace = [path(draw.randrange(8)) for _ in range(14)]
    for room in (1, 2, 3, 5):
        expected = best_of_all(trace, room)
        assert PagePaths(prompts(*trace), 4).best_hits(room) == expected
        # Two pages a block: twice the room holds at least as much.
        assert PagePaths(prompts(*trace), 2).best_hits(2 * room) >= 2 * expected


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6, 8, 12])
def test_pages_of_any_size_are_counted_as_one_by_one(size: int) -> None:
    draw = random.Random(size)
    stem = list(range(9))
    trace = prompts(*([*stem[: draw.randint(0, 9)], 100 + i // 2] for i in range(60)))
    whole = PagePaths(trace, size)
    # Each token a block of its own, named by what lies before it: no block is ever split.
    single = [
        Request(each.arrival, each.input_length, 0, 1, np.repeat(each.block_ids, 4) * 4 + offsets)
        for each in trace
        if each.block_ids is not None
        for offsets in [np.tile(np.arange(4), len(each.block_ids))]
    ]
    other = PagePaths(single, size)
    assert whole.num_pages == other.num_pages
    assert whole.num_distinct == other.num_distinct
    for room in (1, 4, 9, 20, 1_000):
        assert whole.best_hits(room) == other.best_hits(room)


# --- sweeps --------------------------------------------------------------------------------------


TRACE = prompts([1, 2, 3], [1, 2, 4], [5, 6], [1, 2, 3], [7], [1, 2, 4], [5, 6, 8])


def test_a_sweep_is_a_replay_for_each_policy_and_size() -> None:
    found = run_sweep(TRACE, [6, 3], ["lru", "mru"], trace="a trace")
    assert (found.trace, found.page_size, found.sizes) == ("a trace", 4, [3, 6])
    assert (found.requests, found.lookup_pages, found.distinct_pages) == (7, 18, 8)
    assert found.policies == ["lru", "mru", "clairvoyant"]
    assert [(each.policy, each.num_pages) for each in found.points] == [
        (policy, size) for policy in found.policies for size in (3, 6)
    ]
    for point in found.points[:4]:
        options = ReplayOptions("cache", point.num_pages, 4, policy=point.policy)
        alone = replay(TRACE, options).prefix
        assert (point.hit_pages, point.hit_rate) == (alone.hit_pages, alone.hit_rate_pages)
    for policy in ("lru", "mru"):
        pairs = zip(found.curve(policy), found.curve("clairvoyant"), strict=True)
        assert all(point.hit_rate <= bound.hit_rate for point, bound in pairs)
    assert found.unlimited == pytest.approx(10 / 18)


def test_sizes_double_up_to_every_distinct_page() -> None:
    found = run_sweep(TRACE, policies=["lru"], page_size=2)
    assert found.sizes == [1, 2, 4, 8, 16]
    top = found.curve("lru")[-1]
    assert top.hit_rate == found.unlimited == found.curve("clairvoyant")[-1].hit_rate
    assert [each.rejected for each in found.curve("lru")] == [7, 6, 5, 0, 0]


@pytest.mark.parametrize("trace", [[], [Request(0, 40, 3), Request(1, 0, 3)]])
def test_traffic_that_shares_nothing(
    trace: list[Request], capsys: pytest.CaptureFixture[str]
) -> None:
    found = run_sweep(trace, policies=["lru"])
    assert found.page_size == 16
    assert {each.hit_pages for each in found.points} == {0}
    json.loads(found.to_json())
    print_sweep(found)
    assert "0.00%" in capsys.readouterr().out


def test_a_table_of_sizes_in_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    print_sweep(run_sweep(TRACE, [3, 60, 1_953, 20_000], ["lru"], page_size=512))
    out = capsys.readouterr().out
    for text in ("1.54 k", "30.7 k", "1 M", "10.2 M", "clairvoyant"):
        assert text in out


def test_a_stopped_sweep_keeps_what_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    steps = iter(range(100))
    found = run_sweep(TRACE, [3, 6], ["lru", "mru"], stop=lambda: next(steps) == 16)
    assert found.interrupted
    assert [(each.policy, each.num_pages) for each in found.points] == [("lru", 3), ("lru", 6)]
    print_sweep(found)
    out = capsys.readouterr().out
    assert "INTERRUPTED" in out
    assert "-" in out


def test_a_sweep_says_how_far_it_is() -> None:
    said: list[tuple[str, float]] = []
    run_sweep(TRACE, [3, 6], ["lru"], watch=lambda *now: said.append(now))
    assert [text for text, _ in said] == ["lru, 3 pages", "lru, 6 pages"]
    assert all(0 <= share <= 1 for _, share in said)


@pytest.mark.parametrize(
    ("sizes", "policies", "argument"),
    [
        ([0], ["lru"], "num_pages"),
        ([4, True], ["lru"], "num_pages"),
        ([2**31], ["lru"], "num_pages"),
        ([4, 4], ["lru"], "sizes"),
        ([], ["lru"], "sizes"),
        ([4], [], "policies"),
        ([4], ["lru", "lru"], "policies"),
        ([4], ["best"], "policies"),
        ([4], ["none"], "policies"),
        ([4], ["priority"], "policies"),
    ],
)
def test_sweeps_that_make_no_sense_are_refused(
    sizes: list[int], policies: list[str], argument: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        run_sweep(TRACE, sizes, policies)
    assert caught.value.argument == argument


def test_the_sweep_as_json(tmp_path: Path) -> None:
    found = run_sweep(TRACE, [3, 6], ["lru"], trace="a trace")
    path = tmp_path / "sweep.json"
    found.save(path)
    assert list(tmp_path.iterdir()) == [path]
    figures = json.loads(path.read_text())
    assert figures["schema"] == "jitalloc-sweep/1"
    assert figures["sizes"] == [3, 6]
    assert figures["points"]["policy"] == ["lru", "lru", "clairvoyant", "clairvoyant"]
    assert figures["points"]["hit_rate"] == [each.hit_rate for each in found.points]
    assert set(figures["points"]) == {
        *("policy", "num_pages", "hit_rate", "hit_pages", "rejected", "seconds")
    }


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
@pytest.mark.parametrize("sizes", [[6], [1, 2, 3, 4, 5, 6, 7, 8]])
def test_the_curves_are_drawn(sizes: list[int], suffix: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / f"picture.{suffix}"
    save_curves(run_sweep(TRACE, sizes), path)
    begins = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
    assert path.read_bytes().startswith(begins[suffix])
    if suffix == "svg":
        assert "clairvoyant -->" in path.read_text()  # text is drawn as shapes, and named


def test_curves_of_nothing_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    save_curves(run_sweep([], policies=["lru"]), tmp_path / "empty.png")
    stopped = run_sweep(TRACE, stop=lambda: True)
    assert stopped.points == []
    save_curves(stopped, tmp_path / "stopped.png")
