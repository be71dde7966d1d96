"""(f) what the daemon costs when nothing happens: memory and CPU with twenty images mounted."""

import io
import random
import tarfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from fastpull.demo.bench import Mode, Node
from fastpull.demo.image import Layout
from fastpull.lab.cost import cost_of
from fastpull.lab.layout import ImageInput, LayerInput, WriteTar, write_layout
from fastpull.lab.workspace import Workspace
from tests.bench.images import TAG, kept
from tests.bench.prepare import converted, full_rate, laboratory
from tests.bench.setting import MIB, Setting
from tests.bench.table import Row, Target, figure
from tests.bench.workload import Outcome

IMAGES, FILES, FILE_BYTES, LARGE_BYTES = 20, 4000, 1500, 48 * MIB
QUIET_S, WATCH_S = 5, 20


def _layer(seed: int) -> WriteTar:
    """Many small files and a large one, different for each seed."""

    def write(sink: BinaryIO) -> None:
        chance = random.Random(seed)
        with tarfile.open(fileobj=sink, mode="w|", format=tarfile.PAX_FORMAT) as archive:
            for number in range(FILES):
                _add(archive, f"data-{seed}/{number // 100:02}/{number:04}", chance.randbytes(FILE_BYTES))
            _add(archive, f"data-{seed}/large", chance.randbytes(LARGE_BYTES))

    return write


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    header = tarfile.TarInfo(name)
    header.size = len(data)
    archive.addfile(header, io.BytesIO(data))


class NodeCost:
    """Everything is local by the time it is measured."""

    letter = "f"
    name = "idle daemon"
    modes: tuple[str, ...] = ()

    def run(self, setting: Setting) -> Outcome:
        images = [self._image(setting.cache, seed) for seed in range(IMAGES)]
        with laboratory(setting) as bench, full_rate(bench):
            setting.say(f"pushing {IMAGES} images")
            references = [
                bench.push(str(converted(setting.cache, image)), f"bench/idle-{seed}:1")
                for seed, image in enumerate(images)
            ]
            mode = Mode(name="idle", snapshotter="fastpull", reference=references[0])
            with bench.node(mode) as node, ExitStack() as stack:
                empty_rss = cost_of(node.daemon.pid).rss_bytes
                for reference in references:
                    stack.enter_context(_view(bench.workspace, node, reference))
                return Outcome(rows=list(self._rows(node, empty_rss)))

    def _image(self, cache: Path, seed: int) -> Layout:
        def build(made: Path) -> None:
            layer = LayerInput(write=_layer(seed), compression="zstd")
            write_layout(made, TAG, ImageInput(layers=[layer], command=["/none"]))

        return Layout(kept(cache, f"idle{seed:02}", (str(FILES), str(FILE_BYTES), str(LARGE_BYTES)), build), TAG)

    def _rows(self, node: Node, empty_rss: int) -> Iterator[Row]:
        time.sleep(QUIET_S)
        before = cost_of(node.daemon.pid)
        time.sleep(WATCH_S)
        after = cost_of(node.daemon.pid)
        share = (after.cpu_s - before.cpu_s) / WATCH_S * 100
        empty = figure([empty_rss], "MiB", scale=MIB)
        yield Row(
            workload="f idle daemon",
            what=f"RSS with {IMAGES} images mounted",
            ours=figure([after.rss_bytes], "MiB", scale=MIB),
            base=empty,
            base_name="with none",
            target=Target(at_most=120, of_ratio=False),
        )
        target = Target(at_most=1, of_ratio=False)
        yield Row(workload="f idle daemon", what="CPU", ours=figure([share], "% of a core"), target=target)


@contextmanager
def _view(space: Workspace, node: Node, reference: str) -> Iterator[None]:
    name = reference.rpartition("/")[2].partition(":")[0]
    point = space.directory(f"view-{name}")
    node.containerd.nerdctl("pull", "--quiet", reference, snapshotter="fastpull")
    node.containerd.ctr("images", "mount", "--snapshotter", "fastpull", reference, str(point))
    try:
        yield
    finally:
        node.containerd.ctr("images", "unmount", "--rm", "--snapshotter", "fastpull", str(point))
