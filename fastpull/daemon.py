"""`fastpull-snapshotter`: the fetcher, the snapshotter and the admin socket in one process."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import socket
import stat
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import click
import grpc
import structlog
import uvloop

from fastpull import admin
from fastpull.admin_fetcher import FetcherRoutes
from fastpull.admin_profiles import ProfileRoutes
from fastpull.config import DATA_PLANES, LOG_LEVELS, ConfigError, DaemonConfig, load
from fastpull.registry_hosts import RegistryHosts
from fetcher.node import Fetcher
from snapshotter import service
from snapshotter.calls import CallLog
from snapshotter.containerd import Containerd
from snapshotter.core import Snapshotter
from snapshotter.database import Database, DatabaseUnusable
from snapshotter.model import Layout
from snapshotter.mounts import MountOptions
from snapshotter.probe import overlay_options
from snapshotter.provider import LayerProvider, NoLayers
from snapshotter.resolve import ImageResolver

log = structlog.get_logger(__name__)

GRACE_S: Final = 10.0
"""How long a call that is under way may take after SIGTERM."""
SWITCH_INTERVAL_S: Final = 0.0005
"""After which a thread that computes makes way; Python's 5 ms are long for a reader that waits on the event loop."""


class StartError(Exception):
    """The daemon can not start; one line that says why."""


@click.command(help="Serve containerd as a snapshotter that starts images before they are there.")
@click.option("--config", type=click.Path(path_type=Path), help="TOML file [/etc/fastpull/config.toml, if it exists]")
@click.option("--root", type=click.Path(path_type=Path), help="where snapshots and layers lie [/var/lib/fastpull]")
@click.option("--run-dir", type=click.Path(path_type=Path), help="sockets, until the next boot [/run/fastpull]")
@click.option("--address", type=click.Path(path_type=Path), help="the gRPC socket [RUN_DIR/fastpull.sock]")
@click.option("--containerd-address", type=click.Path(path_type=Path), help="[/run/containerd/containerd.sock]")
@click.option("--log-level", type=click.Choice(LOG_LEVELS), help="[info]")
@click.option("--data-plane", type=click.Choice(DATA_PLANES), help="how lazy layers are served [auto]")
def main(config: Path | None, **overrides: Any) -> None:
    """Exit codes: 0 after SIGTERM or SIGINT, 1 when the start fails, 2 for a wrong configuration."""
    try:
        settings = load(config, os.environ, overrides)
        configure_logging(settings.log_level)
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        uvloop.run(run(settings))
    except ConfigError as exc:
        click.echo(f"fastpull-snapshotter: {exc}", err=True)
        sys.exit(2)
    except StartError as exc:
        click.echo(f"fastpull-snapshotter: {exc}", err=True)
        sys.exit(1)


def configure_logging(level: str) -> None:
    """To standard error: for people on a terminal, JSON lines elsewhere. Libraries' warnings go the same way."""
    terminal = sys.stderr.isatty()
    renderer: Any = structlog.dev.ConsoleRenderer() if terminal else structlog.processors.JSONRenderer()
    shared: list[Any] = [structlog.processors.add_log_level, structlog.processors.TimeStamper(fmt="iso", utc=True)]
    if not terminal:
        shared.append(structlog.processors.format_exc_info)
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, *shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    formatter = structlog.stdlib.ProcessorFormatter(processor=renderer, foreign_pre_chain=shared)
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)


async def run(config: DaemonConfig) -> None:
    """Serve until SIGTERM or SIGINT. Mounts and what serves them stay: containers go on."""
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    make_directories(config)
    with only_one(config.root):
        async with contextlib.AsyncExitStack() as stack:
            await start(config, stack)
            notify("READY=1")
            log.info("daemon_ready", address=str(config.socket), root=str(config.root))
            await stopping.wait()
            notify("STOPPING=1")
            log.info("daemon_stopping")


def make_directories(config: DaemonConfig) -> None:
    """Raises StartError."""
    for directory in (config.root, config.root / "snapshots", config.run_dir, config.socket.parent):
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as exc:
            raise StartError(f"{directory} can not be made: {exc.strerror}") from exc


async def start(config: DaemonConfig, stack: contextlib.AsyncExitStack) -> None:
    """Start the parts, innermost first; none of them needs the network or containerd."""
    layout = Layout(config.root)
    try:
        database = await stack.enter_async_context(Database(layout.database))
    except DatabaseUnusable as exc:
        raise StartError(str(exc)) from exc
    containerd = await stack.enter_async_context(Containerd(str(config.containerd_address)))
    fetcher = await start_fetcher(config, stack)
    provider: LayerProvider = NoLayers() if fetcher is None else fetcher
    core = Snapshotter(
        layout=layout,
        database=database,
        provider=provider,
        resolver=ImageResolver(containerd, RegistryHosts(config).names),
        options=MountOptions(
            overlay=await asyncio.to_thread(overlay_options, layout.snapshots), remap_ids=config.remap_ids
        ),
    )
    status = None if fetcher is None else fetcher.status
    mounted = [] if status is None else [layer.digest for layer in status().layers if layer.mounted]
    await core.start(mounted)
    stack.push_async_callback(core.stop)
    calls = await stack.enter_async_context(serve_grpc(core, config.socket))
    routes = [] if fetcher is None else [*FetcherRoutes(fetcher).routes(), *ProfileRoutes(fetcher.profiles).routes()]
    await stack.enter_async_context(admin.serve(admin.Admin(core, calls, status, routes), config.admin_socket))


async def start_fetcher(config: DaemonConfig, stack: contextlib.AsyncExitStack) -> Fetcher | None:
    """None for the data plane `none`. Raises StartError where the plane that was asked for can not work."""
    if config.fetcher.data_plane == "none":
        return None
    try:
        return await stack.enter_async_context(Fetcher(config.fetcher))
    except OSError as exc:
        raise StartError(f"data plane {config.fetcher.data_plane} can not start: {exc}") from exc


@contextlib.asynccontextmanager
async def serve_grpc(core: Snapshotter, path: Path) -> AsyncIterator[CallLog]:
    """Answer on the unix socket `path`, mode 0600. What a dead daemon left there is replaced, a live one is not."""
    replace_socket(path)
    server = grpc.aio.server()
    calls = service.add_to_server(core, server)
    mask = os.umask(0o177)
    try:
        server.add_insecure_port(f"unix:{path}")
        await server.start()
    except RuntimeError as exc:
        raise StartError(f"{path} can not be served: {exc}") from exc
    finally:
        os.umask(mask)
    try:
        yield calls
    finally:
        await server.stop(GRACE_S)
        admin.unlink(path)


def replace_socket(path: Path) -> None:
    """Make way for a new socket. Raises StartError if somebody listens there, or if it is no socket at all."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise StartError(f"{path} is there and is not a socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
    raise StartError(f"{path} is served by another process")


@contextlib.contextmanager
def only_one(root: Path) -> Iterator[None]:
    """Hold the lock of the root: two daemons on one root would destroy each other's snapshots."""
    with (root / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StartError(f"another daemon uses {root}") from None
        yield


def notify(state: str) -> None:
    """Tell systemd, if it asked: sd_notify(3), one datagram to $NOTIFY_SOCKET, where `@` starts an abstract name."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.sendto(state.encode(), address)
        except OSError as exc:
            log.warning("notify_failed", error=str(exc))


if __name__ == "__main__":
    main()
