"""The report as a table for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console, JustifyMethod
from rich.table import Table

from jitalloc.replay.report import Report, describe

Row = tuple[str, str, str]  # label, value, unit

COLUMNS: tuple[tuple[str, JustifyMethod], ...] = (
    ("dim", "left"),
    ("", "left"),
    ("bold", "right"),
    ("dim", "left"),
)


def report_rows(report: Report) -> Iterator[tuple[str, list[Row]]]:
    """Yield the sections of a report, each with rows of label, value and unit."""
    requests, tokens, pool, allocator = (
        report.requests,
        report.tokens,
        report.pool,
        report.allocator,
    )
    options = report.options
    rows: list[Row] = [("finished", f"{requests.finished:,}", "")]
    rows.append(("rejected, too long ever to fit", f"{requests.rejected:,}", ""))
    if report.interrupted:
        rows.append(("not finished when interrupted", f"{requests.unfinished:,}", ""))
    if options.mode == "serve":
        rows.append(("preempted to make room", f"{requests.preemptions:,}", "times"))
    yield "Requests", rows

    rows = [("prompt", f"{tokens.prompt:,}", "tokens")]
    if options.mode == "serve":
        rows.append(("decoded, one a step", f"{tokens.decode:,}", "tokens"))
        rows.append(("computed again after preemption", f"{tokens.recomputed:,}", "tokens"))
    yield "Tokens", rows

    per = "a request" if options.mode == "cache" else "over time"
    rows = [
        (f"occupancy, mean {per}", f"{pool.occupancy_mean:.1%}", "of the pool"),
        ("occupancy, peak", f"{pool.occupancy_peak:.1%}", "of the pool"),
        ("pages handed out", f"{pool.pages_allocated:,}", "pages"),
    ]
    if pool.pages_copied:
        rows.append(("pages copied on write", f"{pool.pages_copied:,}", "pages"))
    rows += [
        ("fragmentation of free pages, mean", f"{pool.fragmentation_mean:.2f}", "0 = one run"),
        ("fragmentation of free pages, peak", f"{pool.fragmentation_peak:.2f}", "0 = one run"),
        ("consecutive runs, mean a sequence", f"{pool.runs_per_sequence:.1f}", "runs of ids"),
    ]
    yield "Pool", rows

    yield (
        "Allocator",
        [
            ("time a step, median", f"{allocator.step_us_median:.1f}", "us"),
            ("time a step, 99th percentile", f"{allocator.step_us_p99:.1f}", "us"),
            ("time in all", f"{allocator.seconds:.3f}", "s"),
            ("calls", f"{allocator.calls:,}", ""),
            ("calls a second of that time", f"{allocator.calls_per_second:,.0f}", "calls/s"),
        ],
    )

    yield (
        "Replay",
        [
            ("steps", f"{allocator.steps:,}", ""),
            ("virtual time", f"{report.virtual_seconds:,.1f}", "s"),
            ("wall time", f"{report.wall_seconds:.2f}", "s"),
        ],
    )


def print_report(report: Report) -> None:
    """Print the report on the standard output."""
    title = describe(report) + (" · INTERRUPTED" if report.interrupted else "")
    table = Table(show_header=False)
    for style, justify in COLUMNS:
        table.add_column(style=style, justify=justify)
    for section, rows in report_rows(report):
        for number, row in enumerate(rows):
            table.add_row("" if number else section, *row, end_section=number == len(rows) - 1)
    console = Console(highlight=False)
    console.print(title, style="bold", soft_wrap=True)
    console.print(table)
