"""`fastpull quickstart`: one model server, started both ways, measured until it answers."""

import json
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import click

from fastpull.aio import run_async
from fastpull.benchmark import Start, Until, measure
from fastpull.chart import check_chart, write_chart
from fastpull.cold import make_cold
from fastpull.commands.run import SNAPSHOTTERS
from fastpull.exit_codes import ExitCode
from fastpull.failures import Failure
from fastpull.nerdctl import Nerdctl, find_nerdctl
from fastpull.quickstarts import WORKLOADS, Workload, image_state, machine_lacks
from fastpull.readiness import check_endpoint
from fastpull.registry_access import registry_options
from fastpull.samples import Benchmark, Sample

_FIGURES = {"container_start_time": "container started", "readiness_time": "ready"}

EXAMPLES = """\b
Examples:
  sudo fastpull quickstart vllm --output-dir results
  sudo fastpull quickstart vllm --image registry.example/vllm:converted --runs 3
  sudo fastpull quickstart vllm --image registry.example/cpu-server:1 --no-gpu \\
      --entry 'python -m http.server 8000' --endpoint http://localhost:8080/

\b
Written to the output directory: WORKLOAD-fastpull.json, WORKLOAD-normal.json and, with matplotlib, WORKLOAD.png.
Both starts are cold: the image is removed and the page cache dropped before each. Other containers and images are
not touched.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How the starts are measured, and where the results go."""

    runs: int
    timeout_s: float
    output_dir: Path
    admin_socket: Path


@click.command(epilog=EXAMPLES)
@click.argument("workload", type=click.Choice(list(WORKLOADS)))
@click.option("--output-dir", type=click.Path(file_okay=False, path_type=Path), default=Path(), help="For the results.")
@click.option("--image", metavar="REF", help="Another server image; converted, if the difference is to be seen.")
@click.option("--entry", metavar="CMD", help="What to run in it, as a shell would split it.")
@click.option("--endpoint", metavar="URL", help="Ready when this answers.")
@click.option("--publish", metavar="PORTS", help="As nerdctl's -p.  [default: 8080:8000]")
@click.option("--no-gpu", is_flag=True, help="The server runs without a GPU.")
@click.option("--runs", type=click.IntRange(min=1), default=1, show_default=True, help="Starts of each kind.")
@click.option("--timeout", "timeout_s", type=float, default=1800.0, show_default=True, help="Seconds for one start.")
@click.option("--run-arg", "run_args", multiple=True, metavar="ARG", help="One more flag for nerdctl run.")
@click.option(
    "--run-dir",
    envvar="FASTPULL_RUN_DIR",
    type=click.Path(path_type=Path),
    default=Path("/run/fastpull"),
    show_default=True,
    help="The daemon's sockets.",
)
@click.option("--nerdctl-arg", multiple=True, metavar="ARG", help="A global option for every nerdctl call.")
@registry_options
def quickstart(
    workload: str,
    output_dir: Path,
    image: str | None,
    entry: str | None,
    endpoint: str | None,
    publish: str | None,
    no_gpu: bool,
    runs: int,
    timeout_s: float,
    run_args: tuple[str, ...],
    run_dir: Path,
    nerdctl_arg: tuple[str, ...],
    plain_http: tuple[str, ...],
) -> int:
    """Start a model server both ways, cold, and compare: tensorrt, vllm or sglang."""
    chosen = _chosen(WORKLOADS[workload], image, entry, endpoint, publish, no_gpu, run_args)
    nerdctl = find_nerdctl(os.environ, nerdctl_arg)
    _check(chosen, nerdctl, plain_http)
    output_dir.mkdir(parents=True, exist_ok=True)
    plan = Plan(runs=runs, timeout_s=timeout_s, output_dir=output_dir, admin_socket=run_dir / "admin.sock")
    results = [_measure(nerdctl, chosen, mode, plan) for mode in SNAPSHOTTERS]
    _draw(output_dir / f"{workload}.png", results)
    click.echo(_comparison(results), err=True)
    return ExitCode.OK


def _chosen(
    workload: Workload,
    image: str | None,
    entry: str | None,
    endpoint: str | None,
    publish: str | None,
    no_gpu: bool,
    run_args: Sequence[str],
) -> Workload:
    flags = [*(["-p", publish] if publish else workload.flags[:2]), *([] if no_gpu else workload.flags[2:]), *run_args]
    return replace(
        workload,
        image=image or workload.image,
        endpoint=check_endpoint(endpoint or workload.endpoint),
        flags=tuple(_without_publish(flags)),
        arguments=tuple(shlex.split(entry)) if entry else (),
        gpu=not no_gpu,
    )


def _without_publish(flags: Sequence[str]) -> list[str]:
    """Ports cannot be published from the host's own network: with --net host the -p goes."""
    host = any(flag in ("--net=host", "--network=host") for flag in flags)
    return [flag for n, flag in enumerate(flags) if not (host and (flag == "-p" or (n and flags[n - 1] == "-p")))]


def _check(workload: Workload, nerdctl: Nerdctl, plain_http: Sequence[str]) -> None:
    """Say everything that is missing, before anything is started."""
    parts = urlsplit(workload.endpoint)
    local = parts.hostname in ("localhost", "127.0.0.1", "::1")
    lacks = machine_lacks(workload, nerdctl, parts.port or 80 if local else None)
    if lacks:
        told = "; ".join(lack.what for lack in lacks)
        raise Failure(f"missing: {told}", hint="; ".join(lack.fix for lack in lacks), code=ExitCode.MISSING_TOOL)
    state = run_async(image_state(workload.image, plain_http))
    if state != "yes":
        part = "is not converted" if state == "no" else "is converted in part only"
        click.echo(f"fastpull: note: {workload.image} {part}: both starts will download it whole", err=True)
        click.echo(f"  hint: fastpull convert {workload.image} YOUR/IMAGE:TAG, then --image YOUR/IMAGE:TAG", err=True)


def _measure(nerdctl: Nerdctl, workload: Workload, mode: str, plan: Plan) -> Benchmark:
    start = Start(
        image=workload.image,
        snapshotter=SNAPSHOTTERS[mode],
        until=Until.READINESS,
        flags=workload.flags,
        arguments=workload.arguments,
        readiness_endpoint=workload.endpoint,
        limit_s=plan.timeout_s,
    )
    click.echo(f"== {workload.name}, {mode} ==", err=True)
    samples = tuple(_one(nerdctl, start, plan) for _ in range(plan.runs))
    result = Benchmark(image=workload.image, mode=mode, benchmark_mode="readiness", cold=True, samples=samples)
    (plan.output_dir / f"{workload.name}-{mode}.json").write_text(json.dumps(result.to_json(), indent=2) + "\n")
    click.echo(result.summary(), err=True)
    return result


def _one(nerdctl: Nerdctl, start: Start, plan: Plan) -> Sample:
    make_cold(nerdctl, start.image, plan.admin_socket)
    return run_async(measure(nerdctl, start))


def _draw(path: Path, results: Sequence[Benchmark]) -> None:
    try:
        check_chart(path)
    except Failure as problem:
        click.echo(f"no chart: {problem.message} ({problem.hint})", err=True)
        return
    write_chart(path, results)


def _comparison(results: Sequence[Benchmark]) -> str:
    lines = [f"{'':<20}" + "".join(f"{one.mode:>12}" for one in results) + f"{'ratio':>9}"]
    for key, told in _FIGURES.items():
        found = [one.statistics().get(key) for one in results]
        if all(found):
            medians = [one.median for one in found if one is not None]
            ratio = f"{medians[-1] / medians[0]:.1f} x" if medians[0] else ""
            lines.append(f"{told:<20}" + "".join(f"{m:>10.2f} s" for m in medians) + f"{ratio:>9}")
    return "\n".join(lines)
