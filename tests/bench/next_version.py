"""The next build of an image: what a node that has the one before must fetch, beside what really differs."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from fastpull.demo.bench import Bench, Mode, Workload
from fastpull.demo.image import Layout
from layerformat.frames import Frame, FrameTable
from tests.bench.images import torch_image_next
from tests.bench.prepare import Prepared, converted, full_rate
from tests.bench.setting import Setting
from tests.bench.start_rows import MB
from tests.bench.table import Row, Target, figure
from tests.bench.touched import frame_tables


@dataclass(frozen=True, slots=True)
class NextVersion:
    """`image` is the source of what `prepared` has in the registry."""

    bench: Bench
    setting: Setting
    prepared: Prepared
    image: Layout

    def rows(self, workload: Workload) -> Iterator[Row]:
        """Bytes over the link for the whole new image, against the frames that no layer of the old one has."""
        self.setting.say("building and converting the next version")
        lazy = converted(self.setting.cache, torch_image_next(self.setting.cache, self.image))
        with full_rate(self.bench):
            reference = self.bench.push(str(lazy), "bench/fastpull:2")
        fetched, changed = [], []
        for _ in range(self.setting.runs):
            received, differing = self._once(reference, workload)
            self.setting.say(f"next version: {received / MB:.1f} MB came, {differing / MB:.1f} MB differ")
            fetched.append(received)
            changed.append(differing)
        yield Row(
            workload="a PyTorch server, one package changed",
            what="bytes fetched for all of it",
            ours=figure(fetched, "MB", scale=MB),
            base=figure(changed, "MB", scale=MB),
            base_name="frames that differ",
            target=Target(at_most=1.2),
        )

    def _once(self, reference: str, workload: Workload) -> tuple[float, float]:
        """Bytes that came over the link, and compressed bytes of the frames that are new."""
        old = Mode(name="old version", snapshotter="fastpull", reference=self.prepared.converted)
        new = Mode(name="next version", snapshotter="fastpull", reference=reference)
        with self.bench.node(old) as node:
            node.start(old, workload)
            known = _digests(frame_tables(node.daemon.root).values())
            before = set(frame_tables(node.daemon.root))
            seen = node.start(new, workload)
            added = [table for diff_id, table in frame_tables(node.daemon.root).items() if diff_id not in before]
            return seen.start.bytes_total, _new_bytes(added, known)


def _digests(tables: Iterable[FrameTable]) -> set[bytes]:
    return {frame.sha256 for table in tables for frame in _frames(table)}


def _new_bytes(tables: Iterable[FrameTable], known: set[bytes]) -> int:
    return sum(frame.size for table in tables for frame in _frames(table) if frame.sha256 not in known)


def _frames(table: FrameTable) -> Iterator[Frame]:
    return (table[number] for number in range(len(table)))
