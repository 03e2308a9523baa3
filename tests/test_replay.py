"""The simulator: hand-worked cases, and a slow model beside it."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jitalloc.errors import CorruptState, InvalidArgument
from jitalloc.replay import ReplayOptions, Request, generate, replay
from jitalloc.replay.meter import Meter
from jitalloc.replay.options import REPLAY_POLICIES
from jitalloc.replay.timeline import MOST_SAMPLES
from tests.oracle_cache import one_after_another
from tests.oracle_replay import requests, run, serve, small

ROOT = Path(__file__).parents[1]


# --- by hand -------------------------------------------------------------------------------


def test_one_request_reads_once_and_decodes_once_a_step() -> None:
    report, meter = run(requests((0, 5, 3)), small())
    assert report.allocator.steps == 4  # one to read, three to decode
    assert report.allocator.calls == 6  # allocate, slots, three appends, free
    assert report.virtual_seconds == 4
    assert (report.tokens.prompt, report.tokens.decode, report.tokens.recomputed) == (5, 3, 0)
    assert (report.requests.seen, report.requests.finished, report.requests.rejected) == (1, 1, 0)
    assert report.pool.pages_allocated == report.pool.pages_peak == 2
    assert report.pool.held_mean == report.pool.held_peak == 0.5
    assert report.pool.runs_per_sequence == 1
    assert (meter.pool.num_used, len(meter.cache)) == (0, 0)


def test_long_prompts_are_read_in_chunks_beside_decoding() -> None:
    # Step 1: A reads 1, B 7; then A decodes 1 beside 7 and 6 tokens of B; B decodes in step 4.
    trace = requests((0, 1, 5), (0, 20, 1))
    options = small(num_pages=10, step_ms=0.0, token_us=1e6)
    report, _ = run(trace, options)
    assert report.allocator.steps == 6
    assert report.virtual_seconds == 27  # a second a token: 8 + 8 + 7 + 2 + 1 + 1


def test_what_can_never_fit_is_rejected_and_the_rest_is_served() -> None:
    trace = requests((0, 16, 1), (0, 17, 0), (0, 16, 0), (0, 15, 1), (0, 2**31 - 1, 2**31 - 1))
    report, _ = run(trace, small())
    assert (report.requests.rejected, report.requests.finished) == (3, 2)
    assert (report.tokens.prompt, report.tokens.decode) == (31, 1)
    report, _ = run(requests((0, 8, 2), (0, 8, 1)), small(max_length=9))
    assert (report.requests.rejected, report.requests.finished) == (1, 1)


def test_exhaustion_sends_the_newest_sequence_back_to_be_computed_again() -> None:
    # Both read in step 1 and fill all four pages by step 5. In step 6 each needs a page: B goes
    # back with 4 tokens read and 4 decoded. A ends with step 9, B reads 8 in step 10.
    report, meter = run(requests((0, 4, 8), (0, 4, 8)), small())
    assert report.requests.preemptions == 1
    assert report.allocator.steps == 14
    assert (report.tokens.prompt, report.tokens.decode, report.tokens.recomputed) == (8, 16, 8)
    assert report.pool.held_mean == pytest.approx((2 + 4 * 4 + 4 * 3 + 2 + 4 * 3) / (14 * 4))
    assert report.pool.held_peak == 1
    assert report.requests.finished == 2
    assert meter.pool.num_used == 0


def test_a_sequence_sent_back_while_reading_reads_again_what_it_had() -> None:
    # A (prompt 3) is read by step 2 and needs its third page in step 8, when 6 of C's 8 are read.
    options = small(step_tokens=2, max_batch=2)
    report, _ = run(requests((0, 3, 6), (0, 8, 1)), options)
    assert report.requests.preemptions == 1
    assert (report.tokens.prompt, report.tokens.decode, report.tokens.recomputed) == (11, 7, 6)
    assert report.allocator.steps == 13


def test_runs_are_counted_a_sequence() -> None:
    report, _ = run(requests((0, 8, 0), (0, 8, 0)), small(step_tokens=16))  # pages 0 1 and 2 3
    assert report.pool.runs_per_sequence == 1
    # A and B take turns: pages 0 2 and 1 3.
    report, _ = run(requests((0, 4, 4), (0, 4, 4)), small())
    assert report.pool.runs_per_sequence == 2


def test_a_prompt_is_shared_from_the_moment_it_is_read() -> None:
    # A reads 8 in step 1. B has come with it, and reads its own; C comes later and finds all
    # but the last token of its 8; D goes on where they end. Then the cache holds 3 pages.
    trace = [
        Request(at, tokens, 0, 4, np.array(ids))
        for at, tokens, ids in ((0, 8, [1, 2]), (0, 8, [1, 2]), (2, 8, [1, 2]), (3, 12, [1, 2, 3]))
    ]
    report, meter = run(trace, small(num_pages=6))
    assert (report.tokens.prompt, report.tokens.cached) == (8 + 8 + 1 + 4, 7 + 8)
    assert report.allocator.steps == 4
    assert (meter.pool.num_used, report.prefix.pages_cached) == (3, 3)
    assert report.pool.pages_peak == 4  # the duplicates of B go free when B is read


def test_what_is_sent_back_finds_what_it_left_in_the_cache() -> None:
    # As above without ids: B goes back in step 6 with 4 tokens read and 4 decoded, two pages.
    # A takes one of them, the later one; B finds the other and reads 4 again in step 10.
    trace = [Request(0, 4, 8, 4, np.array([1])), Request(0, 4, 8, 4, np.array([2]))]
    report, _ = run(trace, small())
    tokens = report.tokens
    assert (report.requests.preemptions, report.allocator.steps) == (1, 14)
    assert (tokens.prompt, tokens.cached, tokens.decode) == (8, 0, 16)
    assert (tokens.recomputed, tokens.restored) == (4, 4)
    assert report.prefix.evicted["pressure"] > 0


def test_responses_are_never_found_by_others() -> None:
    trace = [Request(50 * at, 4, 8, 4, np.array([1])) for at in range(3)]
    report, _ = run(trace, small(num_pages=20))
    assert (report.tokens.prompt, report.tokens.cached) == (4 + 1 + 1, 3 + 3)
    assert report.prefix.pages_cached == 1 + 3 * 2


def test_at_most_max_batch_sequences_run() -> None:
    report, _ = run(requests((0, 1, 2), (0, 1, 2)), small(max_batch=1))
    assert report.allocator.steps == 6
    report, _ = run(requests((0, 1, 2), (0, 1, 2)), small(max_batch=2))
    assert report.allocator.steps == 3


def test_the_clock_jumps_over_idle_time() -> None:
    report, _ = run(requests((0, 4, 0), (100, 4, 0)), small())
    assert report.allocator.steps == 2
    assert report.virtual_seconds == 101
    assert report.pool.held_mean == pytest.approx(2 * 1 / (4 * 101))


def test_requests_of_no_tokens_pass() -> None:
    report, meter = run(requests((0, 0, 0), (0, 0, 2), (0, 3, 0)), small())
    assert report.requests.finished == 3
    assert (report.tokens.prompt, report.tokens.decode) == (3, 2)
    assert meter.pool.num_used == 0


@pytest.mark.parametrize(
    ("shape", "argument"),
    [
        ((float("nan"), 1, 1), "arrival"),
        ((float("inf"), 1, 1), "arrival"),
        ((-0.5, 1, 1), "arrival"),
        ((0, -1, 1), "input_length"),
        ((0, 1, 2**31), "output_length"),
    ],
)
def test_requests_that_cannot_be_are_refused(shape: tuple[float, int, int], argument: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Request(*shape)
    assert caught.value.argument == argument


def test_a_gap_of_ages_is_no_trouble() -> None:
    report = replay(requests((0, 4, 1), (1e18, 4, 1)), small())
    assert report.requests.finished == 2
    assert len(report.samples) <= MOST_SAMPLES


def test_no_requests_no_figures() -> None:
    report = replay([], small())
    assert report.requests.seen == report.allocator.steps == 0
    assert report.pool.held_mean == 0
    json.loads(report.to_json())


def test_cache_mode_takes_one_request_after_another() -> None:
    report, meter = run(requests((0, 5, 99), (3, 16, 0), (3, 17, 0)), small(mode="cache"))
    assert (report.requests.finished, report.requests.rejected) == (2, 1)
    assert (report.tokens.prompt, report.tokens.decode) == (21, 0)
    assert report.allocator.steps == 2
    assert report.pool.held_mean == pytest.approx((2 + 4) / 2 / 4)
    assert report.pool.pages_allocated == 6
    assert report.virtual_seconds == 3
    assert (meter.pool.num_used, len(meter.cache)) == (0, 0)


# --- against a slow model --------------------------------------------------------------------


def conversations(draw: random.Random, count: int) -> list[Request]:
    """Requests of some conversations: with block ids that repeat and grow, or without any."""
    trace, now = [], 0.0
    histories: list[list[int]] = [[i] for i in range(4)]
    number = 100
    for _ in range(count):
        now += draw.choice([0.0, 0.0, draw.expovariate(0.05)])
        if draw.random() < 0.1:
            trace.append(Request(now, draw.randint(1, 60), draw.randint(0, 40)))
            continue
        history = draw.choice(histories)
        ids = history[: draw.randint(0, len(history))] if draw.random() < 0.3 else list(history)
        for _ in range(draw.randint(0, 3)):
            ids.append(number * 2**40)
            number += 1
        histories[draw.randrange(4)] = ids
        tokens = max(0, 4 * len(ids) - draw.choice([0, 0, 1, 3]))
        if tokens > 60:
            histories[0] = [number * 2**40]
        blocks = np.array(ids[: -(-tokens // 4)], np.int64)
        scope = draw.choice([0, 0, 0, 1])
        trace.append(Request(now, tokens, draw.randint(0, 40), 4, blocks, scope))
    return trace


@pytest.mark.parametrize("policy", ["none", *REPLAY_POLICIES])
@pytest.mark.parametrize("seed", range(6))
def test_the_simulator_does_what_a_slow_model_does(policy: str, seed: int) -> None:
    draw = random.Random(seed)
    trace = conversations(draw, 200)
    page_size = draw.choice([1, 3, 4])
    options = small(
        num_pages=draw.choice([90, 130, 200]) // page_size,
        page_size=page_size,
        order=draw.choice(["sorted", "fifo", "lifo"]),
        policy=policy,
        max_batch=draw.choice([2, 9]),
        step_tokens=draw.choice([9, 30]),
        token_us=draw.choice([0.0, 2e4]),
        export=draw.choice(["none", "csr", "padded"]),
    )
    expected = serve(trace, options)
    report, meter = run(trace, options)
    assert expected.preempted > 0 or options.max_batch == 2  # the case is worth having
    assert report.allocator.steps == expected.steps
    assert report.requests.preemptions == expected.preempted
    assert report.requests.rejected == expected.rejected
    assert report.requests.finished == len(trace) - expected.rejected
    tokens = report.tokens
    assert (tokens.prompt, tokens.cached) == (expected.read, expected.found)
    assert (tokens.recomputed, tokens.restored) == (expected.again, expected.restored)
    assert tokens.decode == expected.decoded
    assert report.prefix.hit_pages == expected.hit_pages
    assert sum(report.prefix.evicted.values()) == expected.evicted
    assert report.prefix.pages_cached == expected.cached
    assert report.pool.held_peak * options.num_pages == pytest.approx(expected.peak)
    assert report.virtual_seconds == pytest.approx(expected.now)
    served = [
        each
        for each in trace
        if each.input_length + each.output_length <= options.num_pages * options.page_size
    ]
    assert tokens.prompt + tokens.cached == sum(each.input_length for each in served)
    assert tokens.decode == sum(each.output_length for each in served)
    assert (tokens.cached > 0) == (policy != "none")
    assert len(meter.cache) == 0
    assert meter.pool.num_used == expected.cached == options.num_pages - expected.free


def test_cache_mode_does_what_a_slow_model_does() -> None:
    trace = conversations(random.Random(7), 400)
    for size in (1, 2, 3, 4, 5, 8, 16):
        for policy in REPLAY_POLICIES:
            expected = one_after_another(trace, 80 // size, size, policy)
            options = small(mode="cache", num_pages=80 // size, page_size=size, policy=policy)
            report, _ = run(trace, options)
            found = report.prefix
            assert (found.lookup_pages, found.hit_pages) == (expected.pages, expected.hits)
            assert sum(found.evicted.values()) == expected.evicted > 0
            assert (found.pages_cached, report.requests.rejected) == (
                expected.cached,
                expected.rejected,
            )


# --- stopping, checking, reporting -----------------------------------------------------------


def test_a_stopped_replay_reports_what_it_has() -> None:
    steps = iter(range(100))
    report = replay(requests((0, 4, 50)), small(num_pages=20), stop=lambda: next(steps) == 9)
    assert report.interrupted
    assert report.allocator.steps == 10
    assert report.tokens.decode == 9
    assert (report.requests.finished, report.requests.unfinished) == (0, 1)
    assert report.samples[-1].running == 1
    assert report.samples[-1].held > 0


@pytest.mark.parametrize("mode", ["serve", "cache"])
def test_a_replay_ends_with_a_check_of_every_page(mode: str) -> None:
    def corrupt(meter: Meter) -> None:
        meter.pool.arrays.refcount[3] = 7

    with pytest.raises(CorruptState, match="3"):
        replay(requests((0, 4, 2)), small(mode=mode), watch=corrupt)


@pytest.mark.parametrize(
    ("settings", "argument"),
    [
        ({"mode": "fast"}, "mode"),
        ({"export": "json"}, "export"),
        ({"num_pages": 0}, "num_pages"),
        ({"page_size": True}, "page_size"),
        ({"max_batch": 2.0}, "max_batch"),
        ({"max_length": -1}, "max_length"),
        ({"limit": 0}, "limit"),
        ({"step_tokens": 100}, "step_tokens"),
        ({"step_ms": -1.0}, "step_ms"),
        ({"token_us": float("nan")}, "token_us"),
        ({"step_ms": 0.0, "token_us": 0.0}, "step_ms"),
    ],
)
def test_options_that_make_no_sense_are_named(settings: dict[str, object], argument: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        ReplayOptions(**settings)  # type: ignore[arg-type]
    assert caught.value.argument == argument


# --- generator and compiling --------------------------------------------------------------------


def test_the_generator_wants_a_finite_time() -> None:
    with pytest.raises(InvalidArgument, match="seconds"):
        next(generate(seconds=float("inf")))


def test_the_generator_repeats_itself_and_shares_prefixes() -> None:
    def facts(seed: int) -> list[tuple[float, int, int, list[int]]]:
        found = []
        for each in generate(seed, 60):
            assert each.block_ids is not None
            ids = each.block_ids.tolist()
            found.append((each.arrival, each.input_length, each.output_length, ids))
        return found

    first = facts(5)
    assert first == facts(5)
    assert first != facts(6)
    arrivals = [each[0] for each in first]
    assert arrivals[0] == 0
    assert arrivals == sorted(arrivals)
    assert arrivals[-1] < 60
    seen: set[int] = set()
    hits = 0
    for _, tokens, output, ids in first:
        assert tokens > 0
        assert output > 0
        assert len(ids) == -(-tokens // 16)
        assert len(set(ids)) == len(ids)
        hits += next((i for i, each in enumerate(ids) if each not in seen), len(ids))
        seen.update(ids)
    # System prompts alone would make 0.42; the turns of a conversation share more.
    assert hits > 0.5 * sum(len(each[3]) for each in first)


def test_prepare_compiles_all_that_a_replay_calls() -> None:
    code = """
from jitalloc._jit import JIT_DISABLED, kernels
from jitalloc.replay import ReplayOptions, Request, prepare, replay
compiled = lambda: {name for name, each in kernels().items() if each.run != each._compile_and_run}
for order in ("sorted", "fifo", "lifo"):
    prepare(ReplayOptions(order=order))
before = compiled()
trace = [Request(0, 4, 8), Request(0, 4, 8), Request(50, 4, 9)]
for order in ("sorted", "fifo", "lifo"):
    for mode, export in (("cache", "none"), ("serve", "csr"), ("serve", "padded")):
        replay(trace, ReplayOptions(mode, 4, 4, order, export=export))
assert before or JIT_DISABLED
assert compiled() == before, compiled() - before
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
