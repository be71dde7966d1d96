"""(e) what converting costs: CPU per byte, beside plain programs that decompress and compress the same tars."""

import resource
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import zstandard

from tests.bench.images import demo_server_image
from tests.bench.setting import MIB, Setting
from tests.bench.start_rows import MB
from tests.bench.table import Row, figure
from tests.bench.workload import Outcome


class ConverterSpeed:
    """`fastpull convert` of the demo's image with one job, beside plain zstd of the same level over the same tars."""

    letter = "e"
    name = "converter"
    modes: tuple[str, ...] = ()
    level = 3

    def run(self, setting: Setting) -> Outcome:
        source = demo_server_image(setting.cache, setting.say)
        ours, base = [], []
        for _ in range(setting.runs):
            plain_bytes, seconds = self._plain(source.directory)
            base.append(plain_bytes / MB / seconds)
            ours.append(plain_bytes / MB / self._convert_cpu_s(str(source)))
            setting.say(f"{self.name}: {ours[-1]:.0f} MB/s of CPU, gunzip and zstd alone {base[-1]:.0f}")
        what = "tar bytes per second of CPU"
        name = f"gunzip | zstd -{self.level}"
        rate = Row(workload=self.name, what=what, ours=figure(ours, "MB/s"), base=figure(base, "MB/s"), base_name=name)
        return Outcome(rows=[rate])

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
