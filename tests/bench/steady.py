"""With everything local: what reading costs on fastpull's mounts, beside overlayfs on the same disk's ext4.

Both are views of a whole image on one node; each command runs on one, then on the other: first as after a reboot, the
page cache dropped and the view mounted anew, then again at once.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fastpull.cold import drop_page_cache
from fastpull.demo.bench import Bench, Mode, Node
from fastpull.lab.process import run
from tests.bench.prepare import Prepared, full_rate
from tests.bench.setting import Setting
from tests.bench.table import Row, Target, figure
from tests.bench.trials import wait_complete
from tests.harness import UNRECORDED, trees

MIB = 1 << 20
_TIMEOUT_S = 1800
_FIO_BYTES = {"randread": 64 * MIB, "read": 512 * MIB}
_AT_LEAST = Target(at_most=1)
_TWICE = Target(at_most=0.5)


@dataclass(frozen=True, slots=True)
class Root:
    """Where an image is mounted. `large` is its largest file."""

    name: str
    path: Path
    site: Path
    large: Path


@dataclass(frozen=True, slots=True)
class Task:
    """Something that is timed on a root, in seconds; targets with a cold and a warm page cache bound the ratio."""

    name: str
    run: Callable[[Root], float]
    cold: Target = _AT_LEAST
    warm: Target = _AT_LEAST


def _timed(argv: list[str]) -> float:
    began = time.monotonic()
    run(argv, timeout_s=_TIMEOUT_S)
    return time.monotonic() - began


def _walk(root: Root) -> float:
    # %s makes find ask for the attributes of every file.
    return _timed(["sh", "-c", 'find "$1" -xdev -printf "%s\\n" >/dev/null', "walk", str(root.path)])


def _tar(root: Root) -> float:
    # Through a pipe: GNU tar reads no file when it sees that its output is /dev/null.
    return _timed(["sh", "-c", 'tar -C "$1" -cf - . | cat >/dev/null', "tar", str(root.site)])


def _small_files(root: Root) -> float:
    script = 'find "$1" -xdev -type f -size -33k -print0 | xargs -0 cat >/dev/null'
    return _timed(["sh", "-c", script, "small", str(root.site)])


def _fio(kind: str, block: str) -> Callable[[Root], float]:
    def measured(root: Root) -> float:
        size = min(_FIO_BYTES[kind], root.large.stat().st_size)
        argv = ["fio", "--name=x", f"--filename={root.large}", f"--rw={kind}", f"--bs={block}", "--readonly"]
        argv += [f"--io_size={size}", "--ioengine=psync", "--invalidate=0", "--randrepeat=1", "--output-format=json"]
        job = json.loads(run(argv, timeout_s=_TIMEOUT_S))["jobs"][0]["read"]
        return float(job["runtime"]) / 1000

    return measured


def _import(modules: Sequence[str]) -> Callable[[Root], float]:
    def measured(root: Root) -> float:
        site = root.site.relative_to(root.path)
        command = ["env", "-i", f"PYTHONPATH=/{site}", "HOME=/root", "PYTHONDONTWRITEBYTECODE=1", "/usr/bin/python3"]
        return _timed(["chroot", str(root.path), *command, "-c", f"import {', '.join(modules)}"])

    return measured


def tasks(modules: Sequence[str]) -> list[Task]:
    """What is timed; fio only where there is one."""
    found = [
        Task("tree walk with stat", _walk, cold=_TWICE),
        Task("small files read", _small_files, cold=_TWICE),
        Task("tar of site-packages", _tar),
    ]
    if shutil.which("fio"):
        found.append(Task("fio 4 KiB random read", _fio("randread", "4k")))
        found.append(Task("fio sequential read", _fio("read", "128k")))
    if modules:
        more = f" and {len(modules) - 1} more" if modules[1:] else ""
        found.append(Task(f"import {modules[0]}{more}", _import(modules)))
    return found


def rows(
    bench: Bench, setting: Setting, prepared: Prepared, *, title: str, site: Path, modules: Sequence[str]
) -> Iterator[Row]:
    """Rows of one image."""
    mode = Mode(name="steady", snapshotter="fastpull", reference=prepared.converted, daemon_config=UNRECORDED)
    with bench.node(mode) as node:
        with full_rate(bench):
            sides = [
                Side(node, name, reference, bench.workspace.path / f"view-{name}", site)
                for name, reference in (("overlayfs", prepared.plain), ("fastpull", prepared.converted))
            ]
            wait_complete(node)
        for task in tasks(modules):
            yield from _rows(setting, task, sides, title)


class Side:
    """An image pulled into one snapshotter; its largest file is looked for once, by reading all of its tree."""

    def __init__(self, node: Node, name: str, reference: str, point: Path, site: Path) -> None:
        node.containerd.nerdctl("pull", "--quiet", reference, snapshotter=name, timeout_s=_TIMEOUT_S)
        self.mounted = partial(trees.mounted, node.containerd, reference, name, point)
        with self.mounted():
            self.root = Root(name, point, point / site, _largest(point))


def _rows(setting: Setting, task: Task, sides: list[Side], title: str) -> Iterator[Row]:
    seconds: dict[tuple[str, str], list[float]] = {}
    for _ in range(setting.runs):
        for side in sides:
            drop_page_cache()
            with side.mounted():
                for state in ("cold", "warm"):
                    seconds.setdefault((side.root.name, state), []).append(max(task.run(side.root), 1e-4))
    for state, target in (("cold", task.cold), ("warm", task.warm)):
        base, ours = (figure(seconds[side.root.name, state], "s") for side in sides)
        row = Row(workload=title, what=f"{task.name}, {state}", ours=ours, base=base, target=target)
        setting.say(f"{row.what}: {ours.told()}, overlayfs {base.told()}, {row.ratio:.2f}")
        yield row


def _largest(root: Path) -> Path:
    listed = run(["find", str(root), "-xdev", "-type", "f", "-printf", "%s %p\\n"], timeout_s=_TIMEOUT_S)
    return Path(max((line.split(" ", 1) for line in listed.splitlines()), key=lambda pair: int(pair[0]))[1])
