"""The command line: `jitalloc replay`, `sweep`, `info`, `warmup`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar

import click

from jitalloc.choices import Device
from jitalloc.errors import InvalidArgument, JitallocError

if TYPE_CHECKING:
    from jitalloc.replay import Request

Command = TypeVar("Command", bound=Callable[..., Any])

INTERRUPTED = 130  # 128 + SIGINT, as shells report it


class _Group(click.Group):
    """Ends a command with one line and no traceback where jitalloc refuses something."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except JitallocError as error:
            raise click.ClickException(str(error)) from error
        except MemoryError as error:
            raise click.ClickException(f"not enough memory: {error}") from error
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(INTERRUPTED)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("jitalloc")
    except PackageNotFoundError:
        return "(not installed)"


def _print_version(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        click.echo(f"jitalloc {_version()}")
        ctx.exit()


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_print_version,
    help="Show the version and exit.",
)
def main() -> None:
    """Paged KV-cache memory management: replay recorded traffic through the allocator."""


def _output(_ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Refuse an output file whose folder is missing before the replay runs, not after it."""
    if value is not None and value != "-" and not os.access(Path(value).parent, os.W_OK):
        raise click.BadParameter(f"cannot write into {Path(value).parent}", param=parameter)
    return value


def _listed(
    convert: Callable[[Any, click.Parameter, click.Context], Any], every: Sequence[str] = ()
) -> Callable[[click.Context, click.Parameter, str | None], list[Any] | None]:
    """Return a reader of values with commas between them; `all` stands for `every`."""

    def read(ctx: click.Context, parameter: click.Parameter, value: str | None) -> list[Any] | None:
        if value is None:
            return None
        if every and value == "all":
            return list(every)
        parts = (part.strip() for part in value.split(","))
        return list(dict.fromkeys(convert(part, parameter, ctx) for part in parts))

    return read


COUNT = click.IntRange(1, 2**31 - 1)
REPLAY_POLICIES = ("lru", "fifo", "mru", "lfu", "slru")
TRACES = click.argument("traces", nargs=-1, metavar="[TRACE]...")
LIMIT = click.option("--limit", type=COUNT, help="Only the first so many requests.")
SEED = click.option(
    "--seed", type=click.IntRange(0), help="Seed of the generated traffic.  [default: 0]"
)
JSON = click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, allow_dash=True),
    callback=_output,
    metavar="FILE",
    help="Write the figures as JSON; - is the standard output, in place of the table.",
)


def _plot(what: str) -> Callable[[Command], Command]:
    return click.option(
        "--plot",
        "plot_file",
        type=click.Path(dir_okay=False),
        callback=_output,
        metavar="FILE",
        help=f"Draw {what} (.png, .svg or .pdf); needs jitalloc[plot].",
    )


@main.command()
@TRACES
@click.option(
    "--mode",
    type=click.Choice(["serve", "cache"]),
    default="serve",
    show_default=True,
    help="serve: continuous batching on a virtual clock. cache: one request after another.",
)
@click.option("--num-pages", type=COUNT, default=65_536, show_default=True, help="Pages in all.")
@click.option("--page-size", type=COUNT, default=16, show_default=True, help="Tokens a page.")
@click.option(
    "--order",
    type=click.Choice(["sorted", "fifo", "lifo"]),
    default="sorted",
    show_default=True,
    help="Which free page goes out next.",
)
@click.option(
    "--policy",
    type=click.Choice([*REPLAY_POLICIES, "none"]),
    default="lru",
    show_default=True,
    help="Which cached prefix gives way first; none: nothing is cached.",
)
@click.option(
    "--max-batch", type=COUNT, default=256, show_default=True, help="Most sequences at once."
)
@click.option(
    "--max-length",
    type=COUNT,
    help="Longest sequence in tokens; what is longer is rejected.  [default: the pool's size, "
    "up to 1048576]",
)
@click.option(
    "--step-tokens",
    type=COUNT,
    default=8_192,
    show_default=True,
    help="Most tokens computed in a step; longer prompts are read in chunks.",
)
@click.option(
    "--step-ms",
    type=click.FloatRange(0),
    default=20.0,
    show_default=True,
    help="Virtual milliseconds a step takes.",
)
@click.option(
    "--token-us",
    type=click.FloatRange(0),
    default=10.0,
    show_default=True,
    help="Virtual microseconds that each token adds to its step.",
)
@click.option(
    "--export",
    type=click.Choice(["none", "csr", "padded"]),
    default="none",
    show_default=True,
    help="Also build the block tables that attention kernels read, in each step.",
)
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="Where the pool lives; cuda needs a GPU and jitalloc[cuda12] or [cuda13].",
)
@LIMIT
@SEED
@JSON
@_plot("the pool over virtual time")
def replay(
    traces: tuple[str, ...],
    seed: int | None,
    json_file: str | None,
    plot_file: str | None,
    **settings: Any,
) -> None:
    """Run recorded traffic through the allocator and report what it did and what it cost.

    A TRACE is a Mooncake JSON lines file, an Azure CSV file or an agent session in JSON; which
    one, its content tells. Several are merged by time. Without a TRACE, a seeded generator makes
    a quarter of an hour of multi-turn chat.
    """
    from jitalloc.replay import ReplayOptions, prepare, save_plot
    from jitalloc.replay import replay as run
    from jitalloc.replay.plot import check_plot
    from jitalloc.replay.terminal import catch_interrupt, show_progress

    name, again = _named(traces, seed)
    try:
        options = ReplayOptions(**settings)
        if plot_file is not None:
            check_plot(plot_file)
    except InvalidArgument as error:
        raise click.UsageError(str(error)) from error

    def requests() -> Iterator[Request]:
        return _requests(traces, seed)

    with show_progress(requests if again else None, options.limit) as (say, watch):
        say("loading kernels (compiled on the first run)")
        prepare(options)
        say("replaying")
        with catch_interrupt() as stop:
            report = run(requests(), options, trace=name, stop=stop, watch=watch)

    if json_file == "-":
        click.echo(report.to_json(), nl=False)
    else:
        from jitalloc.replay.table import print_report

        print_report(report)
    _write((json_file, report.save), (plot_file, lambda to: save_plot(report, to)))
    _end(report.interrupted)


def _named(traces: tuple[str, ...], seed: int | None) -> tuple[str, bool]:
    """Return the name of the traffic, and whether it can be read twice: a pipe cannot."""
    if not traces:
        return f"generated chat, seed {seed or 0}", True
    if seed is not None:
        raise click.UsageError("--seed is for generated traffic: it cannot go with a TRACE")
    first = Path(traces[0]).name
    name = first if len(traces) == 1 else f"{first} and {len(traces) - 1} more"
    return name, all(Path(path).is_file() for path in traces)


def _requests(traces: tuple[str, ...], seed: int | None) -> Iterator[Request]:
    from jitalloc.replay import generate, read_traces

    return read_traces(traces) if traces else generate(seed or 0)


def _write(*files: tuple[str | None, Callable[[str], None]]) -> None:
    for path, write in files:
        if path is None or path == "-":
            continue
        try:
            write(path)
        except OSError as error:
            raise click.ClickException(f"{path}: {error.strerror or error}") from error
        click.echo(f"wrote {path}", err=True)


def _end(interrupted: bool) -> None:
    if interrupted:
        click.echo("interrupted: the figures hold up to that point", err=True)
        raise click.exceptions.Exit(INTERRUPTED)


@main.command()
@TRACES
@click.option(
    "--num-pages",
    "sizes",
    callback=_listed(COUNT.convert),
    metavar="A,B,C",
    help="Sizes of the cache.  [default: eight, doubling, up to every distinct page]",
)
@click.option(
    "--policy",
    "policies",
    callback=_listed(click.Choice(REPLAY_POLICIES).convert, REPLAY_POLICIES),
    default="all",
    show_default=True,
    metavar="all|A,B,C",
    help=f"Of {', '.join(REPLAY_POLICIES)}. Clairvoyant eviction is always beside them.",
)
@click.option(
    "--page-size", type=COUNT, help="Tokens a page.  [default: the block size of the trace]"
)
@LIMIT
@SEED
@JSON
@_plot("hit rate over size")
def sweep(
    traces: tuple[str, ...],
    sizes: list[int] | None,
    policies: list[str],
    page_size: int | None,
    limit: int | None,
    seed: int | None,
    json_file: str | None,
    plot_file: str | None,
) -> None:
    """Size a cache: its hit rate over its size, for every policy, in cache mode.

    Clairvoyant eviction knows the trace's future: what it finds, no policy can exceed. TRACE is
    as for `jitalloc replay`.
    """
    from jitalloc.replay import ReplayOptions, prepare, run_sweep, save_curves
    from jitalloc.replay.plot import check_plot
    from jitalloc.replay.terminal import catch_interrupt, show_share

    name, _ = _named(traces, seed)
    try:
        if plot_file is not None:
            check_plot(plot_file)
    except InvalidArgument as error:
        raise click.UsageError(str(error)) from error
    with show_share() as (say, watch), catch_interrupt() as stop:
        say("loading kernels (compiled on the first run)")
        for policy in policies:
            prepare(ReplayOptions("cache", policy=policy))
        say("reading the trace")
        found = run_sweep(
            islice(_requests(traces, seed), limit),
            sizes,
            policies,
            page_size=page_size,
            trace=name,
            stop=stop,
            watch=watch,
        )
    if json_file == "-":
        click.echo(found.to_json(), nl=False)
    else:
        from jitalloc.replay.table import print_sweep

        print_sweep(found)
    _write((json_file, found.save), (plot_file, lambda to: save_curves(found, to)))
    _end(found.interrupted)


@main.command()
def info() -> None:
    """Show versions, devices and the folder of compiled kernels."""
    from jitalloc.info import describe_machine

    for label, value in ({"jitalloc": _version()} | describe_machine()).items():
        click.echo(f"{label:<15}{value}")


@main.command()
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="Whose kernels.",
)
def warmup(device: Device) -> None:
    """Compile all kernels now, so that the first use does not have to."""
    import jitalloc
    from jitalloc.warming import compile_in_two

    start = perf_counter()
    try:
        if device == "cpu":
            compile_in_two()
        count = jitalloc.warmup(device)
    except InvalidArgument as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{count} kernels ready in {perf_counter() - start:.1f} s")
