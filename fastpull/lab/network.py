"""A network namespace behind a veth pair with a rate limit: the far end of a slow link.

Bytes are counted by the kernel on the near end, so they include every header and every retransmission; nothing a
program says about itself is needed. Added latency is not the link's work (see `relay`): netem is not in every kernel.
"""

import contextlib
import ipaddress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from fastpull.lab.process import CommandFailed, LabError, run

NETWORK = ipaddress.IPv4Network("10.213.0.0/16")
_PREFIX = "fastpull-"
_LINKS = NETWORK.num_addresses // 4
# TBF lets this much through at once. It must hold one 64 KiB GSO packet, and what the rate brings between two timer
# interrupts of the slowest kernel (HZ=100), or the rate is not reached (tc-tbf(8)).
_MIN_BURST_BYTES = 256 * 1024
_TICK_S = 0.01
_QUEUE_MS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkShape:
    """How a link behaves. `rate_bits_s` None: as fast as the machine. `rtt_ms` is for both directions together."""

    rate_bits_s: int | None = None
    rtt_ms: float = 0

    def __str__(self) -> str:
        rate = f"{self.rate_bits_s / 1e9:g} Gbit/s" if self.rate_bits_s else "unshaped"
        return f"{rate}, {self.rtt_ms:g} ms"


def tbf_arguments(rate_bits_s: int) -> list[str]:
    """Arguments of `tc qdisc add ... root` for one direction."""
    burst = max(_MIN_BURST_BYTES, int(rate_bits_s / 8 * _TICK_S))
    return ["tbf", "rate", f"{rate_bits_s}bit", "burst", str(burst), "latency", f"{_QUEUE_MS}ms"]


class ShapedLink:
    """A namespace `name` with the address `far`; this side has the address `near` on the interface `interface`."""

    def __init__(self, shape: LinkShape) -> None:
        self.shape = shape
        self.name = ""
        self.interface = ""
        self.near = ""
        self.far = ""

    def __repr__(self) -> str:
        return f"<ShapedLink {self.name} {self.far} {self.shape}>"

    def __enter__(self) -> Self:
        number = _claim_namespace()
        self.name = f"{_PREFIX}{number}"
        self.interface = f"fp{number}h"
        base = int(NETWORK.network_address) + 4 * number
        self.near = str(ipaddress.IPv4Address(base + 1))
        self.far = str(ipaddress.IPv4Address(base + 2))
        try:
            self._connect(f"fp{number}n")
            self.reshape(self.shape)
        except BaseException:
            self._remove()
            raise
        return self

    def _connect(self, far_interface: str) -> None:
        inside = ["ip", "-n", self.name]
        run(["ip", "link", "add", self.interface, "type", "veth", "peer", "name", far_interface, "netns", self.name])
        run(["ip", "addr", "add", f"{self.near}/30", "dev", self.interface])
        run(["ip", "link", "set", self.interface, "up"])
        run([*inside, "addr", "add", f"{self.far}/30", "dev", far_interface])
        run([*inside, "link", "set", far_interface, "up"])
        run([*inside, "link", "set", "lo", "up"])

    def reshape(self, shape: LinkShape) -> None:
        """Change the rate of both directions; what is connected stays connected."""
        near = ["tc", "qdisc"]
        far = ["tc", "-n", self.name, "qdisc"]
        for command, device in ((near, self.interface), (far, self.interface[:-1] + "n")):
            with contextlib.suppress(CommandFailed):  # there may be none yet
                run([*command, "del", "dev", device, "root"])
            if shape.rate_bits_s:
                run([*command, "add", "dev", device, "root", *tbf_arguments(shape.rate_bits_s)])
        self.shape = shape

    def received_bytes(self) -> int:
        """Bytes that came from the far end since the link exists (Ethernet frames)."""
        return self._statistic("rx_bytes")

    def sent_bytes(self) -> int:
        """Bytes that went to the far end since the link exists (Ethernet frames)."""
        return self._statistic("tx_bytes")

    def _statistic(self, name: str) -> int:
        return int(Path(f"/sys/class/net/{self.interface}/statistics/{name}").read_text())

    def inside(self, argv: list[str]) -> list[str]:
        """The command line that runs `argv` in the namespace."""
        return ["ip", "netns", "exec", self.name, *argv]

    def _remove(self) -> None:
        # The veth goes with the namespace only when its last socket does: say it first.
        with contextlib.suppress(CommandFailed):
            run(["ip", "link", "del", self.interface])
        run(["ip", "netns", "del", self.name])

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()


def _claim_namespace() -> int:
    """Make the first namespace whose number is free. `ip netns add` is atomic, so laboratories may race for it."""
    taken = {path.name for path in Path("/run/netns").glob(f"{_PREFIX}*")}
    for number in range(_LINKS):
        if f"{_PREFIX}{number}" in taken:
            continue
        try:
            run(["ip", "netns", "add", f"{_PREFIX}{number}"])
        except CommandFailed as refused:
            if "File exists" in refused.output:
                continue
            raise
        return number
    raise LabError(f"no free namespace: {_LINKS} are taken")
