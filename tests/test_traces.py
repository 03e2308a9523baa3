"""The trace readers: facts of the recorded traces, and what malformed ones are told."""

from __future__ import annotations

import gzip
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from jitalloc.errors import TraceError
from jitalloc.replay import Request, read_trace, read_traces
from jitalloc.replay.lines import MAX_LINE

DATA = Path(__file__).parents[2] / "shared" / "data"

recorded = pytest.mark.skipif(not DATA.is_dir(), reason=f"no recorded traces in {DATA}")

MOONCAKE = '{"timestamp": %s, "input_length": %s, "output_length": %s, "hash_ids": %s}\n'
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def write(folder: Path, content: str | bytes, name: str = "trace") -> str:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def session(*requests: object, block_size: object = 4) -> str:
    return json.dumps({"id": "s", "block_size": block_size, "requests": requests}, indent=1)


def turn(t: float, tokens: int, ids: list[int], **more: object) -> dict[str, object]:
    return {"t": t, "type": "n", "in": tokens, "out": 5, "hash_ids": ids, **more}


def lengths(requests: list[Request]) -> tuple[int, int, int]:
    return (
        len(requests),
        sum(each.input_length for each in requests),
        sum(each.output_length for each in requests),
    )


def prefix_hits(requests: list[Request]) -> tuple[int, int, int]:
    """Return blocks, distinct blocks and prefix hits in an unlimited cache, in file order."""
    seen: set[int] = set()
    blocks = hits = 0
    for request in requests:
        assert request.block_ids is not None
        ids = request.block_ids.tolist()
        blocks += len(ids)
        matched = next((i for i, each in enumerate(ids) if each not in seen), len(ids))
        hits += matched
        seen.update(ids)
    return blocks, len(seen), hits


@recorded
def test_mooncake_hour_has_the_published_facts() -> None:
    requests = list(read_trace(DATA / "mooncake" / "conversation_trace.jsonl"))
    assert lengths(requests) == (12_031, 144_793_823, 4_122_048)
    assert prefix_hits(requests) == (288_500, 182_790, 105_710)
    assert requests[-1].arrival == pytest.approx(3536.999)
    assert {request.block_size for request in requests} == {512}


@recorded
def test_azure_hour_has_the_published_facts() -> None:
    requests = list(read_trace(DATA / "azure" / "AzureLLMInferenceTrace_conv.csv"))
    assert lengths(requests) == (19_366, 22_361_870, 4_088_665)
    assert all(request.block_ids is None for request in requests)
    assert requests[1].arrival == pytest.approx(4.314579, abs=1e-7)
    assert requests[-1].arrival == pytest.approx(3501.721937, abs=1e-7)


@recorded
def test_agent_sessions_add_up_to_the_totals_they_state() -> None:
    files = sorted((DATA / "agents").glob("*.json"))
    assert len(files) == 10
    for file in files:
        totals = json.loads(file.read_text())["totals"]["combined_tokens"]
        requests = list(read_trace(file))
        assert lengths(requests)[1:] == (totals["input"], totals["output"]), file.name
        arrivals = [request.arrival for request in requests]
        assert arrivals == sorted(arrivals), file.name


@recorded
def test_agent_sessions_together_are_merged_by_time_with_a_scope_each() -> None:
    files = sorted((DATA / "agents").glob("*.json"))
    merged = list(read_traces(files))
    assert len(merged) == sum(len(list(read_trace(file))) for file in files) == 328
    assert {request.scope for request in merged} == set(range(10))
    arrivals = [request.arrival for request in merged]
    assert arrivals == sorted(arrivals)
    assert [request.scope for request in merged[:10]] == list(range(10))  # all begin at 0


def test_mooncake_record_by_record(tmp_path: Path) -> None:
    text = MOONCAKE % (2000, 513, 7, "[4, 9]") + "\n" + MOONCAKE % (2500.5, 0, 0, "[]")
    first, second = read_trace(write(tmp_path, "\ufeff" + text.replace("\n", "\r\n")[:-2]), 3)
    assert (first.arrival, first.input_length, first.output_length) == (0.0, 513, 7)
    assert (first.block_size, first.scope) == (512, 3)
    assert first.block_ids is not None
    assert first.block_ids.dtype == np.int64
    assert first.block_ids.tolist() == [4, 9]
    assert second.arrival == pytest.approx(0.5005)
    assert (second.input_length, second.output_length) == (0, 0)


def test_azure_takes_other_columns_zones_and_digits(tmp_path: Path) -> None:
    rows = (
        '"ContextTokens","Model","TIMESTAMP","GeneratedTokens"\r\n'
        '10,"a,b",2024-05-10 23:59:59.9999999+00:00,1\r\n'
        "\r\n"
        "20,c,2024-05-11 00:00:00+00:00,2\r\n"
        "30,c,2024-05-11 02:00:01.5+02:00,3"
    )
    requests = list(read_trace(write(tmp_path, rows)))
    assert [request.input_length for request in requests] == [10, 20, 30]
    assert [request.output_length for request in requests] == [1, 2, 3]
    arrivals = [request.arrival for request in requests]
    assert arrivals == pytest.approx([0, 1e-7, 1.5000001], abs=1e-9)


def test_subagents_count_from_their_entry_and_share_its_ids(tmp_path: Path) -> None:
    inner = {"t": 1.5, "type": "subagent", "requests": [turn(0.25, 4, [9])]}
    nested = {"t": 10, "type": "subagent", "requests": [turn(0, 8, [1, 2]), inner]}
    text = session(turn(5, 9, [1, 2]), nested, turn(11, 3, [], type="s"))
    found = list(read_trace(write(tmp_path, text), scope=1))
    assert [(each.arrival, each.input_length) for each in found] == [
        (0.0, 9),
        (5.0, 8),
        (6.0, 3),
        (6.75, 4),
    ]
    assert [each.block_ids.tolist() for each in found if each.block_ids is not None] == [
        [1, 2],
        [1, 2],
        [],
        [9],
    ]
    assert {(each.block_size, each.scope) for each in found} == {(4, 1)}


def test_several_formats_are_merged_each_from_its_own_start(tmp_path: Path) -> None:
    a = write(tmp_path, MOONCAKE % (9000, 1, 1, "[0]") + MOONCAKE % (11000, 2, 1, "[0]"), "a")
    b = write(tmp_path, AZURE + "2023-11-16 18:00:00.0,3,1\n2023-11-16 18:00:01.5000000,4,1\n", "b")
    merged = [(each.arrival, each.input_length, each.scope) for each in read_traces([a, b])]
    assert merged == [(0, 1, 0), (0, 3, 1), (1.5, 4, 1), (2, 2, 0)]


def test_a_pipe_can_be_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    lines = [MOONCAKE % (i, 600, 1, "[0, 1]") for i in range(5_000)]
    writer = threading.Thread(target=pipe.write_text, args=("".join(lines),))
    writer.start()
    assert sum(1 for _ in read_trace(pipe)) == 5_000
    writer.join()


GOOD = MOONCAKE % (5, 1, 1, "[0]")
STAMP = "2023-11-16 18:15:46.6805900"

MALFORMED: dict[str, tuple[str | bytes, int, str]] = {
    "no known format": ("hello\n", 1, "expected a Mooncake record"),
    "json of another kind": ('{"a": 1}\n', 1, "expected a Mooncake record"),
    "csv with other columns": ("a,b\n1,2\n", 1, "CSV header TIMESTAMP,ContextTokens"),
    "binary": (b"\x7fELF\0\0\0", 1, "binary data"),
    "gzip": (gzip.compress(GOOD.encode()), 1, "gzip"),
    "utf-16": (GOOD.encode("utf-16"), 1, "binary data"),
    "no hash_ids": (
        GOOD + '{"timestamp": 6, "input_length": 1, "output_length": 1}',
        2,
        "missing required field `hash_ids`",
    ),
    "negative length": (GOOD + MOONCAKE % (6, -1, 1, "[]"), 2, "input_length: Expected `int` >= 0"),
    "float length": (
        MOONCAKE % (6, 1, 1.5, "[0]"),
        1,
        "output_length: Expected `int`, got `float`",
    ),
    "bool length": (MOONCAKE % (6, "true", 1, "[0]"), 1, "input_length: Expected `int`"),
    "string length": (GOOD + "\n" + MOONCAKE % (6, '"1"', 1, "[0]"), 3, "got `str`"),
    "huge length": (
        MOONCAKE % (6, 2**31, 1, "[0]"),
        1,
        "input_length: Expected `int` <= 2147483647",
    ),
    "negative time": (MOONCAKE % (-6, 1, 1, "[0]"), 1, "timestamp: Expected `float` >= 0"),
    "infinite time": (MOONCAKE % ("1e999", 1, 1, "[0]"), 1, "timestamp: Number out of range"),
    "time goes back": (GOOD + MOONCAKE % (4, 1, 1, "[0]"), 2, "timestamp goes back in time: 4.0"),
    "too few ids": (MOONCAKE % (6, 513, 1, "[1]"), 1, "1 hash_ids, but 2 blocks of 512 tokens"),
    "too many ids": (MOONCAKE % (6, 512, 1, "[1, 2]"), 1, "2 hash_ids, but 1 blocks"),
    "negative id": (MOONCAKE % (6, 1, 1, "[-3]"), 1, "hash_ids[0]: Expected `int` >= 0"),
    "id past int64": (MOONCAKE % (6, 1, 1, f"[{2**63}]"), 1, "hash_ids[0]: Expected `int` <="),
    "cut in the middle": (GOOD + GOOD[:40], 2, "JSON ends too early"),
    "not json": (GOOD + "{timestamp}\n", 2, "JSON is malformed"),
    "two records a line": (GOOD.strip() + GOOD, 1, "trailing characters"),
    "a list": (GOOD + "[1]\n", 2, "Expected `object`, got `array`"),
    "nested too deep": (
        GOOD + '{"x": ' + "[" * 100_000 + "]" * 100_000 + "}",
        2,
        "nested too deep",
    ),
    "csv without a stamp": (AZURE + "yesterday,1,1\n", 2, "TIMESTAMP: expected a time like"),
    "csv with month 13": (AZURE + "2023-13-16 18:15:46.0,1,1\n", 2, "got '2023-13-16"),
    "csv after blank lines": (AZURE + f"\n{STAMP},1,1\n \t\r\n{STAMP},x,1\n", 5, "got 'x'"),
    "csv negative": (AZURE + f"{STAMP},-1,1\n", 2, "ContextTokens: expected a whole number"),
    "csv float": (AZURE + f"{STAMP},1,1\n{STAMP},1,2.5\n", 3, "GeneratedTokens: expected a whole"),
    "csv underscore": (AZURE + f"{STAMP},1_0,1\n", 2, "got '1_0'"),
    "csv other digits": (AZURE + f"{STAMP},\u0663,1\n", 2, "ContextTokens: expected"),
    "csv huge": (AZURE + f"{STAMP},{2**31},1\n", 2, "0 .. 2147483647"),
    "csv empty field": (AZURE + f"{STAMP},,1\n", 2, "got ''"),
    "csv short row": (AZURE + f"{STAMP},1\n", 2, "expected 3 fields, got 2"),
    "csv long row": (AZURE + f"{STAMP},1,2,3\n", 2, "expected 3 fields, got 4"),
    "csv open quote": (AZURE + f'"{STAMP},1,2\n', 2, "malformed CSV"),
    "csv not utf-8": (AZURE.encode() + b"\xff\xfe,1,2\n", 2, "not UTF-8"),
    "csv goes back": (
        AZURE + f"{STAMP},1,1\n2023-11-16 18:15:46.6805899,1,1\n",
        3,
        "TIMESTAMP goes back in time",
    ),
    "session cut": (session(turn(0, 4, [1]))[:60], 6, "JSON ends too early"),
    "session not json": ('{"requests": [\n}', 2, "JSON is malformed"),
    "session without size": ('{"requests": []}', 1, "missing required field `block_size`"),
    "session of size 0": (session(block_size=0), 1, "block_size: Expected `int` >= 1"),
    "session field": (
        session(turn(0, 4, [1]), turn(1, -4, [1])),
        14,
        "requests[1].in: Expected `int` >= 0",
    ),
    "session field missing": (
        session({"t": 0, "type": "n"}),
        5,
        "requests[0]: Object missing required field `in`",
    ),
    "session ids": (
        session(turn(0, 9, [1, 2, 3])),
        5,
        "requests[0]: 3 hash_ids, but 2 whole blocks of 4 tokens in 9",
    ),
    "session goes back": (
        session(turn(3, 4, [1]), turn(1, 4, [1])),
        14,
        "requests[1].t goes back in time",
    ),
    "subagent without requests": (
        session({"t": 0, "type": "subagent"}),
        5,
        "requests[0]: Object missing required field `requests`",
    ),
    "inside a subagent": (
        session({"t": 0, "type": "subagent", "requests": [turn(0, 4, [1]), turn(1, 4, [])]}),
        18,
        "requests[0].requests[1]: 0 hash_ids, but 1 whole blocks",
    ),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_traces_name_file_line_and_what_was_expected(case: str, tmp_path: Path) -> None:
    content, line, expected = MALFORMED[case]
    path = write(tmp_path, content)
    with pytest.raises(TraceError) as caught:
        list(read_trace(path))
    message = str(caught.value)
    assert message.startswith(f"{path}, line {line}: ")
    assert expected in message
    assert "\n" not in message


def test_subagents_without_end_are_refused(tmp_path: Path) -> None:
    entry: object = turn(0, 4, [1])
    for _ in range(40):
        entry = {"t": 0, "type": "subagent", "requests": [entry]}
    with pytest.raises(TraceError, match="nested more than 32 deep"):
        list(read_trace(write(tmp_path, session(entry))))


def test_an_endless_line_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, b'{"timestamp": 0, "x": "' + b"x" * MAX_LINE)
    with pytest.raises(TraceError, match=f"line 1: longer than {MAX_LINE:,} bytes"):
        list(read_trace(path))


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda path: path.touch(), "the file is empty"),
        (lambda path: path.write_text("\n \n"), "line 1: expected a Mooncake record"),
        (lambda path: path.mkdir(), "a directory"),
        (lambda path: None, "No such file"),
        (lambda path: path.write_text(AZURE), "holds no request"),
        (lambda path: path.write_text(session()), "holds no request"),
    ],
)
def test_files_that_hold_no_trace(
    make: Callable[[Path], object], expected: str, tmp_path: Path
) -> None:
    path = tmp_path / "trace"
    make(path)
    with pytest.raises(TraceError) as caught:
        list(read_trace(path))
    assert str(caught.value).startswith(str(path))
    assert expected in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    Path(path).chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(TraceError, match="Permission denied"):
        list(read_trace(path))


def test_requests_before_a_broken_line_come_first(tmp_path: Path) -> None:
    requests = read_trace(write(tmp_path, GOOD + "broken"))
    assert next(requests).input_length == 1
    with pytest.raises(TraceError, match="line 2"):
        next(requests)
