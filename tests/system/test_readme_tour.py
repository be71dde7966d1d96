"""The README's quick tour, each line as it is printed there, on a machine of its own: with systemd and without.

What is different here is named in `DIFFERENT`, and a line that is added to the tour is walked without a change of this
file. Its packages come from this checkout's environment: the network is no part of what is tested.
"""

import re
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from fastpull.exit_codes import ExitCode
from fastpull.lab import tools
from fastpull.lab.layout import ImageInput, LayerInput, Member, members, write_layout
from fastpull.lab.process import CommandFailed, Service, wait_until
from fastpull.lab.registry import registry_config
from tests.harness import Workspace
from tests.harness.clean_machine import CleanMachine, Init, interrupt
from tests.harness.images import MIB, busybox_layer, noise

pytestmark = [pytest.mark.system, pytest.mark.root]

TOP = Path(__file__).parents[2]
IMAGE = "registry.example/app:1"
# There is no GPU here.
DIFFERENT = {"--gpus all ": ""}
# The server of the image: ready a moment after its start, on the port it is told or 8000.
_SERVER = """#!/bin/sh
[ "$1" = --port ] || set -- --port 8000
sha256sum /weights >/tmp/health
trap exit INT TERM
httpd -f -p "$2" -h /tmp &
wait
"""
_ANSWERS = "python3 -c 'import urllib.request as r; r.urlopen(\"http://localhost:8080/health\", timeout=5)'"
_PIP = "export PIP_NO_INDEX=1 PIP_NO_BUILD_ISOLATION=0 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore\n"


def tour() -> list[str]:
    """The commands of the README's quick tour, in order, continued lines joined and comments kept."""
    chapter = (TOP / "README.md").read_text().partition("\n## Quick tour\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```sh\n(.*?)^```$", chapter, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def as_walked(line: str) -> str:
    for printed, here in DIFFERENT.items():
        line = line.replace(printed, here)
    return line


def test_the_tour_is_found_in_the_readme() -> None:
    found = "\n".join(tour())
    assert len(tour()) >= 14 and IMAGE in found
    assert all(printed in found for printed in DIFFERENT), "DIFFERENT names what the tour does not say any more"


def others(machine: CleanMachine) -> list[str]:
    """What runs beside containerd itself and the registry."""
    return [line for line in machine.processes() if not re.search(r"containerd$|docker-registry serve|/systemd", line)]


@pytest.fixture
def space(workspace: Workspace) -> Workspace:
    return workspace


INITS = [Init.SYSTEMD, Init.SCRIPT] if Path("/lib/systemd/systemd").exists() else [Init.SCRIPT]


@pytest.fixture(params=INITS)
def init(request: pytest.FixtureRequest) -> Init:
    chosen: Init = request.param
    return chosen


@pytest.fixture
def machine(space: Workspace, init: Init) -> Iterator[CleanMachine]:
    """A machine with containerd, nerdctl and a registry that has the image, not converted yet."""
    with CleanMachine(space, init) as made, ExitStack() as running:
        config = registry_config(store=Path("/tmp/registry"), address="127.0.0.1:80")
        made.write("/etc/registry.yml", config)
        made.write("/etc/containerd/certs.d/registry.example/hosts.toml", 'server = "http://registry.example"\n')
        made.run("echo 127.0.0.1 localhost registry.example >/etc/hosts")
        # The one that the lent packages are for.
        made.write("/usr/local/bin/python3", f'#!/bin/sh\nexec {Path(sys.executable).resolve()} "$@"\n', mode="755")
        serve = f"{tools.find('docker-registry')} serve /etc/registry.yml"
        running.enter_context(made.begin(serve, log=space.path / "registry.log"))
        layout = space.path / "app"
        write_layout(layout, "1", _server_image())
        copy = f"{tools.find('skopeo')} --insecure-policy copy --quiet --dest-tls-verify=false"
        made.run(f"until {copy} oci:{layout}:1 docker://{IMAGE}; do sleep 0.2; done", timeout_s=60)
        yield made


def _server_image() -> ImageInput:
    entries = [
        Member(name="bin/serve", data=_SERVER.encode(), mode=0o755),
        Member(name="weights", data=noise(8 * MIB, 1), mode=0o644),
    ]
    layers = [busybox_layer(), LayerInput(write=members(entries))]
    return ImageInput(layers=layers, entrypoint=["/bin/serve"], environment={"PATH": "/bin"})


class Walk:
    """One person's way through the tour: a server stays in the foreground of one terminal while the next line is typed
    in another.
    """

    def __init__(self, machine: CleanMachine, space: Workspace) -> None:
        self.machine = machine
        self.log = space.path / "server.log"
        self.said: dict[str, str] = {}
        self._server: Service | None = None

    def take(self, line: str) -> None:
        watched = "status --watch" in line
        if not watched:
            self._end_server()
        if re.search(r"fastpull run (?!.*--benchmark-mode)", line):
            self._server = self.machine.begin(line.partition("#")[0], log=self.log)
            self._server.start()
            wait_until(self._ready, what=line, timeout_s=60)
        elif watched:
            # Until Ctrl-C, which is how a person ends it.
            self.said[line] = self.machine.run(f"timeout -s INT 3 {line}", status=124)
        else:
            self.said[line] = self.machine.run(_PIP + line, cwd=str(TOP), stdin="y\n", timeout_s=300)
        if "-m venv" in line:
            self._lend_packages(line)

    def _ready(self) -> bool:
        assert self._server is not None
        assert self._server.running(), self.log.read_text()
        try:
            self.machine.run(_ANSWERS)
        except CommandFailed:
            return False
        return True

    def _end_server(self) -> None:
        if self._server is not None:
            server, self._server = self._server, None
            interrupt(server)

    def _lend_packages(self, line: str) -> None:
        """What pip would download is found in the environment of this checkout."""
        into = f"{line.split()[-1]}/lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
        # First: what a new environment brings along itself (setuptools) may be too old.
        self.machine.write(f"{into}/lent.pth", f"import sys; sys.path.insert(0, {sysconfig.get_path('purelib')!r})\n")

    def output(self, words: str) -> str:
        """What the first line with these words said."""
        return next(said for line, said in self.said.items() if words in line)


def test_the_tour_can_be_walked_as_printed(machine: CleanMachine, init: Init, space: Workspace) -> None:
    walk = Walk(machine, space)
    for line in map(as_walked, tour()):
        walk.take(line)
    assert "+[proxy_plugins.fastpull]" in walk.output("setup --dry-run")
    assert ("fastpull.service" in walk.output("setup --dry-run")) is (init is Init.SYSTEMD)
    assert "done: a test image starts lazily" in walk.output("setup  ")
    assert "Nothing failed." in walk.output("doctor")
    assert "converted" in walk.output("fastpull convert")
    assert "Time to Readiness" in walk.output("--mode normal")
    # Nothing is left but the data.
    assert others(machine) == []
    gone = "/etc/fastpull /run/fastpull /opt/fastpull /usr/local/bin/fastpull /var/log/fastpull.log"
    gone += " /etc/systemd/system/fastpull.service /etc/systemd/system/*/fastpull.service /etc/tmpfiles.d/fastpull.conf"
    machine.run(f"for path in {gone}; do if [ -e $path ] || [ -L $path ]; then echo $path; exit 1; fi; done")
    assert "fastpull" not in machine.run("cat /etc/containerd/config.toml 2>/dev/null || true")
    mounted = [line.split()[1] for line in machine.run("cat /proc/mounts").splitlines() if "fastpull" in line]
    # A disk of its own here, as it may be anywhere.
    assert "/var/lib/fastpull" in mounted and not [point for point in mounted if "/fastpull/" in point]
    machine.run("test -d /var/lib/fastpull/layers")


def test_where_nobody_can_restart_containerd_setup_says_what_to_do(space: Workspace) -> None:
    command = f"{Path(sys.executable).with_name('fastpull')} setup"
    with CleanMachine(space, Init.NOBODY) as machine:
        said = machine.run(command, status=ExitCode.UNPROVEN)
        assert said.splitlines()[-1] == "not proven yet: restart containerd, then run `fastpull setup` again"
        machine.run("containerd-service restart")
        assert "a test image starts lazily" in machine.run(command)
        assert "Nothing failed." in machine.run(f"{command.removesuffix('setup')} doctor")
        said = machine.run(f"{command} --uninstall --purge", status=ExitCode.UNPROVEN)
        assert "left to you: restart containerd" in said
        assert others(machine) == []
