"""`fastpull verify`: read a whole image from its registry and check every byte of it."""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from fastpull.aio import run_async
from fastpull.amounts import in_bytes
from fastpull.exit_codes import ExitCode
from fastpull.image_view import fetch_index
from fastpull.layer_check import LayerCheck
from fastpull.registry_access import image_manifests, open_client, registry_options
from fetcher.registry import Descriptor, DigestMismatch, Manifest, Origin, Platform, Reference, RegistryClient
from layerformat.annotations import LayerRef
from layerformat.errors import FormatError

EXAMPLES = """\b
Examples:
  fastpull verify registry.example/app:1
  fastpull verify --json registry.example/app@sha256:...

\b
Checked: every blob against its digest; of converted layers also the index, every frame against the index, and
the unpacked tar against the image's diff id. Exit code 5 if anything does not verify.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One layer's. `problem` is empty where it is good; `size` is in bytes."""

    digest: str
    size: int
    converted: bool
    problem: str = ""


@click.command(epilog=EXAMPLES)
@click.argument("reference", metavar="REF")
@click.option("--platform", help="Only this platform, as linux/arm64.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@registry_options
def verify(reference: str, platform: str | None, as_json: bool, plain_http: tuple[str, ...]) -> int:
    """Read the image REF from its registry and check every byte."""
    verdicts = run_async(_verify(reference, platform, plain_http))
    if as_json:
        click.echo(json.dumps([asdict(verdict) for verdict in verdicts], indent=2))
    else:
        _print(verdicts)
    return ExitCode.MALFORMED if any(verdict.problem for verdict in verdicts) else ExitCode.OK


async def _verify(reference: str, platform: str | None, plain_http: Sequence[str]) -> list[Verdict]:
    parsed = Reference.parse(reference)
    wanted = Platform.parse(platform) if platform is not None else None
    verdicts: dict[str, Verdict] = {}
    async with open_client(plain_http) as client:
        rows = [
            row
            for _, one in await image_manifests(client, parsed, wanted)
            for row in await _layers(client, parsed, one)
        ]
        with _progress() as progress:
            for layer, diff_id in rows:
                if layer.digest not in verdicts:
                    task = progress.add_task(layer.digest[7:19], total=layer.size)
                    advance = partial(progress.advance, task)
                    verdicts[layer.digest] = await _layer(client, parsed.origin, layer, diff_id, advance)
    return list(verdicts.values())


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)


async def _layers(client: RegistryClient, reference: Reference, manifest: Manifest) -> list[tuple[Descriptor, str]]:
    """Each layer with the diff id the image's configuration gives it."""
    body = b"".join([chunk async for chunk in client.pull_blob(reference.origin, manifest.config.digest)])
    document = json.loads(body)
    diff_ids = document.get("rootfs", {}).get("diff_ids", []) if isinstance(document, dict) else []
    if len(diff_ids) != len(manifest.layers):
        raise FormatError(f"{reference}: {len(manifest.layers)} layers, but {len(diff_ids)} diff ids in its config")
    return list(zip(manifest.layers, map(str, diff_ids), strict=True))


async def _layer(
    client: RegistryClient, origin: Origin, layer: Descriptor, diff_id: str, advance: Callable[[int], None]
) -> Verdict:
    ref = None
    try:
        ref = LayerRef.from_annotations(layer.annotations)
        await _read(client, origin, layer, ref, diff_id, advance)
    except (FormatError, DigestMismatch) as problem:
        return Verdict(digest=layer.digest, size=layer.size, converted=ref is not None, problem=str(problem))
    return Verdict(digest=layer.digest, size=layer.size, converted=ref is not None)


async def _read(
    client: RegistryClient,
    origin: Origin,
    layer: Descriptor,
    ref: LayerRef | None,
    diff_id: str,
    advance: Callable[[int], None],
) -> None:
    """Stream the layer through its checks; an ordinary layer has only its digest."""
    check = None
    if ref is not None:
        if (ref.digest, ref.size, ref.diff_id) != (layer.digest, layer.size, diff_id):
            raise FormatError(f"layer {layer.digest}: its annotations speak of another layer")
        check = LayerCheck(ref, await fetch_index(client, origin, ref))
    async for chunk in client.pull_blob(origin, layer.digest):
        if check is not None:
            await asyncio.to_thread(check.feed, chunk)
        advance(len(chunk))
    if check is not None:
        await asyncio.to_thread(check.finish)


def _print(verdicts: Sequence[Verdict]) -> None:
    for verdict in verdicts:
        kind = "fastpull" if verdict.converted else "ordinary"
        state = verdict.problem or "good"
        click.echo(f"{verdict.digest[7:19]}  {kind}  {in_bytes(verdict.size):>9}  {state}")
    bad = sum(bool(verdict.problem) for verdict in verdicts)
    click.echo(f"{len(verdicts)} layers, {bad or 'none'} bad")
