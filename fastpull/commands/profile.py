"""`fastpull profile`: record what a start reads, look at it, share it."""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console

from fastpull.aio import run_async
from fastpull.amounts import in_bytes
from fastpull.benchmark import Start, Until, measure
from fastpull.cold import make_cold
from fastpull.commands.run import SNAPSHOTTERS, RunCommand
from fastpull.exit_codes import ExitCode
from fastpull.failures import Failure
from fastpull.nerdctl import Nerdctl
from fastpull.profile_client import ProfileClient, Started
from fastpull.profile_convert import read_profile
from fastpull.profile_pack import push_pack
from fastpull.profile_predict import predict_profile
from fastpull.profile_table import coverage, packed_bytes, show
from fastpull.profile_target import Target, find_target, frame_tables
from fastpull.readiness import check_endpoint
from fastpull.registry_access import open_client, registry_options
from fastpull.runargs import RunLine
from fetcher.profiles import packs, referrers
from fetcher.profiles.document import ProfileError
from fetcher.profiles.merging import merge as merge_profiles
from fetcher.profiles.pack import MEDIA_TYPE as PACK
from fetcher.profiles.profile import Profile, encode_profile
from fetcher.profiles.recorder import MAX_WINDOW_S
from fetcher.registry import RegistryClient

RECORD_EXAMPLES = """\b
Examples:
  sudo fastpull profile record --cold registry.example/app:1 python -c 'import torch'
  sudo fastpull profile record --readiness-endpoint http://localhost:8080/health --push \\
      -p 8080:8000 registry.example/vllm:1
  sudo fastpull profile record --until 30 registry.example/app:1

\b
The container is removed afterwards. Every other flag before IMAGE goes to nerdctl run, and everything after
IMAGE to the container. A second recording is merged with the first.
"""
SHOW_EXAMPLES = """\b
Examples:
  fastpull profile show registry.example/app:1
  fastpull profile show --json registry.example/app:1 > app.profile
"""
LIST_EXAMPLES = """\b
Examples:
  sudo fastpull profile list
"""
PUSH_EXAMPLES = """\b
Examples:
  sudo fastpull profile push registry.example/app:1
  fastpull profile push --file app.profile registry.example/app:1
"""
PREDICT_EXAMPLES = """\b
Examples:
  fastpull profile predict registry.example/app:1
  fastpull profile predict --output app.profile registry.example/app:1
"""
PACK_EXAMPLES = """\b
Examples:
  fastpull profile pack registry.example/app:1
"""
REMOVE_EXAMPLES = """\b
Examples:
  sudo fastpull profile rm registry.example/app:1
  fastpull profile rm --registry registry.example/app:1
"""
MERGE_EXAMPLES = """\b
Examples:
  fastpull profile merge -o app.profile first.profile second.profile
"""
_PATH = click.Path(path_type=Path)
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_run_dir = click.option(
    "--run-dir", type=_PATH, default=Path("/run/fastpull"), show_default=True, help="The daemon's sockets."
)
_platform = click.option("--platform", help="Of an image for several platforms: this one. [this machine's]")


@click.group()
def profile() -> None:
    """Record what a start reads, so that the next one fetches it first. See docs/profiles.md."""


# Record


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordOptions:
    """`fastpull profile record`'s own flags, parsed."""

    until: str | None
    readiness_endpoint: str | None
    timeout_s: float
    cold: bool
    push: bool
    run_dir: Path
    plain_http: tuple[str, ...]

    def start(self, line: RunLine) -> Start:
        """What is to be started, and when the recording ends. Raises Failure for flags that do not go together."""
        assert line.image is not None
        until = self.until or ("ready" if self.readiness_endpoint is not None else "exit")
        if until == "ready" and self.readiness_endpoint is None:
            raise Failure("--until ready needs --readiness-endpoint URL", code=ExitCode.USAGE)
        return Start(
            image=line.image,
            snapshotter=SNAPSHOTTERS["fastpull"],
            until=Until.READINESS if until == "ready" else Until.COMPLETION,
            flags=line.nerdctl,
            arguments=line.arguments,
            readiness_endpoint=self.readiness_endpoint if until == "ready" else None,
            limit_s=float(until) if self.timed else self.timeout_s,
        )

    @property
    def timed(self) -> bool:
        """Whether the end is a matter of time alone."""
        return self.until not in (None, "ready", "exit")


def _until(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    if value in (None, "ready", "exit"):
        return value
    try:
        seconds = float(value or "")
    except ValueError:
        raise click.BadParameter(f"{value!r} is neither ready nor exit nor a number of seconds") from None
    if not 0 < seconds <= MAX_WINDOW_S:
        raise click.BadParameter(f"a recording takes up to {MAX_WINDOW_S:.0f} seconds")
    return value


@profile.command(cls=RunCommand, epilog=RECORD_EXAMPLES, context_settings={"help_option_names": ["--help"]})
@click.option("--until", callback=_until, metavar="ready|exit|SECONDS", help="When it ends; SECONDS after the request.")
@click.option("--readiness-endpoint", metavar="URL", help="Ready when this answers with a status below 400.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0, max=MAX_WINDOW_S, min_open=True),
    default=600.0,
    show_default=True,
    metavar="S",
    help="Seconds until ready or exit.",
)
@click.option("--cold", is_flag=True, help="Before: remove the image, empty the caches. Then every read is seen.")
@click.option("--push", is_flag=True, help="Attach the profile to the image in its registry.")
@_run_dir
@registry_options
@click.option("--nerdctl-arg", multiple=True, metavar="ARG", help="A global option for every nerdctl call.")
@click.pass_context
def record(
    ctx: click.Context,
    /,
    nerdctl_arg: tuple[str, ...],
    until: str | None,
    readiness_endpoint: str | None,
    timeout_s: float,
    cold: bool,
    push: bool,
    run_dir: Path,
    plain_http: tuple[str, ...],
) -> None:
    """Start IMAGE and record which bytes of it are read, in order."""
    taken: tuple[Nerdctl, RunLine] = ctx.obj
    nerdctl, line = taken
    options = RecordOptions(
        until=until,
        readiness_endpoint=None if readiness_endpoint is None else check_endpoint(readiness_endpoint),
        timeout_s=timeout_s,
        cold=cold,
        push=push,
        run_dir=run_dir,
        plain_http=plain_http,
    )
    start = options.start(line)
    if cold:
        make_cold(nerdctl, start.image, run_dir / "admin.sock")
    run_async(_record(nerdctl, start, options))


async def _record(nerdctl: Nerdctl, start: Start, options: RecordOptions) -> None:
    daemon = ProfileClient(options.run_dir / "admin.sock")
    async with open_client(options.plain_http) as client:
        target = await find_target(client, start.image)
        window_s = min(MAX_WINDOW_S, start.limit_s + 60)
        _tell_of_missing(await daemon.start(target.digest, target.describe(window_s)))
        try:
            await _run(nerdctl, start, timed=options.timed)
        except BaseException:
            await daemon.stop(target.digest, keep=False)
            raise
        found = await daemon.stop(target.digest, keep=True)
        if found is None:
            raise Failure("no read was seen", hint=_FRESH, code=ExitCode.FAILED)
        _say(f"{target.digest}: {_short(found)}")
        if options.push:
            await _push(client, target, found)


async def _run(nerdctl: Nerdctl, start: Start, *, timed: bool) -> None:
    try:
        await measure(nerdctl, start)
    except Failure as failure:
        if not timed or failure.exit_code != ExitCode.NOT_READY:
            raise


_FRESH = "for a fresh start: --cold, or remove the image's containers and the image (nerdctl rm, rmi) first"


def _tell_of_missing(started: Started) -> None:
    if started.silent:
        click.echo(
            f"fastpull: note: {started.silent} of {started.layers} layers are here whole and mounted: "
            "their reads cannot be seen",
            err=True,
        )
    elif started.mounted:
        click.echo(
            f"fastpull: note: {started.mounted} of {started.layers} layers are in use already: "
            "what the page cache has of them is not seen",
            err=True,
        )
    if started.mounted:
        click.echo(f"  hint: {_FRESH}", err=True)


def _short(found: Profile) -> str:
    merged = f", {found.recordings} recordings merged" if found.recordings > 1 else ""
    return f"{len(found.reads)} ranges, {in_bytes(found.touched_bytes)}{merged}"


def _say(text: str) -> None:
    click.echo(text, err=True)


# Show, list


@profile.command("show", epilog=SHOW_EXAMPLES)
@click.argument("image")
@click.option("--file", "file", type=_FILE, help="This profile, instead of the node's or the registry's.")
@click.option("--json", "as_json", is_flag=True, help="Print the profile itself, as convert --profile takes it.")
@_platform
@_run_dir
@registry_options
def show_command(
    image: str, file: Path | None, as_json: bool, platform: str | None, run_dir: Path, plain_http: tuple[str, ...]
) -> None:
    """Show IMAGE's profile: what it names of each layer, and what a start downloads for it.

    The node's own profile, if it has one; else the one in the registry.
    """
    run_async(_show(image, file, as_json, platform, run_dir, plain_http))


async def _show(
    image: str, file: Path | None, as_json: bool, platform: str | None, run_dir: Path, plain_http: Sequence[str]
) -> None:
    async with open_client(plain_http) as client:
        target = await find_target(client, image, platform)
        found, source = await _find(client, target, file, run_dir)
        if as_json:
            click.echo(encode_profile(found).decode(), nl=False)
            return
        tables = await frame_tables(client, target)
        pack = await packs.find(client, target.origin, target.digest, {ref.digest for ref in target.layers})
        try:
            rows = coverage(found, tables)
            in_pack = packed_bytes(found, target.layers, tables, pack) if pack is not None else None
        except ProfileError as problem:
            raise Failure(f"the profile {problem}", code=ExitCode.MALFORMED) from None
    show(Console(), f"{target.reference} ({source})", found, rows, in_pack)


async def _find(client: RegistryClient, target: Target, file: Path | None, run_dir: Path) -> tuple[Profile, str]:
    if file is not None:
        found: Profile | None = read_profile(file)
        return _fitting(found, target), str(file)
    socket = run_dir / "admin.sock"
    found = await ProfileClient(socket).get(target.digest) if socket.exists() else None
    if found is not None:
        return _fitting(found, target), "from this node"
    for pull, source in ((referrers.pull, "from the registry"), (referrers.pull_prediction, "predicted")):
        found = await pull(client, target.origin, target.digest, target.diff_ids)
        if found is not None:
            return found, source
    hint = f"record one: fastpull profile record {target.reference}"
    raise Failure(f"{target.reference} has no profile, here or in the registry", hint=hint, code=ExitCode.NOT_FOUND)


def _fitting(found: Profile | None, target: Target) -> Profile:
    assert found is not None
    try:
        found.check_fits(target.diff_ids)
    except ProfileError as problem:
        raise Failure(f"the profile {problem}", code=ExitCode.MALFORMED) from None
    return found


@profile.command("list", epilog=LIST_EXAMPLES)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_run_dir
def list_command(as_json: bool, run_dir: Path) -> None:
    """List the profiles of this node, and what is being recorded."""
    rows = run_async(ProfileClient(run_dir / "admin.sock").index())
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        state = "recording" if row["recording"] else row["problem"] or ("stored" if row["stored"] else "not stored")
        name = row["name"] or row["manifest"]
        click.echo(f"{name}  {row['reads']} ranges, {in_bytes(row['touched_bytes'])}, {state}")


# Push, remove, merge


@profile.command("push", epilog=PUSH_EXAMPLES)
@click.argument("image")
@click.option("--file", "file", type=_FILE, help="This profile, instead of the node's.")
@_platform
@_run_dir
@registry_options
def push_command(
    image: str, file: Path | None, platform: str | None, run_dir: Path, plain_http: tuple[str, ...]
) -> None:
    """Attach the profile of IMAGE to the image in its registry; the image's digest stays the same."""
    run_async(_push_found(image, file, platform, run_dir, plain_http))


async def _push_found(
    image: str, file: Path | None, platform: str | None, run_dir: Path, plain_http: Sequence[str]
) -> None:
    async with open_client(plain_http) as client:
        target = await find_target(client, image, platform)
        if file is not None:
            found: Profile | None = read_profile(file)
        else:
            found = await ProfileClient(run_dir / "admin.sock").get(target.digest)
        if found is None:
            hint = f"record one: fastpull profile record {image}"
            raise Failure(f"this node has no profile of {image}", hint=hint, code=ExitCode.NOT_FOUND)
        await _push(client, target, _fitting(found, target))


async def _push(client: RegistryClient, target: Target, found: Profile) -> None:
    made = await referrers.push(client, target.origin, target.digest, found)
    _say(f"{target.reference}: attached {made.digest}")


@profile.command("predict", epilog=PREDICT_EXAMPLES)
@click.argument("image")
@click.option("-o", "--output", type=_PATH, help="Write the profile to this file, and attach nothing.")
@_platform
@registry_options
def predict_command(image: str, output: Path | None, platform: str | None, plain_http: tuple[str, ...]) -> None:
    """Tell from IMAGE's files what a start will read, and attach that to the image, without running it.

    It follows the command of the image's config: its libraries, and what a Python program imports. Nodes use it until
    a start was recorded. No daemon is needed.
    """
    run_async(_predict(image, output, platform, plain_http))


async def _predict(image: str, output: Path | None, platform: str | None, plain_http: Sequence[str]) -> None:
    async with open_client(plain_http) as client:
        target = await find_target(client, image, platform)
        found = await predict_profile(client, target)
        if found is None:
            hint = f"record one: fastpull profile record {target.reference}"
            raise Failure(f"nothing can be told of a start of {target.reference}", hint=hint, code=ExitCode.NOT_FOUND)
        if output is not None:
            _write(output, encode_profile(found))
        else:
            made = await referrers.push(client, target.origin, target.digest, found, referrers.PREDICTION)
            _say(f"{target.reference}: attached {made.digest}")
    _say(f"{target.reference}: {_short(found)}")


def _write(path: Path, data: bytes) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_bytes(data)
    draft.replace(path)


@profile.command("pack", epilog=PACK_EXAMPLES)
@click.argument("image")
@click.option("--file", "file", type=_FILE, help="For this profile, instead of the node's or the registry's.")
@_platform
@_run_dir
@registry_options
def pack_command(
    image: str, file: Path | None, platform: str | None, run_dir: Path, plain_http: tuple[str, ...]
) -> None:
    """Attach the bytes that IMAGE's profile names to the image, in the order in which a start wants them.

    A start then downloads them with a few long requests instead of thousands of short ones. The registry stores them a
    second time. No daemon is needed.
    """
    run_async(_pack(image, file, platform, run_dir, plain_http))


async def _pack(image: str, file: Path | None, platform: str | None, run_dir: Path, plain_http: Sequence[str]) -> None:
    async with open_client(plain_http) as client:
        target = await find_target(client, image, platform)
        found, source = await _find(client, target, file, run_dir)
        try:
            pack, made = await push_pack(client, target, found, await frame_tables(client, target))
        except ProfileError as problem:
            raise Failure(f"the profile {problem}", code=ExitCode.MALFORMED) from None
    _say(f"{target.reference} ({source}): attached {made.digest}, {in_bytes(pack.size)} in {len(pack.ranges)} ranges")


@profile.command("rm", epilog=REMOVE_EXAMPLES)
@click.argument("image")
@click.option("--registry", "in_registry", is_flag=True, help="Those attached in the registry, not this node's.")
@_platform
@_run_dir
@registry_options
def remove_command(
    image: str, in_registry: bool, platform: str | None, run_dir: Path, plain_http: tuple[str, ...]
) -> None:
    """Remove this node's profile of IMAGE, or those in the registry and the packs beside them."""
    run_async(_remove(image, in_registry, platform, run_dir, plain_http))


async def _remove(
    image: str, in_registry: bool, platform: str | None, run_dir: Path, plain_http: Sequence[str]
) -> None:
    async with open_client(plain_http) as client:
        target = await find_target(client, image, platform)
        if in_registry:
            kinds = (referrers.RECORDED, referrers.PREDICTION, PACK)
            count = sum([await referrers.remove(client, target.origin, target.digest, kind) for kind in kinds])
        else:
            count = int(await ProfileClient(run_dir / "admin.sock").remove(target.digest))
    if not count:
        raise Failure(f"there was no profile of {image}", code=ExitCode.NOT_FOUND)
    _say(f"{target.reference}: removed {count}")


@profile.command("merge", epilog=MERGE_EXAMPLES)
@click.argument("files", nargs=-1, required=True, type=_FILE)
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Where to. [standard output]")
def merge_command(files: tuple[Path, ...], output: Path | None) -> None:
    """Merge the profiles in FILES; the order of first touch is the median of theirs."""
    data = encode_profile(merge_profiles([read_profile(file) for file in files]))
    if output is None:
        sys.stdout.write(data.decode())
        return
    _write(output, data)
