"""A process that runs nothing but a Fetcher over one layer, to be killed by tests.

Usage: ``python -m tests.harness.fetcher_process CONFIG.json``, with members root, run, host, repository, annotations,
data_plane, background_fill. Prints the mount point once it is up.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

from fetcher.model import FetcherConfig
from fetcher.node import Fetcher
from fetcher.registry import Origin, RegistryConfig
from layerformat.annotations import LayerRef


async def serve(document: dict[str, object]) -> None:
    """Admit, retain and mount the layer, then serve it until the process dies or is told to stop."""
    config = FetcherConfig(
        root=Path(str(document["root"])),
        run=Path(str(document["run"])),
        registry=RegistryConfig(),
        data_plane=str(document.get("data_plane", "fanotify")),
        background_fill=bool(document.get("background_fill", False)),
    )
    annotations = document["annotations"]
    assert isinstance(annotations, dict)
    ref = LayerRef.from_annotations(annotations)
    assert ref is not None
    origin = Origin(host=str(document["host"]), repository=str(document["repository"]))
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with Fetcher(config) as fetcher:
        await fetcher.admit(ref, [origin])
        await fetcher.retain(ref.digest)
        print(await fetcher.mount(ref.digest), flush=True)
        await stop.wait()


class FetcherProcess:
    """The process, as a test sees it."""

    def __init__(self, config: Path, log: Path) -> None:
        self.config = config
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Path:
        """Start and wait until the layer is mounted; returns the mount point."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.harness.fetcher_process", str(self.config)],
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=Path(__file__).parents[2],
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"fetcher process ended:\n{self.log.read_text()}"
        return Path(os.fsdecode(line.strip()))

    def kill(self) -> None:
        """SIGKILL, and reap."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM, and reap."""
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(timeout=30)
            assert self.process.stdout is not None
            self.process.stdout.close()
            self.process = None


@contextmanager
def fetcher_process(directory: Path, document: dict[str, object]) -> Iterator[FetcherProcess]:
    """A process over a configuration; killed at the end if it still runs."""
    path = directory / "fetcher.json"
    path.write_text(json.dumps(document))
    process = FetcherProcess(path, directory / "fetcher.log")
    try:
        yield process
    finally:
        process.kill()


if __name__ == "__main__":
    # Standard output is for the mount point alone.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    asyncio.run(serve(json.loads(Path(sys.argv[1]).read_text())))
