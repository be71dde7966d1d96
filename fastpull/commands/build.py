"""`fastpull build`: from a Dockerfile, or from an image that exists, to one converted tag in a registry."""

import os
import shlex
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from converter.convert import convert_image
from converter.errors import AuthError
from converter.options import DEFAULT_LEVEL, ConvertOptions, ConvertResult
from fastpull.aio import run_async
from fastpull.amounts import in_bytes
from fastpull.builders import BUILDERS, Builder, BuildRequest, find_builder
from fastpull.exit_codes import ExitCode
from fastpull.failures import Failure
from fastpull.plain_push import push_archive
from fastpull.registries import KINDS, destination, login_hint
from fastpull.registry_access import open_client, registry_options
from fetcher.registry import Platform, Reference

_FORMATS = {"docker": "docker", "fastpull": "fastpull", "nydus": "fastpull"}

EXAMPLES = """\b
Examples:
  fastpull build --image-path ./app --image registry.example/app:1
  fastpull build --image-path . --dockerfile Dockerfile.gpu --build-arg CUDA=12 --target serve --image r.example/app:2
  fastpull build --image registry.example/app:1                         # convert an image that is there, same tag
  fastpull build --from docker.io/library/python:3.12 --image registry.example/python:3.12
  fastpull build --registry gar --project-id p --repository r --image-path . --image app:1

\b
One image is pushed under one tag: plain runtimes run it as ever, fastpull starts it lazily. `--format docker`
alone pushes it unconverted. --dockerfile-path and --repository-url are older names of --image-path and --image.
Any failed step is a failed command.
"""


@click.command(epilog=EXAMPLES)
@click.option("--image", "--repository-url", "image", required=True, metavar="REF", help="Where to push it.")
@click.option(
    "--image-path",
    "--dockerfile-path",
    "path",
    type=click.Path(exists=True, path_type=Path),
    help="Directory with a Dockerfile, or the Dockerfile itself. Without it an existing image is converted.",
)
@click.option("--from", "source", metavar="SRC", help="Existing image to convert.  [default: the one at --image]")
@click.option("--dockerfile", metavar="FILE", help="In the directory, or elsewhere.  [default: Dockerfile]")
@click.option(
    "--builder",
    type=click.Choice(["auto", *BUILDERS]),
    default="auto",
    show_default=True,
    help="docker is buildx, as Docker's plugin or alone.",
)
@click.option("--registry", type=click.Choice(KINDS), default="auto", show_default=True, help="Checked against REF.")
@click.option("--project-id", help="With --registry gar and a bare image name.")
@click.option("--location", default="us-central1", show_default=True, help="With --registry gar and a bare name.")
@click.option("--repository", help="With --registry gar and a bare image name.")
@click.option("--format", "formats", default="docker,fastpull", show_default=True, help="docker, fastpull, or both.")
@click.option("--build-arg", "build_args", multiple=True, metavar="NAME=VALUE")
@click.option("--secret", "secrets", multiple=True, metavar="id=ID,src=FILE", help="Given to the build, not kept.")
@click.option("--target", help="Stage of the Dockerfile.")
@click.option("--platform", "platforms", multiple=True, help="As linux/arm64; several make one multi-platform image.")
@click.option("--no-cache", is_flag=True, help="Build every step anew.")
@click.option("--level", type=click.IntRange(1, 22), default=DEFAULT_LEVEL, show_default=True, help="Of zstd.")
@click.option("--dry-run", is_flag=True, help="Print what would be run.")
@registry_options
def build(
    image: str,
    path: Path | None,
    source: str | None,
    dockerfile: str | None,
    builder: str,
    registry: str,
    project_id: str | None,
    location: str,
    repository: str | None,
    formats: str,
    level: int,
    dry_run: bool,
    plain_http: tuple[str, ...],
    **given: Any,
) -> int:
    """Build an image, convert it, push it; or convert one that exists."""
    reference = destination(image, registry, project=project_id, location=location, repository=repository)
    converted = _wants_conversion(formats)
    given["platforms"] = tuple(dict.fromkeys(one for text in given["platforms"] for one in text.split(",")))
    options = _options(level, given["platforms"], whole=path is not None)
    if path is None:
        _check_no_build_flags(dockerfile, given)
        if dry_run:
            click.echo(f"convert {source or reference} to {reference}")
            return ExitCode.OK
        return _convert(source or str(reference), reference, options, plain_http)
    if source is not None:
        raise Failure("--from and --image-path exclude each other", code=ExitCode.USAGE)
    request = _request(path, dockerfile, {**given, "described": not converted})
    return _build(
        request, find_builder(builder, os.environ), reference, options if converted else None, plain_http, dry_run
    )


def _wants_conversion(formats: str) -> bool:
    names = [name.strip() for name in formats.split(",") if name.strip()]
    unknown = [name for name in names if name not in _FORMATS]
    if unknown or not names:
        hint = "docker, fastpull or docker,fastpull; a converted image runs everywhere, so one tag is enough"
        raise Failure(
            f"--format {formats}: not made here: {', '.join(unknown) or 'nothing'}", hint=hint, code=ExitCode.USAGE
        )
    return any(_FORMATS[name] == "fastpull" for name in names)


def _options(level: int, platforms: Sequence[str], *, whole: bool) -> ConvertOptions:
    if whole:
        # The builder was told which; the one it makes need not be this machine's.
        return ConvertOptions(level=level, all_platforms=True)
    return ConvertOptions(level=level, platforms=tuple(Platform.parse(one) for one in platforms))


def _check_no_build_flags(dockerfile: str | None, given: dict[str, Any]) -> None:
    """Flags of a build that will not happen are a mistake, not to be ignored."""
    asked = {"--build-arg": given["build_args"], "--secret": given["secrets"], "--target": given["target"]}
    asked |= {"--no-cache": given["no_cache"], "--dockerfile": dockerfile}
    for flag, value in asked.items():
        if value:
            raise Failure(f"{flag} needs --image-path: there is nothing to build", code=ExitCode.USAGE)


def _request(path: Path, dockerfile: str | None, given: dict[str, Any]) -> BuildRequest:
    context = path if path.is_dir() else path.parent
    file = _dockerfile(path, dockerfile)
    if not file.is_file():
        raise Failure(f"there is no {file}", hint="--dockerfile names another file", code=ExitCode.NOT_FOUND)
    # Builders differ in what a relative name of a Dockerfile is relative to.
    return BuildRequest(context=context, dockerfile=file.absolute(), **given)


def _dockerfile(path: Path, named: str | None) -> Path:
    if not path.is_dir():
        if named is not None:
            raise Failure(f"{path} is a Dockerfile already: --dockerfile names a second one", code=ExitCode.USAGE)
        return path
    inside = path / (named or "Dockerfile")
    return Path(named) if named is not None and not inside.is_file() and Path(named).is_file() else inside


def _build(
    request: BuildRequest,
    builder: Builder,
    reference: Reference,
    options: ConvertOptions | None,
    plain_http: Sequence[str],
    dry_run: bool,
) -> int:
    name = f"localhost/fastpull-build:{uuid.uuid4().hex[:12]}"
    with tempfile.TemporaryDirectory(prefix="fastpull-build-") as scratch:
        archive = Path(scratch) / "image.tar"
        if dry_run:
            for step in builder.steps(request, archive, name):
                click.echo(shlex.join(step))
            click.echo(f"push to {reference}{', converted' if options else ''}")
            return ExitCode.OK
        try:
            for step in builder.steps(request, archive, name):
                _step(step, builder)
        finally:
            for step in builder.cleanup(request, name):
                subprocess.run(step, capture_output=True, check=False)
        if options is None:
            return _push_plain(builder.source(archive), reference, plain_http)
        return _convert(builder.source(archive), reference, options, plain_http)


def _step(argv: Sequence[str], builder: Builder) -> None:
    """Run one step of a build with its output going to our stderr.

    Raises:
        Failure: it failed.
    """
    click.echo(f"+ {shlex.join(argv)}", err=True)
    # stdout is for the result: the digest that was pushed.
    status = subprocess.run(argv, stdout=sys.stderr, check=False).returncode
    if status != 0:
        hint = "its messages are above; nothing was pushed"
        raise Failure(f"{builder.name}: the build failed with status {status}", hint=hint, code=ExitCode.COMMAND_FAILED)


def _push_plain(source: str, reference: Reference, plain_http: Sequence[str]) -> int:
    digest = run_async(push_archive(source, reference, plain_http))
    click.echo(f"{reference}@{digest}")
    return ExitCode.OK


def _convert(source: str, reference: Reference, options: ConvertOptions, plain_http: Sequence[str]) -> int:
    click.echo(f"+ convert {source} and push it to {reference}", err=True)
    try:
        result = run_async(_converted(source, reference, options, plain_http))
    except AuthError as problem:
        raise Failure(str(problem), hint=login_hint(reference), code=ExitCode.DENIED) from None
    for image in result.images:
        size = sum(layer.size for layer in image.layers)
        click.echo(f"{image.platform or 'image'}: {len(image.layers)} layers, {in_bytes(size)}", err=True)
    click.echo(f"{reference}@{result.digest}")
    return ExitCode.OK


async def _converted(
    source: str, reference: Reference, options: ConvertOptions, plain_http: Sequence[str]
) -> ConvertResult:
    async with open_client(plain_http) as client:
        return await convert_image(source, str(reference), options, client=client)
