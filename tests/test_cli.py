"""The command line: as a person types it, in this process and in one of its own."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from jitalloc import cli
from jitalloc.replay.options import REPLAY_POLICIES

ROOT = Path(__file__).parents[1]
SMALL = ["--limit", "50", "--num-pages", "20000"]


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, arguments)


def figures(*arguments: str) -> Any:
    result = invoke("replay", *arguments, "--json", "-")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def spawn(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    # A test run in the background of a shell ignores Ctrl-C, and so would its children.
    code = (
        "import signal, runpy; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "runpy.run_module('jitalloc', None, '__main__')"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        **({"stderr": subprocess.PIPE} | options),
    )


def test_built_in_replay_prints_a_table() -> None:
    result = invoke("replay", *SMALL)
    assert result.exit_code == 0, result.output
    for text in (
        "generated chat, seed 0 · serve mode · 20,000 pages of 16 tokens, sorted · lru eviction",
        "finished",
        "held by sequences, mean over time",
        "hit rate by tokens",
        "time a step, 99th percentile",
        "wall time",
    ):
        assert text in result.stdout
    assert result.stderr == ""
    assert "hit" not in invoke("replay", *SMALL, "--policy", "none").stdout


def test_options_reach_the_replay() -> None:
    found = figures(
        *("--mode", "cache", "--num-pages", "5000", "--page-size", "24", "--order", "lifo"),
        *("--policy", "slru"),
        *("--max-batch", "7", "--max-length", "90000", "--step-tokens", "100", "--step-ms", "3"),
        *("--token-us", "4", "--export", "csr", "--limit", "9", "--device", "cpu", "--seed", "3"),
    )
    assert found["options"] == {
        "mode": "cache",
        "num_pages": 5000,
        "page_size": 24,
        "order": "lifo",
        "policy": "slru",
        "device": "cpu",
        "max_batch": 7,
        "max_length": 90000,
        "step_tokens": 100,
        "step_ms": 3.0,
        "token_us": 4.0,
        "export": "csr",
        "limit": 9,
    }
    assert found["trace"] == "generated chat, seed 3"
    assert found["requests"]["seen"] == 9


def test_the_same_seed_gives_the_same_figures() -> None:
    def steady(seed: str) -> list[Any]:
        found = figures(*SMALL, "--seed", seed)
        keys = ("requests", "tokens", "prefix", "pool", "samples", "virtual_seconds")
        return [found[key] for key in keys]

    assert steady("1") == steady("1")
    assert steady("1") != steady("2")


def test_json_and_picture_are_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    json_file, picture = tmp_path / "out.json", tmp_path / "out.png"
    result = invoke("replay", *SMALL, "--json", str(json_file), "--plot", str(picture))
    assert result.exit_code == 0, result.output
    assert json.loads(json_file.read_text())["requests"]["finished"] == 50
    assert picture.stat().st_size > 10_000
    assert f"wrote {json_file}" in result.stderr
    assert f"wrote {picture}" in result.stderr


def test_several_traces_have_one_name(tmp_path: Path) -> None:
    paths = [tmp_path / "a.csv", tmp_path / "b.csv"]
    for path in paths:
        path.write_text(
            "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:00:00.0000000,30,4\n"
        )
    found = figures(*map(str, paths))
    assert found["trace"] == "a.csv and 1 more"
    assert found["tokens"] == {
        "prompt": 60,
        "cached": 0,
        "decode": 8,
        "recomputed": 0,
        "restored": 0,
    }


@pytest.mark.parametrize("command", ["replay", "sweep"])
def test_a_bar_shows_on_a_terminal(command: str) -> None:
    leader, follower = pty.openpty()
    limit = ("--limit", "400") if command == "sweep" else ()
    child = spawn(command, *limit, stderr=follower)
    os.close(follower)
    shown = bytearray()

    def watch() -> None:
        with suppress(OSError):  # how Linux says that the other end is closed
            while part := os.read(leader, 1 << 16):
                shown.extend(part)

    watcher = threading.Thread(target=watch)
    watcher.start()
    stdout, _ = child.communicate(timeout=120)
    watcher.join(timeout=10)
    os.close(leader)
    assert child.returncode == 0
    told = {
        "replay": (b"reading the trace", b"replaying", b"s of virtual time"),
        "sweep": (b"sweeping", b"lru, ", b"%"),
    }
    for text in told[command]:
        assert text in shown
    assert stdout.startswith("generated chat, seed 0")


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["replay", "no-such-file"], 1, "no-such-file: No such file"),
        (["replay", "--num-pages", "0"], 2, "0 is not in the range"),
        (["replay", "--mode", "fast"], 2, "'fast' is not one of"),
        (["replay", "--device", "tpu"], 2, "'tpu' is not"),
        (["replay", "--policy", "priority"], 2, "'priority' is not one of"),
        (["replay", "--limit", "-1"], 2, "-1 is not in the range"),
        (["replay", "--step-tokens", "9"], 2, "a full batch decodes 256 tokens a step"),
        (["replay", "--step-ms", "0", "--token-us", "0"], 2, "a step must take some time"),
        (["replay", "--plot", "out.gif"], 2, "must end in .png, .svg, .pdf"),
        (["replay", "--json", "/no/such/folder/out.json"], 2, "cannot write into"),
        (["replay", "--seed", "1", "trace"], 2, "--seed is for generated traffic"),
        (["sweep", "no-such-file"], 1, "no-such-file: No such file"),
        (["sweep", "--num-pages", "100,,200"], 2, "'' is not a valid integer"),
        (["sweep", "--num-pages", "100,a"], 2, "'a' is not a valid integer"),
        (["sweep", "--num-pages", "0"], 2, "0 is not in the range"),
        (["sweep", "--num-pages", "1e3"], 2, "'1e3' is not a valid integer"),
        (["sweep", "--num-pages", ""], 2, "'' is not a valid integer"),
        (["sweep", "--policy", "lru,best"], 2, "'best' is not one of"),
        (["sweep", "--policy", "none"], 2, "'none' is not one of"),
        (["sweep", "--page-size", "0"], 2, "0 is not in the range"),
        (["sweep", "--plot", "out.gif"], 2, "must end in .png, .svg, .pdf"),
        (["sweep", "--seed", "1", "trace"], 2, "--seed is for generated traffic"),
        (["reply"], 2, "No such command 'reply'"),
    ],
)
def test_mistakes_end_with_one_clean_line(arguments: list[str], code: int, text: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == code
    assert text in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.strip().splitlines()[-1].startswith("Error: ")
    assert result.stdout == ""


def test_a_broken_trace_is_one_line_on_standard_error(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    line = '{"timestamp": 0, "input_length": 9, "output_length": 2, "hash_ids": [0]}\n'
    trace.write_text(line + line.replace("[0]", "[]"))
    result = invoke("replay", str(trace))
    assert result.exit_code == 1
    assert result.stderr == (
        f"Error: {trace}, line 2: 0 hash_ids, but 1 blocks of 512 tokens in input_length 9\n"
    )


def test_a_gpu_without_its_packages_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    result = invoke("replay", "--device", "cuda")
    assert result.exit_code == 1
    assert result.stderr.startswith(
        "Error: device = 'cuda': needs the packages of jitalloc[cuda12]"
    )
    assert result.stderr.count("\n") == 1


def test_a_picture_without_matplotlib_is_refused_before_the_replay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = invoke("replay", "--plot", str(tmp_path / "out.png"))
    assert result.exit_code == 1
    assert result.stderr == "Error: a plot needs matplotlib: pip install 'jitalloc[plot]'\n"
    assert result.stdout == ""


def test_a_sweep_prints_a_table(tmp_path: Path) -> None:
    arguments = ("sweep", "--limit", "60", "--num-pages", "900, 3000,900", "--policy", "lru,mru")
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    assert "generated chat, seed 0 · hit rate over" in result.stdout
    for text in ("pages", "tokens", "lru", "mru", "clairvoyant", "900", "3,000", "48 k"):
        assert text in result.stdout
    assert "fifo" not in result.stdout
    assert result.stderr == ""
    found = json.loads(invoke(*arguments, "--json", "-").stdout)
    assert (found["sizes"], found["page_size"], found["requests"]) == ([900, 3000], 16, 60)
    assert found["policies"] == ["lru", "mru", "clairvoyant"]


def test_a_sweep_takes_all_policies_and_its_own_sizes(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    json_file, picture = tmp_path / "out.json", tmp_path / "out.png"
    trace = tmp_path / "trace"
    line = '{"timestamp": %d, "input_length": 1100, "output_length": 2, "hash_ids": [0, %d, %d]}\n'
    trace.write_text("".join(line % (i, i // 3, i + 50) for i in range(30)))
    result = invoke("sweep", str(trace), "--json", str(json_file), "--plot", str(picture))
    assert result.exit_code == 0, result.output
    found = json.loads(json_file.read_text())
    assert found["trace"] == "trace"
    assert found["page_size"] == 512
    assert found["policies"] == [*REPLAY_POLICIES, "clairvoyant"]
    assert found["sizes"][-1] == found["distinct_pages"]
    assert picture.stat().st_size > 10_000
    assert f"wrote {json_file}" in result.stderr


def test_the_policies_of_the_command_line_are_those_of_the_replay() -> None:
    assert cli.REPLAY_POLICIES == REPLAY_POLICIES


def test_an_empty_trace_is_said_in_one_line(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    trace.touch()
    for command in ("replay", "sweep"):
        result = invoke(command, str(trace))
        assert result.exit_code == 1
        assert result.stderr == f"Error: {trace}: the file is empty\n"


def test_info_tells_versions_devices_and_cache_without_cuda() -> None:
    code = (
        "import sys; from jitalloc import cli; cli.main(['info'], standalone_mode=False); "
        "assert not {'cupy', 'numba.cuda'} & set(sys.modules), 'CUDA was imported'"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    labels = [line.split("  ")[0] for line in done.stdout.splitlines()]
    for label in ("jitalloc", "python", "numpy", "numba", "cpu", "gpu", "cuda packages"):
        assert label in labels
    assert "kernel cache" in done.stdout


def test_version_and_help() -> None:
    result = invoke("--version")
    assert result.exit_code == 0
    assert result.stdout.startswith("jitalloc ")
    assert "replay" in invoke("-h").stdout
    shown = invoke("replay", "-h").stdout
    for option in ("--mode", "--num-pages", "--page-size", "--order", "--max-batch", "--device"):
        assert option in shown


def test_warmup_compiles_every_kernel() -> None:
    result = invoke("warmup")
    assert result.exit_code == 0
    assert "kernels ready in" in result.stdout


FEEDER = """
import itertools, pathlib, sys
line = '{"timestamp": %d, "input_length": 600, "output_length": 90, "hash_ids": [1, 2]}'
with open(sys.argv[1], "w") as pipe:
    for number in itertools.count():
        print(line % (100 * number), file=pipe)
        if number == 5_000:
            pathlib.Path(sys.argv[2]).touch()
"""


def wait_for(happened: Callable[[], object], child: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 120  # kernels may have to be compiled first
    while not happened():
        assert child.poll() is None, child.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("mode", ["serve", "cache"])
def test_ctrl_c_ends_cleanly_with_the_report_so_far(mode: str, tmp_path: Path) -> None:
    # A trace without end, fed through a pipe, which holds far less than 5,000 lines.
    pipe, going, out = tmp_path / "trace", tmp_path / "going", tmp_path / "out.json"
    os.mkfifo(pipe)
    child = spawn("replay", str(pipe), "--mode", mode, "--json", str(out))
    feeder = subprocess.Popen(
        [sys.executable, "-c", FEEDER, str(pipe), str(going)], stderr=subprocess.DEVNULL
    )
    try:
        wait_for(going.exists, child)
        child.send_signal(signal.SIGINT)
        stdout, stderr = child.communicate(timeout=30)
    finally:
        child.kill()
        feeder.kill()
        feeder.wait()
    assert child.returncode == 130, stderr
    assert "INTERRUPTED" in stdout
    assert "Traceback" not in stderr
    assert "interrupted: the figures hold up to that point" in stderr
    found = json.loads(out.read_text())
    assert found["interrupted"] is True
    assert found["requests"]["finished"] > 3_000


def test_a_second_ctrl_c_ends_a_replay_that_waits_for_its_trace(tmp_path: Path) -> None:
    pipe = tmp_path / "trace"
    os.mkfifo(pipe)
    child = spawn("replay", str(pipe))

    def opened() -> bool:
        with suppress(OSError):  # nobody reads it yet
            writers.append(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
        return bool(writers)

    writers: list[int] = []
    try:
        wait_for(opened, child)
        child.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert child.poll() is None
        child.send_signal(signal.SIGINT)
        stdout, stderr = child.communicate(timeout=30)
    finally:
        child.kill()
        for writer in writers:
            os.close(writer)
    assert child.returncode == 130, stderr
    assert (stdout, stderr) == ("", "interrupted\n")
