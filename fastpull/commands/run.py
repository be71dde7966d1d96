"""`fastpull run`: nerdctl run with the lazy snapshotter, and a stopwatch that can be trusted."""

import itertools
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from fastpull.aio import run_async
from fastpull.benchmark import Start, Until, measure
from fastpull.chart import check_chart, write_chart
from fastpull.cold import make_cold
from fastpull.exit_codes import ExitCode
from fastpull.failures import Failure
from fastpull.laziness import require_lazy
from fastpull.nerdctl import Nerdctl, find_nerdctl, flag_arity, with_globals
from fastpull.readiness import check_endpoint
from fastpull.runargs import RunLine, split
from fastpull.samples import Benchmark, Sample

SNAPSHOTTERS = {"fastpull": "fastpull", "normal": "overlayfs"}
_ALIASES = {"nydus": "fastpull", "overlayfs": "normal"}

EXAMPLES = """\b
Examples:
  fastpull run --rm registry.example/app:1 python -c 'print("hello")'
  fastpull run -d -p 8080:8000 --gpus all --ipc host registry.example/vllm:1 --model Qwen/Qwen3-8B
  fastpull run --benchmark-mode readiness --readiness-endpoint http://localhost:8080/health \\
      -p 8080:8000 registry.example/vllm:1
  fastpull run --benchmark-mode completion --runs 5 --cold --chart starts.png registry.example/app:1
  fastpull run --mode normal --rm registry.example/app:1      # the same tag, on plain overlayfs

\b
Every other flag before IMAGE goes to nerdctl run, and everything after IMAGE to the container, untouched.
Environment: FASTPULL_NERDCTL names the nerdctl to run; NERDCTL_TOML, CONTAINERD_ADDRESS and
CONTAINERD_NAMESPACE mean what they mean to nerdctl.

\b
Exit code: the container's own. If it did not run: see fastpull --exit-codes.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """`fastpull run`'s own flags, parsed."""

    mode: str
    benchmark_mode: str
    readiness_endpoint: str | None
    runs: int
    cold: bool
    require_lazy: bool
    timeout_s: float
    output_json: Path | None
    chart: Path | None
    run_dir: Path

    @property
    def snapshotter(self) -> str:
        return SNAPSHOTTERS[self.mode]


class RunCommand(click.Command):
    """Takes the command line apart before click sees it: click cannot know which of nerdctl's flags take a value."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if ctx.resilient_parsing:  # shell completion: only our own flags can be completed, and nothing may be run
            return super().parse_args(ctx, [])
        if _asks_for_help(args):
            return super().parse_args(ctx, ["--help"])
        nerdctl = find_nerdctl(os.environ, _nerdctl_options(args))
        arity = flag_arity(nerdctl, _cache_dir())
        line = split(args, self.own_flags(), arity)
        if line.image is None:
            raise click.UsageError("IMAGE is missing", ctx)
        ctx.obj = (with_globals(nerdctl, line.nerdctl, arity), line)
        return super().parse_args(ctx, list(line.own))

    def own_flags(self) -> dict[str, bool]:
        """Our flags, with dashes, and whether each takes a value."""
        options = [param for param in self.params if isinstance(param, click.Option)]
        return {name: not option.is_flag for option in options for name in option.opts + option.secondary_opts}

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return ["[OPTIONS]", "[NERDCTL FLAGS]", "IMAGE", "[ARGS]..."]


def _asks_for_help(args: list[str]) -> bool:
    """--help before anything that could be the image. (-h is nerdctl's --hostname.)"""
    return not args or "--help" in list(itertools.takewhile(lambda arg: arg.startswith("-"), args))


def _nerdctl_options(args: list[str]) -> list[str]:
    """The values of --nerdctl-arg, needed before the rest can be parsed."""
    found = [arg.partition("=")[2] for arg in args if arg.startswith("--nerdctl-arg=")]
    return found + [args[i + 1] for i, arg in enumerate(args[:-1]) if arg == "--nerdctl-arg"]


def _cache_dir() -> Path | None:
    home = os.environ.get("XDG_CACHE_HOME") or (os.environ.get("HOME", "") and os.environ["HOME"] + "/.cache")
    return Path(home) / "fastpull" if home else None


def _mode(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
    return _ALIASES.get(value, value)


@click.command(cls=RunCommand, epilog=EXAMPLES, context_settings={"help_option_names": ["--help"]})
@click.option(
    "--mode",
    type=click.Choice([*SNAPSHOTTERS, *_ALIASES]),
    default="fastpull",
    show_default=True,
    callback=_mode,
    help="fastpull: lazily; normal: overlayfs. nydus means fastpull.",
)
@click.option(
    "--benchmark-mode",
    type=click.Choice(["none", "completion", "readiness"]),
    default="none",
    show_default=True,
    help="Measure until the container ends, or until it answers HTTP; it is removed afterwards.",
)
@click.option("--readiness-endpoint", metavar="URL", help="Ready when this answers with a status below 400.")
@click.option("--runs", type=click.IntRange(min=1), default=1, show_default=True, help="Measure this many starts.")
@click.option("--cold", is_flag=True, help="Before each run: remove the image, drop the caches.")
@click.option("--require-lazy", is_flag=True, help="Fail before the start if any layer would not be lazy.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0, min_open=True),
    default=600.0,
    show_default=True,
    metavar="S",
    help="Seconds one measured start may take.",
)
@click.option("--output-json", type=click.Path(dir_okay=False, path_type=Path), help="Write the measurements here.")
@click.option("--chart", type=click.Path(dir_okay=False, path_type=Path), help="Draw them here (.png, .svg, .pdf).")
@click.option(
    "--run-dir",
    envvar="FASTPULL_RUN_DIR",
    type=click.Path(path_type=Path),
    default=Path("/run/fastpull"),
    show_default=True,
    help="The daemon's sockets, for --cold.",
)
@click.option(
    "--nerdctl-arg",
    multiple=True,
    metavar="ARG",
    help="A global option for every nerdctl call, as --nerdctl-arg=--namespace=k8s.io.",
)
@click.pass_context
def run(ctx: click.Context, /, nerdctl_arg: tuple[str, ...], **given: Any) -> int:
    """Run IMAGE with nerdctl, its files loaded as they are needed."""
    taken: tuple[Nerdctl, RunLine] = ctx.obj
    nerdctl, line = taken
    options = RunOptions(**given)
    _check(options)
    _warn_of_late_flags(line)
    if options.benchmark_mode == "none":
        return _plain_run(nerdctl, line, options)
    return benchmark(nerdctl, line, options)


def _check(options: RunOptions) -> None:
    """Refuse what cannot work before anything is started."""
    measuring = options.benchmark_mode != "none"
    if options.benchmark_mode == "readiness" and options.readiness_endpoint is None:
        raise Failure("--benchmark-mode readiness needs --readiness-endpoint URL", code=ExitCode.USAGE)
    if options.readiness_endpoint is not None:
        check_endpoint(options.readiness_endpoint)
    asked = {"--runs": options.runs > 1, "--chart": options.chart, "--output-json": options.output_json}
    for flag, value in asked.items():
        if value and not measuring:
            raise Failure(f"{flag} needs --benchmark-mode completion or readiness", code=ExitCode.USAGE)
    if options.require_lazy and options.mode == "normal":
        raise Failure("--require-lazy makes no sense with --mode normal", code=ExitCode.USAGE)
    if options.chart is not None:
        check_chart(options.chart)
    if options.output_json is not None and not options.output_json.absolute().parent.is_dir():
        raise Failure(f"--output-json {options.output_json}: there is no such directory", code=ExitCode.NOT_FOUND)


def _warn_of_late_flags(line: RunLine) -> None:
    """A flag of ours after IMAGE is the container's: right, but seldom what was meant."""
    own = {name for name in run.own_flags() if name.startswith("--")} if isinstance(run, RunCommand) else set()
    late = next((arg for arg in line.arguments if arg.partition("=")[0] in own), None)
    if late is not None:
        click.echo(f"fastpull: note: {late} comes after the image and goes to the container", err=True)


def _plain_run(nerdctl: Nerdctl, line: RunLine, options: RunOptions) -> int:
    """Become nerdctl: its terminal, its signals and its exit status are then the container's own."""
    assert line.image is not None
    if options.cold:
        make_cold(nerdctl, line.image, options.run_dir / "admin.sock")
    if options.require_lazy:
        require_lazy(nerdctl, line.image, options.snapshotter)
    argv = nerdctl.argv("run", *line.nerdctl, line.image, *line.arguments, snapshotter=options.snapshotter)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(argv[0], argv)


def benchmark(
    nerdctl: Nerdctl, line: RunLine, options: RunOptions, done: Callable[[Benchmark], None] | None = None
) -> int:
    """Measure the starts one after the other; print, write and draw. Returns the container's exit code."""
    assert line.image is not None
    start = Start(
        image=line.image,
        snapshotter=options.snapshotter,
        until=Until(options.benchmark_mode),
        flags=line.nerdctl,
        arguments=line.arguments,
        readiness_endpoint=options.readiness_endpoint,
        limit_s=options.timeout_s,
    )
    samples = tuple(_one(nerdctl, start, options) for _ in range(options.runs))
    result = Benchmark(
        image=line.image,
        mode=options.mode,
        benchmark_mode=options.benchmark_mode,
        cold=options.cold,
        samples=samples,
    )
    click.echo(result.summary(), err=True)
    if options.output_json is not None:
        options.output_json.write_text(json.dumps(result.to_json(), indent=2) + "\n")
    if options.chart is not None:
        write_chart(options.chart, [result])
    if done is not None:
        done(result)
    return next((sample.exit_status for sample in samples if sample.exit_status), 0)


def _one(nerdctl: Nerdctl, start: Start, options: RunOptions) -> Sample:
    if options.cold:
        make_cold(nerdctl, start.image, options.run_dir / "admin.sock")
    if options.require_lazy:
        require_lazy(nerdctl, start.image, start.snapshotter)
    return run_async(measure(nerdctl, start))
