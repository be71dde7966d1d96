"""The data of a report: from the daemon, from containerd, and from the layers' indexes on this node."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastpull.daemon_client import Daemon, ask, touches
from fastpull.exit_codes import ExitCode
from fastpull.failures import Failure
from fastpull.local_images import LocalImage, canonical, local_images
from fastpull.profile_client import ProfileClient
from fastpull.start_report.findings import Findings, Inputs, find
from fastpull.start_report.trace import FileMap, Trace, starts
from fastpull.status_view import image_lines, relevant
from fetcher.layers.layer import directory_name
from fetcher.profiles.profile import Profile
from layerformat.annotations import LayerRef
from layerformat.erofs_read import read_metadata
from layerformat.errors import FormatError
from layerformat.frames import FrameTable
from layerformat.index import Index, open_index


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """Where the daemon and containerd of this node are."""

    root: Path
    run_dir: Path
    containerd_address: Path
    namespace: str
    snapshotter: str


async def gather(node: Node, image: str, number: int | None) -> Findings:
    """The findings of one start of an image: the one with the number, or the first.

    Raises:
        Failure: no such image, or nothing of it was read lazily since the daemon came up.
    """
    admin = node.run_dir / "admin.sock"
    daemon, read = await ask(admin), await touches(admin)
    found = await _image(node, image)
    digests = [str(layer.digest) for layer in found.layers]
    trace = _chosen(starts(read, digests), number, found.name)
    indexes = await asyncio.to_thread(_indexes, node.root, found)
    inputs = Inputs(
        lines=image_lines(found, daemon, node.snapshotter),
        files=await asyncio.to_thread(_file_maps, indexes),
        frame_bytes=_frame_bytes(trace, {number: index.frames for number, index in indexes.items()}),
        fetched=_fetched(daemon, digests),
        named=_named(await ProfileClient(admin).replayed(found.digest), indexes),
    )
    return find(trace, inputs)


def _named(profile: Profile | None, indexes: Mapping[int, Index]) -> dict[int, list[tuple[int, int]]] | None:
    """What a replayed profile names of each layer, by layer number."""
    if profile is None:
        return None
    numbers = {index.diff_id: number for number, index in indexes.items()}
    named: dict[int, list[tuple[int, int]]] = {number: [] for number in indexes}
    for read in profile.reads:
        if (number := numbers.get(profile.layers[read.layer])) is not None:
            named[number].append((read.offset, read.end))
    return named


async def _image(node: Node, image: str) -> LocalImage:
    images = await local_images(str(node.containerd_address), node.namespace)
    found = relevant(images, node.snapshotter, canonical(image))
    if not found:
        hint = f"nerdctl --namespace {node.namespace} images lists what there is"
        raise Failure(f"there is no image {image} here", hint=hint, code=ExitCode.NOT_FOUND)
    return found[0]


def _chosen(traces: Sequence[Trace], number: int | None, image: str) -> Trace:
    if not traces:
        hint = "reads are remembered while a layer is incomplete, and since the daemon came up; start it cold again"
        raise Failure(f"nothing of {image} was read lazily", hint=hint, code=ExitCode.NOT_FOUND)
    if number is not None and not 1 <= number <= len(traces):
        raise Failure(f"there are {len(traces)} starts, not {number}", code=ExitCode.USAGE)
    return traces[(number or 1) - 1]


def _indexes(root: Path, image: LocalImage) -> dict[int, Index]:
    """By layer number; a layer whose index is not on this node, or not sound, is told of without its files."""
    found = {}
    for number, layer in enumerate(image.layers):
        try:
            ref = LayerRef.from_annotations(layer.annotations)
            if ref is not None:
                data = (root / "layers" / directory_name(ref.digest) / "index").read_bytes()
                found[number] = open_index(data, ref)
        except (OSError, FormatError):
            continue
    return found


def _file_maps(indexes: Mapping[int, Index]) -> dict[int, FileMap]:
    return {number: FileMap(read_metadata(index.metadata)) for number, index in indexes.items()}


def _frame_bytes(trace: Trace, tables: Mapping[int, FrameTable]) -> int:
    """Unpacked bytes of the frames that hold what was read: the least that had to be fetched for it."""
    touched: dict[int, set[int]] = {number: set() for number in tables}
    for read in trace.reads:
        if read.layer in tables:
            table = tables[read.layer]
            touched[read.layer].update(table.covering(read.offset, min(read.offset + read.count, table.tar_size)))
    return sum(tables[number][frame].length for number, frames in touched.items() for frame in frames)


def _fetched(daemon: Daemon, digests: Sequence[str]) -> dict[str, int]:
    """Compressed bytes by reason, of the image's layers, each once."""
    total: dict[str, int] = {}
    for digest in dict.fromkeys(digests):
        layer = daemon.layers.get(digest)
        for reason, count in (layer.fetched if layer else {}).items():
            total[reason] = total.get(reason, 0) + count
    return total
