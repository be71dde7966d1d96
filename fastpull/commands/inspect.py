"""`fastpull inspect`: is this image converted, and what is it made of?"""

import json
from collections.abc import Sequence

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fastpull.aio import run_async
from fastpull.amounts import in_bytes
from fastpull.image_view import ImageView, LayerView, view_image
from fastpull.registry_access import open_client, registry_options
from fetcher.registry import Platform, Reference

EXAMPLES = """\b
Examples:
  fastpull inspect registry.example/app:1
  fastpull inspect --platform linux/arm64 registry.example/app:1
  fastpull inspect --json registry.example/app:1 | jq '.[].converted'
"""


@click.command(epilog=EXAMPLES)
@click.argument("reference", metavar="REF")
@click.option("--platform", help="Only this platform, as linux/arm64.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@registry_options
def inspect(reference: str, platform: str | None, as_json: bool, plain_http: tuple[str, ...]) -> None:
    """Show whether the image REF is converted, and its layers, indexes and profiles."""
    images = run_async(_read(reference, platform, plain_http))
    if as_json:
        click.echo(json.dumps([image.to_json() for image in images], indent=2))
        return
    for image in images:
        _print(image)


async def _read(reference: str, platform: str | None, plain_http: Sequence[str]) -> list[ImageView]:
    async with open_client(plain_http) as client:
        wanted = Platform.parse(platform) if platform is not None else None
        return await view_image(client, Reference.parse(reference), wanted)


def _print(image: ImageView) -> None:
    console = Console()
    console.print(f"\n[bold]{escape(image.reference)}[/] {image.platform}")
    console.print(f"  manifest   {image.digest}")
    console.print(f"  size       {in_bytes(image.size)} in {len(image.layers)} layers")
    console.print(f"  converted  {_told(image)}")
    for referrer in image.referrers:
        console.print(f"  attached   {escape(referrer.artifact_type)} ({in_bytes(referrer.size)})")
    table = Table(box=None, pad_edge=False, padding=(0, 2))
    for heading in ("", "layer", "kind", "size", "unpacked", "frames", "index"):
        table.add_column(heading, justify="right" if heading in ("size", "unpacked", "frames", "index") else "left")
    for number, layer in enumerate(image.layers):
        table.add_row(str(number), *_row(layer))
    console.print(table)


def _told(image: ImageView) -> str:
    if image.converted == "yes":
        return "[green]yes[/]: it starts lazily"
    if image.converted == "partly":
        return "[yellow]partly[/]: the other layers are downloaded whole before the start"
    return "[red]no[/]: convert it with `fastpull convert SRC DST`"


def _row(layer: LayerView) -> list[str]:
    kind = "fastpull" if layer.converted else layer.problem or layer.media_type.rpartition(".")[2]
    optional = [layer.tar_size, layer.index_size]
    unpacked, index = (in_bytes(size) if size is not None else "" for size in optional)
    frames = "" if layer.frames is None else str(layer.frames)
    return [layer.digest[7:19], escape(kind), in_bytes(layer.size), unpacked, frames, index]
