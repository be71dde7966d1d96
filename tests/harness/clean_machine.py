"""A machine of its own for a test: this one's files under a layer that is thrown away, and namespaces for all the rest.

What is done in it is done as root at `/`, and nothing of it is seen outside. Its data directories lie on the disk,
where layers can be served from. It has no network but loopback, and systemd only if that is asked for.
"""

import contextlib
import os
import shlex
import signal
import subprocess
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Self

from fastpull.lab import cgroups, tools
from fastpull.lab.process import CommandFailed, LabError, Service, wait_until
from fastpull.lab.workspace import Workspace

_DATA = ("var/lib/containerd", "var/lib/fastpull", "var/lib/nerdctl")
_PROGRAMS = ("containerd", "ctr", "containerd-shim-runc-v2", "nerdctl")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# A group of its own in every hierarchy (cgroups(7)): the machine sees it as the root; it is removed with what is in it.
_ENTER = """
set -eu
for top in {groups}; do
    mkdir $top/{name}
    for file in cpuset.cpus cpuset.mems; do
        if [ -e $top/$file ]; then cat $top/$file >$top/{name}/$file || true; fi
    done
    echo $$ >$top/{name}/cgroup.procs
done
exec unshare --mount --net --pid --ipc --uts --cgroup --fork --kill-child=SIGKILL --propagation private "$@"
"""
_JOIN = """
for file in /sys/fs/cgroup/cgroup.procs /sys/fs/cgroup/*/cgroup.procs; do
    if [ -e $file ]; then echo $$ 2>/dev/null >$file || true; fi
done
"""
_CHECKOUT = Path(__file__).parents[2]
# Below tmpfs: an overlay's upper directory must not lie in its own lower one, which is all of the disk here.
_BOOT = """
set -eu
cd {top}
mount -t tmpfs -o size=2g tmpfs {top}/layer
mkdir {top}/layer/upper {top}/layer/work
mount -t overlay overlay -o lowerdir=/,upperdir={top}/layer/upper,workdir={top}/layer/work {top}/root
cd {top}/root
for name in {data}; do mkdir -p $name; mount --bind {top}/data/$name $name; done
mount -t proc proc proc
mount -t sysfs sysfs sys
{cgroups}
mount --rbind /dev dev
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs tmp
# This checkout may be below one of them.
[ -e .{checkout} ] || {{ mkdir -p .{checkout}; mount --bind {checkout} .{checkout}; }}
mkdir run/old
pivot_root . run/old
umount -l /run/old
rmdir /run/old
ip link set lo up
touch /run/booted
{init}
"""
# The first process of the machine: it waits for what nobody else waits for.
_SHELL = "sleep infinity & wait"
# Nothing of this machine's own services may start: neither those that are enabled nor those that generators make.
_SYSTEMD = """
rm -rf /lib/systemd/system-generators /lib/systemd/system/*.wants /etc/systemd/system/*.wants
printf '[Unit]\\nDefaultDependencies=no\\n' | tee /etc/systemd/system/sysinit.target >/etc/systemd/system/lab.target
exec env -i container=lab PATH={path} /lib/systemd/systemd --unit=lab.target
"""
_CONTAINERD_UNIT = """
[Service]
ExecStart=/usr/local/bin/containerd
Type=notify
Delegate=yes
KillMode=process
"""
# As distributions without systemd have it.
_INIT_SCRIPT = """#!/bin/sh
case $1 in
stop|restart) if [ -e /run/containerd.pid ]; then
    kill $(cat /run/containerd.pid) || true
    while kill -0 $(cat /run/containerd.pid) 2>/dev/null; do sleep 0.1; done
fi ;;
esac
case $1 in
start|restart)
    containerd >>/var/log/containerd.log 2>&1 </dev/null &
    echo $! >/run/containerd.pid
    until ctr version >/dev/null 2>&1; do sleep 0.1; done ;;
esac
"""
_NERDCTL = 'cgroup_manager = "cgroupfs"\ncni_path = "/usr/lib/cni"\n'


class Init(StrEnum):
    """What starts and restarts containerd."""

    NOBODY = "nobody"
    SCRIPT = "script"
    SYSTEMD = "systemd"


class CleanMachine:
    """Context manager. With `Init.NOBODY`, `containerd-service restart` stands for the owner."""

    def __init__(self, space: Workspace, init: Init) -> None:
        self._space = space
        self._top = space.directory("machine")
        self._kind = init
        self._group = f"fp-{space.mark}"
        for name in ("root", "layer", *(f"data/{each}" for each in _DATA)):
            (self._top / name).mkdir(parents=True, exist_ok=True)
        first = _SYSTEMD.format(path=_PATH) if init is Init.SYSTEMD else _SHELL
        places = {"top": self._top, "data": " ".join(_DATA), "checkout": shlex.quote(str(_CHECKOUT))}
        boot = _BOOT.format(**places, cgroups=_cgroup_mounts(), init=first)
        enter = _ENTER.format(groups=" ".join(map(str, _hierarchies())), name=self._group)
        argv = ["/bin/sh", "-c", enter, "sh", "/bin/sh", "-c", boot]
        self._init = Service(argv, log=self._top / "boot.log", env=space.env)

    def __enter__(self) -> Self:
        self._init.start()
        try:
            self._init.wait_ready(self._booted)
            self._furnish()
        except BaseException:
            self._end()
            raise
        return self

    def _booted(self) -> bool:
        with contextlib.suppress(LabError, OSError):
            self.run("test -e /run/booted")
            return True
        return False

    def _furnish(self) -> None:
        """containerd and nerdctl, as the README wants them to be there."""
        programs = {name: tools.find(name) for name in _PROGRAMS}
        lines = [f"ln -sf {path} /usr/local/bin/{name}" for name, path in programs.items()]
        self.run("\n".join(lines))
        self.write("/usr/local/bin/sudo", '#!/bin/sh\nexec "$@"\n', mode="755")  # it is root already
        self.write("/etc/nerdctl/nerdctl.toml", _NERDCTL)
        if self._kind is Init.SYSTEMD:
            self.write("/etc/systemd/system/containerd.service", _CONTAINERD_UNIT)
            self.run("until systemctl daemon-reload; do sleep 0.1; done; systemctl start containerd")
            return
        self.write("/usr/local/sbin/containerd-service", _INIT_SCRIPT, mode="755")
        if self._kind is Init.SCRIPT:
            self.run("cp /usr/local/sbin/containerd-service /etc/init.d/containerd")
        self.run("containerd-service start")

    def argv(self, script: str) -> list[str]:
        """A command line that runs a shell script in the machine."""
        enter = [
            "nsenter",
            f"--target={_child_of(self._init)}",
            "--mount",
            "--net",
            "--pid",
            "--ipc",
            "--uts",
            "--cgroup",
        ]
        return [*enter, "env", f"PATH={_PATH}", "HOME=/root", "/bin/sh", "-c", _JOIN + script]

    def run(self, script: str, *, cwd: str = "/", stdin: str = "", timeout_s: float = 120, status: int = 0) -> str:
        """Run it to its end; what it said. Raises CommandFailed unless it ends with `status`."""
        argv = self.argv(f"cd {shlex.quote(cwd)}\n{script}")
        env = {**_environment(), **self._space.env}
        done = subprocess.run(
            argv, input=stdin, capture_output=True, text=True, env=env, timeout=timeout_s, check=False
        )
        if done.returncode != status:
            raise CommandFailed([script], done.returncode, done.stdout + done.stderr)
        return done.stdout + done.stderr

    def begin(self, script: str, *, log: Path) -> Service:
        """A context manager: it runs until that is left, or is interrupted (`interrupt`)."""
        return Service(self.argv(f"exec {script}"), log=log, env=self._space.env)

    def write(self, path: str, text: str, *, mode: str = "644") -> None:
        directory = str(Path(path).parent)
        self.run(f"mkdir -p {directory}; cat > {path}; chmod {mode} {path}", stdin=text)

    def processes(self) -> Sequence[str]:
        """Command lines of everything that runs in it, init and the look itself excepted."""
        lines = self.run("ps -eo pid,args --no-headers").splitlines()
        own = ("sleep infinity", "ps -eo", "/bin/sh -c")
        return [line for line in lines if not any(word in line for word in own)]

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        """With the first process of a pid namespace all others end, and with them the mounts (pid_namespaces(7))."""
        self._init.kill()
        wait_until(self._group_removed, what=f"the end of {self._group}")

    def _group_removed(self) -> bool:
        """A group can be removed when its last process has ended, which takes a moment."""
        cgroups.remove_named(self._group)
        return not any((path / self._group).exists() for path in _hierarchies())


def _hierarchies() -> Sequence[Path]:
    """Where control groups are: the one hierarchy, or each of version 1 and what is mounted beside them."""
    top = Path("/sys/fs/cgroup")
    return [top] if (top / "cgroup.procs").exists() else sorted(path.parent for path in top.glob("*/cgroup.procs"))


def _cgroup_mounts() -> str:
    """The same once more, as the machine's namespace shows them. Relative to its root."""
    lines = []
    for path in _hierarchies():
        if path.name in ("cgroup", "unified"):
            kind = "-t cgroup2"
        else:
            kind = f"-t cgroup -o {'none,name=systemd' if path.name == 'systemd' else path.name}"
        lines.append(f"mkdir -p .{path}; mount {kind} cgroup .{path}")
    head = [] if len(lines) == 1 else ["mount -t tmpfs tmpfs sys/fs/cgroup"]
    return "\n".join([*head, *lines])


def interrupt(running: Service) -> int:
    """Ctrl-C, and the exit status."""
    os.kill(_child_of(running), signal.SIGINT)
    wait_until(lambda: not running.running(), what=repr(running))
    assert running.returncode is not None
    return running.returncode


def _child_of(parent: Service) -> int:
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
    if not children:
        raise LabError(f"{parent!r} has not started its child yet")
    return int(children[0])


def _environment() -> Mapping[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("FASTPULL_")}
