"""Run the sections one after the other, or one of them, or build the images."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from tests.gpu_first import images
from tests.gpu_first.sections import SECTIONS
from tests.ptx import install

ROOT = Path(__file__).parents[2]


def run_section(name: str, seconds: float, results: Path, built: Path | None) -> str:
    """Run a section in a process of its own; its output goes to a file. Return how it ended."""
    command = [sys.executable, "-m", "tests.gpu_first", "section", name, "--results", str(results)]
    if built is not None:
        command += ["--images", str(built)]
    with (results / f"{name}.txt").open("w") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
            return f"out of time after {seconds:.0f} s"
    return "ok" if code == 0 else f"failed ({code})"


def run_all(results: Path, built: Path | None, total: float, only: list[str]) -> int:
    """Run the sections in the order of their value within `total` seconds; print a table."""
    results.mkdir(parents=True, exist_ok=True)
    begin, ended = time.monotonic(), {}
    for name, section in SECTIONS.items():
        if only and name not in only:
            continue
        left = total - (time.monotonic() - begin)
        if left < 5:
            ended[name] = {"end": "not begun: no time left", "seconds": 0.0}
            continue
        start = time.monotonic()
        end = run_section(name, min(section.seconds, left), results, built)
        ended[name] = {"end": end, "seconds": round(time.monotonic() - start, 1)}
        print(f"{name:12s} {ended[name]['seconds']:6.1f} s  {end}", flush=True)
        if end != "ok":
            print((results / f"{name}.txt").read_text()[-1_500:], flush=True)
    facts = {"commit": images.commit(), "sections": ended}
    (results / "summary.json").write_text(json.dumps(facts, indent=1))
    return int(any(each["end"] != "ok" for each in ended.values()))


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu_first", description=__doc__)
    kinds = parser.add_subparsers(dest="kind")
    whole = kinds.add_parser("run", help="all sections (the default)")
    for each in (parser, whole):
        each.add_argument("--results", type=Path, default=Path("gpu-results"))
        each.add_argument("--images", type=Path, help="folder of images built beforehand")
        each.add_argument("--seconds", type=float, default=450.0, help="for everything")
        each.add_argument("--only", nargs="*", default=[], choices=[*SECTIONS])
    builder = kinds.add_parser("build", help="compile all kernels into a folder; needs no GPU")
    builder.add_argument("folder", type=Path)
    builder.add_argument("--capability", default="9.0")
    one = kinds.add_parser("section", help="one section, in this process")
    one.add_argument("name", choices=[*SECTIONS])
    one.add_argument("--results", type=Path, required=True)
    one.add_argument("--images", type=Path)
    given = parser.parse_args()
    if given.kind == "build":
        major, minor = given.capability.split(".")
        print(images.build(given.folder, (int(major), int(minor))), "images in", given.folder)
        return 0
    if given.kind == "section":
        if install.ASKED:  # a rehearsal
            install.install()
        SECTIONS[given.name].work(given.results, given.images)
        return 0
    return run_all(given.results, given.images, given.seconds, given.only)


if __name__ == "__main__":
    sys.exit(main())
