"""The report as a table for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console, JustifyMethod
from rich.table import Table

from jitalloc.replay.report import Report, describe
from jitalloc.replay.sweep import CLAIRVOYANT, Sweep, describe_sweep

Row = tuple[str, str, str]  # label, value, unit

COLUMNS: tuple[tuple[str, JustifyMethod], ...] = (
    ("dim", "left"),
    ("", "left"),
    ("bold", "right"),
    ("dim", "left"),
)


def report_rows(report: Report) -> Iterator[tuple[str, list[Row]]]:
    """Yield the sections of a report, each with rows of label, value and unit."""
    requests, tokens, allocator = report.requests, report.tokens, report.allocator
    options = report.options
    rows: list[Row] = [("finished", f"{requests.finished:,}", "")]
    rows.append(("rejected, too long ever to fit", f"{requests.rejected:,}", ""))
    if report.interrupted:
        rows.append(("not finished when interrupted", f"{requests.unfinished:,}", ""))
    if options.mode == "serve":
        rows.append(("preempted to make room", f"{requests.preemptions:,}", "times"))
    yield "Requests", rows

    caching = options.policy != "none"
    rows = [("of prompts, computed", f"{tokens.prompt:,}", "tokens")]
    if caching:
        rows.append(("of prompts, found in the cache", f"{tokens.cached:,}", "tokens"))
    if options.mode == "serve":
        rows.append(("decoded, one a step", f"{tokens.decode:,}", "tokens"))
        rows.append(("computed again after preemption", f"{tokens.recomputed:,}", "tokens"))
        if caching:
            rows.append(("found again after preemption", f"{tokens.restored:,}", "tokens"))
    yield "Tokens", rows

    if caching:
        yield "Cache", _cache_rows(report)
    yield "Pool", _pool_rows(report)

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


def _cache_rows(report: Report) -> list[Row]:
    prefix = report.prefix
    rows: list[Row] = [
        ("hit rate by tokens", f"{prefix.hit_rate_tokens:.2%}", "of all prompts"),
        ("hit rate by pages", f"{prefix.hit_rate_pages:.2%}", "of whole pages"),
        ("pages found", f"{prefix.hit_pages:,}", f"of {prefix.lookup_pages:,}"),
        ("pages that entered", f"{prefix.pages_inserted:,}", "pages"),
    ]
    for reason, count in prefix.evicted.items():
        if count:
            rows.append((f"pages evicted, {reason}", f"{count:,}", "pages"))
    rows.append(("pages cached at the end", f"{prefix.pages_cached:,}", "pages"))
    return rows


def _pool_rows(report: Report) -> list[Row]:
    pool = report.pool
    per = "a request" if report.options.mode == "cache" else "over time"
    rows: list[Row] = [
        (f"held by sequences, mean {per}", f"{pool.held_mean:.1%}", "of the pool"),
        ("held by sequences, peak", f"{pool.held_peak:.1%}", "of the pool"),
    ]
    if report.options.policy != "none":
        rows += [
            (f"cached, reclaimable, mean {per}", f"{pool.cached_mean:.1%}", "of the pool"),
            ("cached, reclaimable, peak", f"{pool.cached_peak:.1%}", "of the pool"),
        ]
    rows += [
        (f"free, mean {per}", f"{pool.free_mean:.1%}", "of the pool"),
        ("pages handed out", f"{pool.pages_allocated:,}", "pages"),
    ]
    if pool.pages_copied:
        rows.append(("pages copied on write", f"{pool.pages_copied:,}", "pages"))
    rows += [
        ("fragmentation of free pages, mean", f"{pool.fragmentation_mean:.2f}", "0 = one run"),
        ("fragmentation of free pages, peak", f"{pool.fragmentation_peak:.2f}", "0 = one run"),
        ("consecutive runs, mean a sequence", f"{pool.runs_per_sequence:.1f}", "runs of ids"),
    ]
    return rows


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


def print_sweep(sweep: Sweep) -> None:
    """Print the hit rates of a sweep on the standard output, the best of each size in bold."""
    curves = {policy: sweep.curve(policy) for policy in sweep.policies}
    table = Table()
    for name in ("pages", "tokens"):
        table.add_column(name, justify="right", style="dim" if name == "tokens" else "")
    for policy in sweep.policies:
        style = "cyan" if policy == CLAIRVOYANT else ""
        table.add_column(policy, justify="right", style=style, no_wrap=True)
    for row, size in enumerate(sweep.sizes):
        rates = {name: curve[row].hit_rate for name, curve in curves.items() if row < len(curve)}
        best = max((rate for name, rate in rates.items() if name != CLAIRVOYANT), default=0.0)
        cells = []
        for policy in sweep.policies:
            text = f"{rates[policy]:.2%}" if policy in rates else "-"
            bold = policy != CLAIRVOYANT and rates.get(policy) == best
            cells.append(f"[bold]{text}[/bold]" if bold else text)
        table.add_row(f"{size:,}", _rounded(size * sweep.page_size), *cells)
    console = Console(highlight=False)
    title = describe_sweep(sweep) + (" · INTERRUPTED" if sweep.interrupted else "")
    console.print(title, style="bold", soft_wrap=True)
    console.print(table)
    rejected = max((point.rejected for point in sweep.points), default=0)
    if rejected:
        console.print(
            f"Up to {rejected:,} prompts were longer than a cache; they count as not found.",
            style="dim",
        )


def _rounded(number: int) -> str:
    """Return a number in three digits or so: 731 k, 2.92 M."""
    for unit, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= 0.9995 * unit:
            return f"{number / unit:.3g} {letter}"
    return str(number)
