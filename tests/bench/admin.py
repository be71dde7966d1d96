"""The daemon's admin socket, asked from outside any event loop."""

import http.client
import json
import socket
from pathlib import Path
from typing import Any

_TIMEOUT_S = 30


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("fastpull", timeout=_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(_TIMEOUT_S)
        self.sock.connect(str(self._path))


def ask(run_dir: Path, path: str, method: str = "GET") -> Any:
    """The document a route answers, None for an empty answer. Raises OSError where it does not answer well."""
    connection = _UnixConnection(run_dir / "admin.sock")
    try:
        connection.request(method, path)
        response = connection.getresponse()
        body = response.read()
        if response.status >= http.client.BAD_REQUEST:
            raise OSError(f"{method} {path}: {response.status} {body[:200].decode(errors='replace')}")
        return json.loads(body) if body else None
    finally:
        connection.close()
