"""What is measured: one small class for each workload."""

import resource
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import zstandard

from fastpull.commands.demo import DEMO_WORKLOAD
from fastpull.demo.bench import Bench, Mode, Workload, in_turn
from fastpull.demo.image import Layout, Say, demo_image
from fastpull.demo.results import ColdStart
from fastpull.lab.network import LinkShape, ShapedLink
from fastpull.lab.registry import Registry
from fastpull.lab.workspace import Workspace
from tests.bench.table import Figure, Row, figure
from tests.harness.images import SampleImage, big_file_image

MB = 1e6
MIB = 1 << 20
GIGABIT = 1_000_000_000
WEIGHTS_BYTES = 4 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What the command line asks for. `cache` keeps images from one run to the next."""

    cache: Path
    runs: int
    say: Say


class Measured(Protocol):
    """A workload: a name for the command line, and the rows it gives."""

    name: str

    def rows(self, setting: Setting) -> Iterator[Row]: ...


class ColdStarts:
    """Starts one image cold on overlayfs and with fastpull, in turn, behind a link."""

    name = ""
    shape = LinkShape(rate_bits_s=GIGABIT, rtt_ms=5)
    target_ratio = ""

    def image(self, setting: Setting) -> Layout:
        raise NotImplementedError

    def workload(self) -> Workload:
        raise NotImplementedError

    def rows(self, setting: Setting) -> Iterator[Row]:
        starts = self._starts(setting, self.image(setting))
        ours = [start for start in starts if start.mode == "fastpull"]
        base = [start for start in starts if start.mode != "fastpull"]
        yield self._row("time to ready", base, ours, "ready_s", "s", target=self.target_ratio)
        yield self._row("time to container start", base, ours, "container_start_s", "s")
        yield self._row("time until the last byte came", base, ours, "complete_s", "s")
        yield self._row("bytes fetched to ready", base, ours, "bytes_to_ready", "MB", scale=MB)
        yield self._row("bytes fetched in all", base, ours, "bytes_total", "MB", scale=MB)
        yield self._row("daemon CPU, whole image", [], ours, "daemon_cpu_s", "s")
        idle, peak = "daemon_idle_rss_bytes", "daemon_peak_rss_bytes"
        yield self._row("daemon RSS idle, no image", [], ours, idle, "MiB", scale=MIB, target="<= 120 with 20 images")
        yield self._row("daemon RSS peak, streaming", [], ours, peak, "MiB", scale=MIB, target="<= 400")

    def _row(
        self,
        what: str,
        base: list[ColdStart],
        ours: list[ColdStart],
        metric: str,
        unit: str,
        *,
        scale: float = 1,
        target: str = "",
    ) -> Row:
        def of(starts: list[ColdStart]) -> Figure:
            return figure([start.metrics()[metric] for start in starts], unit, scale=scale)

        name = f"{self.name} ({self.shape})"
        return Row(workload=name, what=what, ours=of(ours), base=of(base) if base else None, target=target)

    def _starts(self, setting: Setting, image: Layout) -> list[ColdStart]:
        starts = []
        with Workspace() as space, ShapedLink(self.shape) as link, Registry(space, link) as registry:
            bench = Bench(space, link, registry, setting.say)
            plain = bench.push(str(image), "bench/image:plain")
            converted = bench.convert(plain, "bench/image:fastpull")
            modes = [
                Mode(name="overlayfs", snapshotter="overlayfs", reference=plain),
                Mode(name="fastpull", snapshotter="fastpull", reference=converted),
            ]
            for mode in in_turn(modes, setting.runs):
                start = bench.cold_start(mode, self.workload())
                setting.say(f"{self.name}, {mode.name}: ready after {start.ready_s:.2f} s")
                starts.append(start)
        return starts


class DemoStart(ColdStarts):
    """The demo's image: a scientific Python stack behind an HTTP server."""

    name = "demo"

    def image(self, setting: Setting) -> Layout:
        return demo_image(setting.cache, setting.say)

    def workload(self) -> Workload:
        return DEMO_WORKLOAD


class WeightsRead(ColdStarts):
    """An image with one file of incompressible data, read once from front to back; ready is the end of the reader."""

    name = "weights"
    size_bytes = WEIGHTS_BYTES

    def image(self, setting: Setting) -> Layout:
        directory = setting.cache / f"weights-{self.size_bytes >> 20}"
        if not directory.exists():
            setting.say(f"{self.size_bytes >> 20} MiB of weights")
            with tempfile.TemporaryDirectory(prefix="build-", dir=setting.cache) as scratch:
                self._build(Path(scratch) / "layout").layout.rename(directory)
        return Layout(directory, "big")

    def _build(self, directory: Path) -> SampleImage:
        return big_file_image(directory, size_bytes=self.size_bytes)

    def workload(self) -> Workload:
        return Workload(name=self.name, arguments=("/bin/sha256sum", "/big"))


class SmallWeightsRead(WeightsRead):
    """The same with a file that is quick to make."""

    name = "weights-small"
    size_bytes = 256 * MIB


class ConverterSpeed:
    """`fastpull convert` of the demo's image with one job, beside plain zstd of the same level over the same tars."""

    name = "converter"
    level = 3

    def rows(self, setting: Setting) -> Iterator[Row]:
        source = demo_image(setting.cache, setting.say)
        ours, base = [], []
        for _ in range(setting.runs):
            plain_bytes, seconds = self._plain(source.directory)
            base.append(plain_bytes / MB / seconds)
            ours.append(plain_bytes / MB / self._convert_cpu_s(str(source)))
            setting.say(f"{self.name}: {ours[-1]:.0f} MB/s of CPU, gunzip and zstd alone {base[-1]:.0f}")
        what = "tar bytes per second of CPU"
        name = f"gunzip | zstd -{self.level}"
        yield Row(workload=self.name, what=what, ours=figure(ours, "MB/s"), base=figure(base, "MB/s"), base_name=name)

    def _convert_cpu_s(self, source: str) -> float:
        """CPU seconds of one conversion into a layout, by what the system charges a finished child."""
        with tempfile.TemporaryDirectory(prefix="fp-", dir="/var/tmp") as scratch:
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            command = [str(Path(sys.executable).with_name("fastpull")), "convert", "--jobs", "1"]
            options = ["--level", str(self.level)]
            subprocess.run([*command, *options, source, f"oci:{scratch}/out:x"], check=True, stdout=subprocess.DEVNULL)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

    def _plain(self, layout: Path) -> tuple[int, float]:
        """Bytes of tar, and CPU seconds to decompress the source and compress it again, in this thread alone."""
        total = 0
        before = time.thread_time()
        for blob in sorted((layout / "blobs" / "sha256").iterdir()):
            if blob.stat().st_size > MIB:
                total += self._recompress(blob)
        return total, time.thread_time() - before

    def _recompress(self, blob: Path) -> int:
        decoder, encoder = zlib.decompressobj(wbits=31), zstandard.ZstdCompressor(level=self.level).compressobj()
        total = 0
        with blob.open("rb") as file:
            while chunk := file.read(MIB):
                plain = decoder.decompress(chunk)
                total += len(plain)
                encoder.compress(plain)
        return total


ALL: tuple[Measured, ...] = (DemoStart(), ConverterSpeed(), SmallWeightsRead(), WeightsRead())
# Without names on the command line: what takes minutes, not what takes tens of gigabytes.
DEFAULT = ("demo", "converter", "weights-small")
