"""(b) one large file of incompressible bytes, read once: how near the link a reader comes.

Held against programs that only move the same bytes from the same registry: `curl | zstd -dc > file`, and several
`curl` of a part each.
"""

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastpull.demo.bench import Bench, Mode, Workload
from fastpull.demo.image import Layout
from fastpull.lab.process import LabError
from tests.bench import trials
from tests.bench.images import PROGRAM, manifest, weights_image
from tests.bench.prepare import laboratory, push
from tests.bench.setting import MIB, Setting
from tests.bench.start_rows import MB
from tests.bench.starts import all_modes
from tests.bench.table import Figure, Row, Target, figure
from tests.bench.trials import Trial
from tests.bench.workload import Outcome

STREAMS = 4
ONE, MANY = "curl | zstd -dc", f"{STREAMS} x curl"
_READS = ("read", "mmap")
_LINK = Target(at_least=0.9)
_UNSHAPED = Target(at_least=0.8)
_LOCAL = Target(at_most=1.1)


@dataclass(frozen=True, slots=True)
class Blob:
    """A layer of the converted image at its registry."""

    url: str
    size: int

    def one_stream(self, scratch: Path) -> float:
        """Seconds of `curl | zstd -dc > file`."""
        return _timed(['curl -sfS "$1" | zstd -dcq > "$2"'], self.url, str(scratch / "file"))

    def many_streams(self, scratch: Path) -> float:
        """Seconds of STREAMS ranged requests at a time, each into a file of its own."""
        step = -(-self.size // STREAMS)
        parts = [f"{start}-{min(start + step, self.size) - 1}" for start in range(0, self.size, step)]
        # Each by its number: `wait -n` fails where all have ended before it is called.
        script = (
            'url=$1; to=$2; shift 2; for part; do curl -sfS -r "$part" -o "$to/$part" "$url" & all="$all $!"; done; '
            "for one in $all; do wait $one || exit 1; done"
        )
        return _timed([script], self.url, str(scratch), *parts)


@dataclass(frozen=True, slots=True)
class Plain:
    """Seconds of plain programs: the weights through zstd into a file; all layers of the image in parallel parts."""

    one: Figure
    many: Figure


def _timed(script: list[str], *arguments: str) -> float:
    began = time.monotonic()
    done = subprocess.run(["bash", "-o", "pipefail", "-c", *script, "bench", *arguments], check=False)
    if done.returncode:
        raise LabError(f"{script[0]}: exit {done.returncode}")
    return time.monotonic() - began


class WeightsRead:
    """Ready is the end of the reader."""

    letter = "b"
    name = "weights"
    modes = ("overlayfs", "overlayfs-pigz", "fastpull", "eager")

    def run(self, setting: Setting) -> Outcome:
        image = weights_image(setting.cache, setting.say, setting.weights_bytes)
        done: dict[str, list[Trial]] = {}
        with laboratory(setting) as bench:
            prepared = push(bench, setting, image)
            blobs = _blobs(bench, prepared.layout)
            plain = self._plain(bench, setting, blobs)
            for kind in _READS:
                modes = [mode for mode in all_modes(prepared) if setting.wants(mode.name) and _fits(mode, kind)]
                done[kind] = list(trials.in_turn(bench, modes, self._workload(kind), setting.runs, setting.say))
        rows = list(self._rows(setting, done, plain, blobs[0].size))
        return Outcome(rows=rows, trials=tuple(done["read"]), values=_values(done))

    def _workload(self, kind: str) -> Workload:
        return Workload(name=self.name, arguments=("/usr/bin/python3", f"/{PROGRAM}", kind))

    def _plain(self, bench: Bench, setting: Setting, blobs: list[Blob]) -> Plain:
        one, many = [], []
        for _ in range(setting.runs):
            one.append(_alone(bench, blobs[0].one_stream))
            many.append(sum(_alone(bench, blob.many_streams) for blob in blobs))
            setting.say(f"{ONE}: {one[-1]:.2f} s; {MANY}: {many[-1]:.2f} s")
        return Plain(figure(one, "s"), figure(many, "s"))

    def _rows(self, setting: Setting, done: dict[str, list[Trial]], plain: Plain, size: int) -> Iterator[Row]:
        title = f"b weights {setting.weights_bytes // MIB} MiB ({setting.shape})"
        for kind in _READS:
            for mode in dict.fromkeys(trial.mode for trial in done[kind]):
                mine = [trial for trial in done[kind] if trial.mode == mode]
                what = f"{mode}: {kind}, "
                ours = mode == "fastpull"
                rate = figure([size / MB / trial.start.ready_s for trial in mine], "MB/s")
                if link := setting.shape.rate_bits_s:
                    base, name, target = figure([link / 8 / MB], "MB/s"), "link", _LINK
                else:
                    speeds = [size / MB / seconds for seconds in plain.one.values]
                    base, name, target = figure(speeds, "MB/s"), ONE, _UNSHAPED
                yield Row(
                    workload=title,
                    what=f"{what}rate from the request to the reader's end",
                    ours=rate,
                    base=base,
                    base_name=name,
                    target=target if ours else None,
                )
                yield Row(
                    workload=title,
                    what=f"{what}time until every byte is local",
                    ours=figure([max(trial.start.complete_s, 0.001) for trial in mine], "s"),
                    base=plain.many,
                    base_name=MANY,
                    target=_LOCAL if ours else None,
                )
                if mode != "overlayfs":
                    cpu = [trial.start.daemon_cpu_s for trial in mine]
                    yield Row(workload=title, what=f"{what}daemon CPU", ours=figure(cpu, "s"))
                    peak = figure([trial.start.daemon_peak_rss_bytes for trial in mine], "MiB", scale=MIB)
                    yield Row(
                        workload=title,
                        what=f"{what}daemon RSS at most",
                        ours=peak,
                        target=Target(at_most=400, of_ratio=False),
                    )


def _fits(mode: Mode, kind: str) -> bool:
    """A full pull is the same however the file is read afterwards."""
    return kind == "read" or mode.name == "fastpull"


def _alone(bench: Bench, download: Callable[[Path], float]) -> float:
    """Seconds of one download into an empty directory, with nothing but the registry's blobs in the page cache."""
    scratch = bench.workspace.directory("plain")
    bench.make_cold()
    seconds = download(scratch)
    shutil.rmtree(scratch)
    return seconds


def _blobs(bench: Bench, layout: Layout) -> list[Blob]:
    """The layers' blobs, the largest first."""
    url = f"http://{bench.registry.host}/v2/bench/fastpull/blobs"
    blobs = [Blob(f"{url}/{layer['digest']}", int(layer["size"])) for layer in manifest(layout)["layers"]]
    return sorted(blobs, key=lambda blob: -blob.size)


def _values(done: dict[str, list[Trial]]) -> dict[str, Any]:
    return {kind: [json.loads(json.dumps(trial.to_json())) for trial in of] for kind, of in done.items()}
