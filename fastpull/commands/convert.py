"""`fastpull convert`: from any image to one that starts lazily."""

import contextlib
import json
import sys
from dataclasses import replace

import click

from converter.convert import convert_image
from converter.cuts import DEFAULT_FRAME_SIZE
from converter.errors import ConvertError, UsageError
from converter.options import DEFAULT_LEVEL, ConvertOptions, ConvertResult, Profile
from converter.progress import BarProgress, progress_for, size_change
from fastpull.aio import run_async
from fastpull.amounts import counted
from fastpull.exit_codes import ExitCode
from fastpull.failures import Failure
from fastpull.profile_convert import attach, chosen_profile
from fastpull.registry_access import open_client, registry_options
from fetcher.registry import Platform, RegistryClient

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20}

EPILOG = """\b
SRC and DST, each one of:
  [HOST[:PORT]/]REPOSITORY[:TAG]   an image in a registry (SRC also @DIGEST)
  oci:DIR[:TAG]                    an OCI image layout
  oci-archive:FILE[:TAG]           the same in a tar archive
  docker-archive:FILE[:NAME]       what docker save writes (SRC only)

\b
Examples:
  fastpull convert registry.example/app:1 registry.example/app:1-fast
  fastpull convert --all-platforms registry.example/app:1 registry.example/app:1
  docker save app:1 -o app.tar && fastpull convert docker-archive:app.tar registry.example/app:1

\b
Exit codes:
  0 done    1 the destination could not be written    2 wrong command line
  3 no such image, tag, file or platform              4 credentials refused or missing
  5 the source image is damaged or no image           6 a registry cannot be reached
  130 interrupted
Whatever the code but 0, DST stands for what it stood for before.
"""


class ByteSize(click.ParamType[int]):
    """Bytes, with K or M for powers of 1024."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value).strip().lower().removesuffix("ib").removesuffix("b")
        digits = text.rstrip("km")
        unit = text[len(digits) :]
        if not digits.isascii() or not digits.isdigit() or unit not in _UNITS:
            self.fail(f"{value!r} is no size such as 262144, 256K or 1M", param, ctx)
        return int(digits) * _UNITS[unit]


@click.command(epilog=EPILOG)
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST")
@click.option("--level", type=click.IntRange(1, 22), default=DEFAULT_LEVEL, show_default=True, help="zstd level.")
@click.option(
    "--frame-size", type=ByteSize(), default=str(DEFAULT_FRAME_SIZE), help="Tar bytes per frame, 256K unless told."
)
@click.option("--jobs", "-j", type=click.IntRange(1, 256), help="Threads that compress; all cores unless told.")
@click.option(
    "--platform", multiple=True, metavar="OS/ARCH", help="Convert this platform of an index; may be repeated."
)
@click.option("--all-platforms", is_flag=True, help="Convert every platform of an index.")
@click.option(
    "--profile",
    metavar="FILE|auto",
    help="Cut frames along a start profile: FILE, or the one attached to SRC or DST. It is attached to the result.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@registry_options
def convert(
    source: str,
    destination: str,
    level: int,
    frame_size: int,
    jobs: int | None,
    platform: tuple[str, ...],
    all_platforms: bool,
    profile: str | None,
    as_json: bool,
    plain_http: tuple[str, ...],
) -> None:
    """Convert the image SRC and store it as DST.

    The result is an ordinary OCI image with tar+zstd layers that every runtime can run, and that fastpull starts
    lazily. Of an index, only this machine's platform is converted unless told; the others are kept as they are.
    """
    try:
        options = _options(level, frame_size, jobs, platform, all_platforms)
        result = run_async(_convert(source, destination, options, profile, plain_http, quiet=as_json))
    except ConvertError as problem:
        raise Failure(str(problem), hint=problem.hint, code=ExitCode(problem.exit_code)) from problem
    click.echo(json.dumps(result.to_json(), indent=2) if as_json else summary(result))


def _options(
    level: int, frame_size: int, jobs: int | None, platform: tuple[str, ...], all_platforms: bool
) -> ConvertOptions:
    defaults = ConvertOptions()
    try:
        platforms = tuple(Platform.parse(text) for text in platform)
    except ValueError as problem:
        raise UsageError(str(problem)) from problem
    return ConvertOptions(
        level=level,
        frame_size=frame_size,
        jobs=jobs or defaults.jobs,
        platforms=platforms,
        all_platforms=all_platforms,
    )


async def _convert(
    source: str,
    destination: str,
    options: ConvertOptions,
    choice: str | None,
    plain_http: tuple[str, ...],
    *,
    quiet: bool,
) -> ConvertResult:
    async with open_client(plain_http) as client:
        profile = None if choice is None else await chosen_profile(client, choice, source, destination)
        if profile is not None:
            options = replace(options, profile=Profile(ranges=profile.ranges()))
        result = await _pass(source, destination, options, client, quiet=quiet)
        if result.missed_profile:
            # A layer that was never converted has no known diff id: now it has.
            result = await _pass(source, destination, options, client, quiet=quiet)
        if profile is not None:
            await attach(client, destination, profile)
        return result


async def _pass(
    source: str, destination: str, options: ConvertOptions, client: RegistryClient, *, quiet: bool
) -> ConvertResult:
    progress = progress_for(sys.stderr)
    with progress if isinstance(progress, BarProgress) else contextlib.nullcontext():
        return await convert_image(source, destination, options, client=client, progress=None if quiet else progress)


def summary(result: ConvertResult) -> str:
    """What a person is told at the end, one line per platform and one for the whole."""
    lines = []
    for image in result.images:
        actions = [layer.action for layer in image.layers]
        counts = ", ".join(f"{actions.count(action)} {action}" for action in sorted(set(actions))) or "none"
        before = sum(layer.source_size for layer in image.layers)
        after = sum(layer.size for layer in image.layers)
        layers = counted(len(actions), "layer")
        lines.append(f"{image.platform}: {layers} ({counts}), {size_change(before, after)}")
    state = "stored" if result.changed else "unchanged"
    lines.append(f"{result.destination}@{result.digest} {state} in {result.seconds:.1f} s")
    return "\n".join(lines)
