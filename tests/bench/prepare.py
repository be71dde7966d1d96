"""An image made ready in the registry: as it is, converted, with its profile beside it, and cut along its profile."""

import asyncio
import hashlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from fastpull.demo.bench import CONVERT_TIMEOUT_S, Bench, Mode, Workload
from fastpull.demo.image import Layout
from fastpull.lab.network import LinkShape, ShapedLink
from fastpull.lab.process import LabError, run
from fastpull.lab.registry import Registry
from fastpull.lab.workspace import Workspace
from fetcher.profiles import referrers
from fetcher.profiles.profile import decode_profile
from fetcher.registry import Reference, RegistryClient, RegistryConfig
from tests.bench import rivals
from tests.bench.admin import ask
from tests.bench.images import TAG, kept
from tests.bench.setting import Setting
from tests.bench.touched import Touched, touched_by

TOP = Path(__file__).resolve().parents[2]
# Longer than any start: the recording is ended by request.
_RECORDING = "[profiles]\nwindow_s = 3000.0\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """References in the registry; `layout` is the converted image on this disk.

    `profiled`, `along` and `touched` need a recorded start, `predicted` does without; `rivals` are other snapshotters'
    own, by their names.
    """

    layout: Layout
    plain: str
    converted: str
    predicted: str = ""
    profiled: str = ""
    along: str = ""
    touched: Touched | None = None
    rivals: Mapping[str, str] = field(default_factory=dict)


@contextmanager
def laboratory(setting: Setting) -> Iterator[Bench]:
    """Registry and link for one workload."""
    with (
        Workspace(keep=setting.keep) as space,
        ShapedLink(setting.shape) as link,
        Registry(space, link, storage=True) as registry,
    ):
        yield Bench(space, link, registry, setting.say)
    for line in space.left:
        setting.say(f"swept up: {line}")


@contextmanager
def full_rate(bench: Bench) -> Iterator[None]:
    """The link without its rate limit: for what is prepared, not measured."""
    shape = bench.link.shape
    bench.link.reshape(LinkShape(rtt_ms=shape.rtt_ms))
    try:
        yield
    finally:
        bench.link.reshape(shape)


def converted(cache: Path, image: Layout) -> Layout:
    """The image converted, kept for as long as neither it nor the converter's code changes."""
    code = hashlib.sha256()
    for package in ("converter", "layerformat"):
        for source in sorted((TOP / package).glob("*.py")):  # predicting, one floor down, changes no image
            code.update(source.read_bytes())

    def build(made: Path) -> None:
        convert(str(image), f"oci:{made}:{TAG}")

    name = image.directory.name.rpartition("-")[0]
    return Layout(kept(cache, f"{name}-converted", (image.directory.name, code.hexdigest()), build), TAG)


def convert(*words: str) -> None:
    """`fastpull convert`."""
    _fastpull("convert", *words)


def _fastpull(*words: str) -> None:
    """The command that is installed beside this Python."""
    run([str(Path(sys.executable).with_name("fastpull")), *words], timeout_s=CONVERT_TIMEOUT_S)


def push(bench: Bench, setting: Setting, image: Layout) -> Prepared:
    """The image as it is, and converted."""
    setting.say("converting")
    lazy = converted(setting.cache, image)
    setting.say("pushing the image as it is, and converted")
    with full_rate(bench):
        plain = bench.push(str(image), "bench/plain:1")
        return Prepared(layout=lazy, plain=plain, converted=bench.push(str(lazy), "bench/fastpull:1"))


def push_rivals(bench: Bench, setting: Setting, prepared: Prepared, image: Layout) -> Prepared:
    """The image in the format of every rival that is wanted and found."""
    pushed = {}
    for rival in rivals.ALL:
        if not setting.wants(rival.name):
            continue
        if absent := rivals.missing(rival):
            setting.say(f"{rival.name}: left out, not on PATH: {', '.join(absent)}")
            continue
        setting.say(f"converting for {rival.name}")
        with full_rate(bench):
            pushed[rival.name] = rivals.push(bench, setting.cache, image, rival, prepared.plain)
    return replace(prepared, rivals=pushed)


def learn(
    bench: Bench, setting: Setting, prepared: Prepared, workload: Workload, *, along: bool, packs: bool
) -> Prepared:
    """Record one cold start; the image once more with that profile beside it, and, if `along`, cut along it too.

    With `packs` each has a pack, too, which a start may do without.
    """
    setting.say("recording a start")
    touched = _record(bench, prepared.converted, workload)
    with full_rate(bench):
        profiled = bench.push(prepared.converted, "bench/profiled:1")
    asyncio.run(_attach(bench, profiled, touched.document))
    cut = _cut(bench, setting, prepared, touched) if along else ""
    for reference in filter(None, (profiled, cut) if packs else ()):
        setting.say("packing what the profile names")
        with full_rate(bench):
            _fastpull("profile", "pack", "--plain-http", bench.registry.host, reference)
    return replace(prepared, profiled=profiled, along=cut, touched=touched)


def foretell(bench: Bench, setting: Setting, prepared: Prepared) -> Prepared:
    """The converted image once more, with a prediction beside it."""
    setting.say("predicting a start")
    with full_rate(bench):
        predicted = bench.push(prepared.converted, "bench/predicted:1")
        _fastpull("profile", "predict", "--plain-http", bench.registry.host, predicted)
    return replace(prepared, predicted=predicted)


def _cut(bench: Bench, setting: Setting, prepared: Prepared, touched: Touched) -> str:
    """The image converted along the profile; the command attaches that to what it pushes."""
    setting.say("converting along the profile")
    reference = bench.registry.reference("bench/along:1")
    document = bench.workspace.path / "profile.json"
    document.write_bytes(touched.document)
    with full_rate(bench):
        host = ("--plain-http", bench.registry.host)
        convert(*host, "--profile", str(document), str(prepared.layout), reference)
    return reference


def _record(bench: Bench, reference: str, workload: Workload) -> Touched:
    mode = Mode(name="recording", snapshotter="fastpull", reference=reference, daemon_config=_RECORDING)
    with bench.node(mode) as node:
        bench.make_cold()
        node.start(mode, workload)
        listed = ask(node.daemon.run_dir, "/v1/profiles")["profiles"]
        recording = [row["manifest"] for row in listed if row["recording"]]
        if len(recording) != 1:
            raise LabError(f"{len(recording)} recordings are on, not one")
        document = ask(node.daemon.run_dir, f"/v1/profiles/{recording[0]}/stop", "POST")
        if document is None:
            raise LabError("the start was recorded, but nothing was read")
        return touched_by(document, node.daemon.root)


async def _attach(bench: Bench, reference: str, document: bytes) -> None:
    """The profile as a referrer of the image, where every node finds it."""
    parsed = Reference.parse(reference)
    config = RegistryConfig(certs_dirs=(), plain_http=frozenset({bench.registry.host}))
    async with RegistryClient(config) as client:
        manifest = (await client.resolve(parsed)).digest
        await referrers.push(client, parsed.origin, manifest, decode_profile(document))
