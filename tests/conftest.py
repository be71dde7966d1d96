"""Fixtures for the private laboratory, the check that nothing is left behind, and the rule about skips.

Environment: FASTPULL_CI=1 turns undeclared skips into failures and lets the leak check look at the whole machine.
"""

import os
import re
import secrets
import shutil
import signal
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
import structlog

from fastpull.lab import tools
from fastpull.lab.daemon import daemon_config
from fastpull.lab.mounts import unmount_below
from fastpull.lab.tools import Release
from tests.harness import Daemon, LinkShape, PrivateContainerd, Registry, ShapedLink, Workspace, images, skips
from tests.harness.images import SampleImage
from tests.harness.leaks import RUN_MARK, Footprint

IN_CI = os.environ.get("FASTPULL_CI") == "1"
GIGABIT = LinkShape(rate_bits_s=1_000_000_000, rtt_ms=5)
_TRACEBACK = re.compile(r"Traceback \(most recent call last\)|\"exception\": ?\"")


# The run: its directory, its mark, who may run


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "expected_traceback(reason): the daemon's log may hold tracebacks")
    config.addinivalue_line("markers", "leaks_checked: compare what exists before and after, as for root and system")
    # A shell's background job inherits an ignored SIGINT, and would pass it on to commands that tests interrupt.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if RUN_MARK not in os.environ:
        # Short: unix sockets live below. Not tmpfs: see fastpull.lab.workspace.
        os.environ[RUN_MARK] = secrets.token_hex(8)
        # Not mkdtemp: its names may end in "_", and buildah makes image references of paths, where that is refused.
        top = Path("/var/tmp") / f"fpt-{secrets.token_hex(4)}"
        top.mkdir(mode=0o700)
        os.environ["FASTPULL_LAB_DIR"] = str(top)
        config.option.basetemp = config.option.basetemp or str(top / "tmp")
        config.add_cleanup(lambda: _remove_run(top))


def _remove_run(top: Path) -> None:
    # First: what a leaked bind mount shows must not be removed with the directory.
    unmount_below(top)
    shutil.rmtree(top, ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() == 0 or IN_CI:
        return
    for item in items:
        if _is_privileged(item):
            item.add_marker(pytest.mark.skip(reason="needs root"))


def _is_privileged(item: pytest.Item) -> bool:
    return any(item.get_closest_marker(name) for name in ("root", "system"))


# Skips


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if IN_CI and report.skipped and not hasattr(report, "wasxfail"):
        _refuse_undeclared(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if IN_CI and report.skipped:
        _refuse_undeclared(report)
    return report


def _refuse_undeclared(report: pytest.TestReport | pytest.CollectReport) -> None:
    if not skips.is_declared(report.nodeid, skips.parse(skips.DECLARED.read_text())):
        report.outcome = "failed"
        report.longrepr = f"skipped, and not in {skips.DECLARED.name}: {report.longrepr}"


# Nothing is left behind


@pytest.fixture(autouse=True)
def default_logging() -> Iterator[None]:
    """A command that runs in the test's own process says how logs are written for as long as that runs; undone here."""
    yield
    structlog.reset_defaults()


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Set up before and torn down after every other fixture of a test, so that it sees what they leave."""
    node = request.node
    if not (_is_privileged(node) or node.get_closest_marker("leaks_checked")):
        yield
        return
    run_dir, mark = Path(os.environ["FASTPULL_LAB_DIR"]), os.environ[RUN_MARK]
    before = Footprint.take(run_dir, mark, everything=IN_CI)
    yield
    left = Footprint.take(run_dir, mark, everything=IN_CI).grown(before)
    assert not left, "left behind:\n" + "\n".join(left)


# The laboratory


@pytest.fixture
def workspace() -> Iterator[Workspace]:
    """A temporary directory; anything its owners did not end or unmount fails the test."""
    with Workspace() as space:
        yield space
    assert not space.left, space.left


@pytest.fixture
def registry(workspace: Workspace) -> Iterator[Registry]:
    """A registry on loopback."""
    with Registry(workspace) as served:
        yield served


@pytest.fixture
def link() -> Iterator[ShapedLink]:
    """1 Gbit/s with 5 ms. `link.reshape` changes it, `link.received_bytes()` counts."""
    with ShapedLink(GIGABIT) as shaped:
        yield shaped


@pytest.fixture
def slow_registry(workspace: Workspace, link: ShapedLink) -> Iterator[Registry]:
    """A registry at the far end of `link`."""
    with Registry(workspace, link, name="slow") as served:
        yield served


_RELEASES: dict[str, Callable[[], Release | None]] = {
    "debian": tools.debian_release,
    "current": tools.current_release,
}


@pytest.fixture(params=sorted(_RELEASES))
def release(request: pytest.FixtureRequest) -> Release:
    """Each generation of containerd that fastpull works with: the test runs once for each."""
    found = _RELEASES[request.param]()
    if found is None:
        pytest.skip(f"containerd ({request.param}) is not here: make tools")
    return found


@pytest.fixture
def current_release() -> Release:
    """The newer containerd alone, for tests that gain nothing from running twice."""
    found = tools.current_release()
    if found is None:
        pytest.skip("containerd 2.x is not here: make tools")
    return found


@pytest.fixture
def daemon(request: pytest.FixtureRequest, workspace: Workspace) -> Iterator[Daemon]:
    """The snapshotter, for a containerd with the default name ("c"); it knows the registries the test asks for."""
    config = daemon_config(*_registries(request))
    with Daemon(workspace, containerd_address=workspace.path / "c" / "c.sock", config=config) as running:
        yield running
    assert not running.left, running.left
    if not request.node.get_closest_marker("expected_traceback"):
        log = running.log.read_text(errors="replace") if running.log.exists() else ""
        found = _TRACEBACK.search(log)
        assert found is None, "the daemon logged a traceback:\n" + log[max(0, found.start() - 500) :][:4000]


@pytest.fixture
def containerd(
    workspace: Workspace, release: Release, daemon: Daemon, request: pytest.FixtureRequest
) -> Iterator[PrivateContainerd]:
    """A containerd that knows the snapshotter `fastpull`; started after the daemon and ended before it."""
    hosts = next((served.hosts_dir() for served in _registries(request)), None)
    with PrivateContainerd(workspace, release, proxies={"fastpull": daemon.proxy}, hosts_dir=hosts) as running:
        yield running
    assert not running.left, running.left


def _registries(request: pytest.FixtureRequest) -> list[Registry]:
    """The registries the test asked for by fixture name."""
    return [request.getfixturevalue(name) for name in ("slow_registry", "registry") if name in request.fixturenames]


# Sample images, made once a run


@pytest.fixture(scope="session")
def sample_images(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], SampleImage]:
    """`sample_images("zoo" | "busybox" | "big")`: an OCI layout, made at the first call."""
    makers = {"busybox": images.busybox_image, "zoo": images.zoo_image, "big": images.big_file_image}
    top = tmp_path_factory.mktemp("images")
    made: dict[str, SampleImage] = {}

    def get(name: str) -> SampleImage:
        if name not in made:
            made[name] = makers[name](top / name)
        return made[name]

    return get
