"""The systemd unit and the daemon's first configuration file. Pure."""

from dataclasses import dataclass

UNIT_NAME = "fastpull.service"

_UNIT = """\
[Unit]
Description=fastpull snapshotter: starts container images before they are downloaded
Documentation=man:fastpull(1)
# containerd asks for snapshots as soon as it runs.
Before=containerd.service
After=network.target local-fs.target

[Service]
Type=notify
NotifyAccess=main
ExecStart={program} --config /etc/fastpull/config.toml
Restart=always
RestartSec=1
# A restart must not touch what containers read from: the keeper process and the mounts outlive the daemon.
KillMode=process
# Mounts made by the daemon have to be seen by containerd: no private mount namespace here.
PrivateMounts=no
Environment=HOME=/root
LimitNOFILE=1048576
OOMScoreAdjust=-999
TasksMax=infinity

[Install]
WantedBy=multi-user.target
"""

_CONFIG = """\
# fastpull-snapshotter. Every setting has a sensible default; see fastpull(1).
root = "{root}"
run_dir = "{run_dir}"
containerd_address = "{containerd_address}"
"""

TMPFILES = "d /run/fastpull 0700 root root -\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Paths:
    """Where things are on the machine that is set up (never below a scratch root)."""

    program: str
    root: str = "/var/lib/fastpull"
    run_dir: str = "/run/fastpull"
    containerd_address: str = "/run/containerd/containerd.sock"

    @property
    def socket(self) -> str:
        return f"{self.run_dir}/fastpull.sock"


def unit_text(paths: Paths) -> str:
    """`fastpull.service`."""
    return _UNIT.format(program=_quoted(paths.program))


def config_text(paths: Paths) -> str:
    """`/etc/fastpull/config.toml`."""
    return _CONFIG.format(root=paths.root, run_dir=paths.run_dir, containerd_address=paths.containerd_address)


def _quoted(path: str) -> str:
    """A path as systemd.service(5) wants it in ExecStart=: % doubled, quoted where it holds a space."""
    escaped = path.replace("%", "%%").replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"' if " " in path else escaped
