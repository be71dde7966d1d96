"""What to tell people who have to start, restart or look at a service: systemd's commands only where systemd runs."""

import shutil
from pathlib import Path
from typing import Final

INIT_SCRIPT: Final = Path("/etc/init.d/containerd")
DAEMON_LOG: Final = Path("/var/log/fastpull.log")
"""Where `fastpull setup` has the daemon write to when there is no systemd."""


def systemd_runs() -> bool:
    """Whether systemd is this machine's init and can be talked to: sd_booted(3), and its client is here."""
    return Path("/run/systemd/system").is_dir() and shutil.which("systemctl") is not None


def start_containerd() -> str:
    return f"start containerd{_by('start')}"


def restart_containerd() -> str:
    return f"restart containerd{_by('restart')}"


def _by(verb: str) -> str:
    if systemd_runs():
        return f" (systemctl {verb} containerd)"
    return f" ({INIT_SCRIPT} {verb})" if INIT_SCRIPT.exists() else ""


def containerd_log() -> str:
    return "journalctl -u containerd says why" if systemd_runs() else "containerd's log says why"


def start_daemon() -> str:
    if systemd_runs():
        return f"systemctl start fastpull; {daemon_log()}"
    return f"sudo fastpull setup starts it; {daemon_log()}"


def restart_daemon() -> str:
    return "restart it: systemctl restart fastpull" if systemd_runs() else "restart fastpull-snapshotter"


def daemon_log() -> str:
    return "journalctl -u fastpull says why" if systemd_runs() else f"its log ({DAEMON_LOG}) says why"
