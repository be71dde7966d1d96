"""Cold starts of a server: an image, and every way of starting it, beside the limit and the targets."""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fastpull.demo.bench import Bench, Mode, Workload
from fastpull.demo.image import Layout
from tests.bench import rivals, steady, trials
from tests.bench.images import demo_server_image, imports_image, torch_image
from tests.bench.next_version import NextVersion
from tests.bench.prepare import Prepared, foretell, laboratory, learn, push, push_rivals
from tests.bench.setting import Setting
from tests.bench.start_rows import OURS, StartRows
from tests.bench.table import Row
from tests.bench.trials import Trial
from tests.bench.workload import Outcome
from tests.harness import UNRECORDED

_WITHOUT_PACK = "[profiles]\npacks = false\n"
PORT = ("PORT={port}",)
ENDPOINT = "http://127.0.0.1:{port}/"
# Decompression of gzip by a program of its own is containerd's default where there is one; a profile needs a first
# start to be recorded; "local" starts what is on the disk already.
MODES = (
    "overlayfs",
    "overlayfs-pigz",
    *OURS,
    "eager",
    *(rival.name for rival in rivals.ALL),
    "local",
    "next",
)
_PACKED = frozenset({"fastpull-packed", "fastpull-along-packed"})
_ALONG = frozenset({"fastpull-along", "fastpull-along-packed"})
_LEARNT = _PACKED | _ALONG | {"fastpull-profile"}


class ServerStarts:
    """Ready is the first HTTP 200."""

    letter = ""
    name = ""
    modes: tuple[str, ...] = MODES[:-1]
    # Below the root of the image: what `steady` reads.
    site = Path("opt/app/site")
    modules: tuple[str, ...] = ()

    def image(self, setting: Setting) -> Layout:
        raise NotImplementedError

    def workload(self) -> Workload:
        return Workload(name=self.name, environment=PORT, endpoint=ENDPOINT)

    def run(self, setting: Setting) -> Outcome:
        image = self.image(setting)
        with laboratory(setting) as bench:
            prepared = push_rivals(bench, setting, push(bench, setting, image), image)
            # The limit needs to know what a start touches, so the recording is made for every choice of modes but one.
            if any(map(setting.wants, _LEARNT | {"fastpull", "fastpull-predicted"})):
                along, packs = (any(map(setting.wants, names)) for names in (_ALONG, _PACKED))
                prepared = learn(bench, setting, prepared, self.workload(), along=along, packs=packs)
            if setting.wants("fastpull-predicted"):
                prepared = foretell(bench, setting, prepared)
            done = list(self._trials(bench, setting, prepared))
            more = list(self._more(bench, setting, prepared))
        title = f"{self.letter} {self.name} ({setting.shape})"
        rows = StartRows(title, setting.shape, prepared.touched, done).rows()
        values: dict[str, Any] = {"touched": prepared.touched.to_json() if prepared.touched else None}
        return Outcome(rows=[*rows, *more], trials=tuple(done), values=values)

    def _trials(self, bench: Bench, setting: Setting, prepared: Prepared) -> Iterator[Trial]:
        modes = [mode for mode in all_modes(prepared) if setting.wants(mode.name)]
        local = local_modes(prepared) if setting.wants("local") else []
        yield from trials.in_turn(bench, modes, self.workload(), setting.runs, setting.say, local)

    def _more(self, bench: Bench, setting: Setting, prepared: Prepared) -> Iterator[Row]:
        if setting.steady:
            title = f"{self.letter} {self.name}, all local"
            yield from steady.rows(bench, setting, prepared, title=title, site=self.site, modules=self.modules)


def all_modes(prepared: Prepared) -> list[Mode]:
    """The cold ways, the reference first."""
    eager = '[fetcher]\ndata_plane = "eager"\n'
    modes = [_full("overlayfs", prepared.plain, {"CONTAINERD_DISABLE_PIGZ": "1"})]
    if shutil.which("unpigz"):
        modes.append(_full("overlayfs-pigz", prepared.plain, {}))
    modes += [_lazy("fastpull", prepared.converted), _lazy("eager", prepared.converted, eager)]
    if prepared.predicted:
        modes.append(_lazy("fastpull-predicted", prepared.predicted))
    for name, packed, reference in (
        ("fastpull-profile", "fastpull-packed", prepared.profiled),
        ("fastpull-along", "fastpull-along-packed", prepared.along),
    ):
        modes += [_lazy(name, reference, _WITHOUT_PACK), _lazy(packed, reference)] if reference else []
    return modes + [Mode(name=name, snapshotter=name, reference=where) for name, where in prepared.rivals.items()]


def _full(name: str, reference: str, environment: Mapping[str, str]) -> Mode:
    return Mode(name=name, snapshotter="overlayfs", reference=reference, containerd_environment=environment)


def _lazy(name: str, reference: str, config: str = "") -> Mode:
    return Mode(name=name, snapshotter="fastpull", reference=reference, daemon_config=config)


def local_modes(prepared: Prepared) -> list[Mode]:
    """What is on the disk in full before it is measured."""
    return [_full("overlayfs", prepared.plain, {}), _lazy("fastpull", prepared.converted, UNRECORDED)]


class TorchServer(ServerStarts):
    """(a) torch with CUDA wheels, transformers, FastAPI: gigabytes of which a start touches a small part."""

    letter = "a"
    name = "PyTorch server"
    modes = MODES
    modules = ("torch",)

    def image(self, setting: Setting) -> Layout:
        return torch_image(setting.cache, setting.say)

    def _more(self, bench: Bench, setting: Setting, prepared: Prepared) -> Iterator[Row]:
        yield from super()._more(bench, setting, prepared)
        if setting.wants("next"):
            yield from NextVersion(bench, setting, prepared, self.image(setting)).rows(self.workload())


class ImportsServer(ServerStarts):
    """(c) thousands of small modules, all of them imported."""

    letter = "c"
    name = "small modules"
    modules = tuple(f"package_{number:03}" for number in range(40))

    def image(self, setting: Setting) -> Layout:
        return imports_image(setting.cache, setting.say)


class DemoServer(ServerStarts):
    """(d) the image of `fastpull demo`."""

    letter = "d"
    name = "demo"
    site = Path("opt/demo/site")
    modules = ("numpy",)

    def image(self, setting: Setting) -> Layout:
        return demo_server_image(setting.cache, setting.say)
