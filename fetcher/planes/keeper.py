"""The keeper: a process that holds file descriptors while the daemon is dead, and does nothing else.

When the last descriptor of a fanotify group closes, the kernel lets every waiting and every later reader pass, and a
container reads zeros where bytes are still missing. So the group, the event journal and the descriptors the layers
are filled through are also held here. The daemon puts them in as it makes them and takes all of them over when it
starts.

Run as a script by path (``python -I -S keeper.py SOCKET``), on the standard library alone, to stay small and unlikely
to fail.

The protocol is one JSON object per SOCK_SEQPACKET packet, at most one descriptor beside it:

========================================  ======================================================
``{"op": "put", "name": N}`` + fd         hold it under the name, in place of an older one
``{"op": "drop", "name": N}``             close it
``{"op": "list"}``                        ``{"name": N}`` + fd for each, then ``{"end": count}``
========================================  ======================================================

``put`` and ``drop`` answer ``{"ok": true}``: what was answered survives the daemon. SIGTERM ends the keeper once
nothing is held but names that start with a dot: what those stand for has no reader of its own.
"""

import array
import contextlib
import json
import os
import selectors
import signal
import socket
import sys
from pathlib import Path

MAX_PACKET = 4096
FD_BYTES = array.array("i").itemsize


class Keeper:
    """Named descriptors, and the clients that put and list them."""

    def __init__(self, listener: socket.socket) -> None:
        self.held: dict[str, int] = {}
        self.listener = listener
        self.selector = selectors.DefaultSelector()
        self.selector.register(listener, selectors.EVENT_READ)
        self.stopping = False

    def serve(self) -> None:
        """Serve until asked to stop with nothing held that a reader may depend on."""
        while not (self.stopping and all(name.startswith(".") for name in self.held)):
            for key, _ in self.selector.select(timeout=None):
                if key.fileobj is self.listener:
                    client, _ = self.listener.accept()
                    self.selector.register(client, selectors.EVENT_READ)
                elif key.data == "wakeup":
                    os.read(key.fd, 64)
                elif isinstance(key.fileobj, socket.socket):
                    self.answer(key.fileobj)

    def answer(self, client: socket.socket) -> None:
        """One request of one client; a client that went away or talks nonsense is dropped, what it put in stays."""
        try:
            packet, fd = receive(client)
            if packet:
                self.carry_out(client, json.loads(packet), fd)
                return
        except (OSError, ValueError, KeyError, TypeError):
            pass
        self.selector.unregister(client)
        client.close()

    def carry_out(self, client: socket.socket, request: dict[str, str], fd: int | None) -> None:
        """One request; fails in any way on one that is not of the protocol."""
        if request["op"] == "put" and fd is not None:
            self.drop(request["name"])
            self.held[request["name"]] = fd
            send(client, {"ok": True})
        elif request["op"] == "drop":
            self.drop(request["name"])
            send(client, {"ok": True})
        elif request["op"] == "list":
            for name, held in self.held.items():
                send(client, {"name": name}, held)
            send(client, {"end": len(self.held)})
        else:
            raise ValueError(request["op"])

    def drop(self, name: str) -> None:
        """Close what is held under a name, if anything."""
        fd = self.held.pop(name, None)
        if fd is not None:
            os.close(fd)


def receive(sock: socket.socket) -> tuple[bytes, int | None]:
    """One packet and the descriptor that came with it; empty when the peer has closed."""
    packet, control, _, _ = sock.recvmsg(MAX_PACKET, socket.CMSG_SPACE(FD_BYTES), socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, data in control:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % FD_BYTES])
    return packet, fds[0] if fds else None


def send(sock: socket.socket, message: dict[str, object], fd: int | None = None) -> None:
    """One packet, with a descriptor beside it or none."""
    rights = [] if fd is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
    sock.sendmsg([json.dumps(message).encode()], rights)


def become_last_to_die() -> None:
    """Out of the daemon's session, deaf to polite signals, and the out-of-memory killer's last choice."""
    with contextlib.suppress(PermissionError):
        os.setsid()
    for name in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(name, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("-1000")


def listen(path: Path) -> socket.socket:
    """The keeper's socket, 0600 from its first moment."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    path.unlink(missing_ok=True)
    mask = os.umask(0o177)
    try:
        listener.bind(os.fspath(path))
    finally:
        os.umask(mask)
    listener.listen(8)
    return listener


def main(arguments: list[str]) -> int:
    """Hold descriptors for whoever connects to the socket named by the only argument. Says "ready" on standard
    output.
    """
    path = Path(arguments[0])
    keeper = Keeper(listen(path))
    become_last_to_die()
    wake_read, wake_write = socket.socketpair()
    wake_write.setblocking(False)
    signal.set_wakeup_fd(wake_write.fileno())
    signal.signal(signal.SIGTERM, lambda *_: setattr(keeper, "stopping", True))
    keeper.selector.register(wake_read, selectors.EVENT_READ, "wakeup")
    pid_file = path.with_suffix(".pid")
    pid_file.write_text(f"{os.getpid()}\n")
    os.write(1, b"ready\n")
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    keeper.serve()
    path.unlink(missing_ok=True)
    pid_file.unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
