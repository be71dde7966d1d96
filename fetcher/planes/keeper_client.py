"""The daemon's side of the keeper: find it or start it, put descriptors in, take them over."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog

from fetcher.planes import keeper

log = structlog.get_logger(__name__)

#: Each answer takes the keeper microseconds; a keeper that is silent for this long is dead.
TIMEOUT_S = 10.0


class KeeperClient:
    """A connection to the keeper of one run directory. Calls block for microseconds; not for use from several
    threads.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    @classmethod
    def attach(cls, path: Path) -> tuple[Self, bool]:
        """Connect to the keeper that listens at ``path``, or start one; tells whether it was there before.

        Raises OSError or subprocess errors when none can be started.
        """
        try:
            client = cls(_connect(path))
            # A keeper that is being killed may still have its socket, but answers nothing any more.
            client.drop("")
            return client, True
        except (FileNotFoundError, ConnectionError):
            _start(path)
            return cls(_connect(path)), False

    def put(self, name: str, fd: int) -> None:
        """Have a duplicate of ``fd`` held under a name."""
        self._ask({"op": "put", "name": name}, fd)

    def drop(self, name: str) -> None:
        """Have what is held under a name closed."""
        self._ask({"op": "drop", "name": name})

    def take_over(self) -> dict[str, int]:
        """Duplicates of everything held, by name; they belong to the caller."""
        keeper.send(self._connection, {"op": "list"})
        taken: dict[str, int] = {}
        while True:
            packet, fd = keeper.receive(self._connection)
            message = json.loads(packet)
            if "end" in message:
                return taken
            if fd is None:
                raise ConnectionError(f"keeper sent no descriptor for {message['name']!r}: too many open files?")
            taken[message["name"]] = fd

    def _ask(self, message: dict[str, object], fd: int | None = None) -> None:
        keeper.send(self._connection, message, fd)
        packet, _ = keeper.receive(self._connection)
        if not packet:
            raise ConnectionResetError("the keeper is gone")

    def fileno(self) -> int:
        """Readable when the keeper has died."""
        return self._connection.fileno()

    def close(self) -> None:
        """Disconnect; the keeper goes on holding."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()


def _connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.settimeout(TIMEOUT_S)
        connection.connect(os.fspath(path))
    except OSError:
        connection.close()
        raise
    return connection


def _start(path: Path) -> None:
    """Start a keeper as a grandchild, so that it belongs to init and no zombie is left."""
    command = [sys.executable, "-I", "-S", keeper.__file__, os.fspath(path)]
    launcher = f"import subprocess,sys; subprocess.Popen({command!r}, stdin=subprocess.DEVNULL, start_new_session=True)"
    arguments = [sys.executable, "-I", "-S", "-c", launcher]
    with subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        # Ends with "ready", or with end-of-file when whoever could still say it is dead.
        if process.stdout.readline() != b"ready\n":
            raise ConnectionError(f"the keeper for {path} did not start")
    log.info("keeper_started", socket=str(path))
