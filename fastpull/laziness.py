"""Will this image be loaded lazily? Asked of what containerd would really mount, not of labels or log lines."""

import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

import grpc

from fastpull.exit_codes import ExitCode
from fastpull.failures import Failure
from fastpull.nerdctl import Nerdctl
from snapshotter._pb import snapshots_pb2, snapshots_pb2_grpc

# An ordinary layer's directory, as the snapshotter lays it out; everything else in a lowerdir is served lazily.
_ORDINARY = re.compile(r"/snapshots/\d+/fs/*$")
_RPC_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Lowers:
    """The image's layers under a container, uppermost first, by how they are served."""

    lazy: tuple[str, ...]
    ordinary: tuple[str, ...]


def classify(mounts: Sequence[tuple[str, str, Sequence[str]]]) -> Lowers:
    """Sort the layers of a mount list of (type, source, options) by how they are served. Pure."""
    lowers: list[str] = []
    for _, source, options in mounts:
        stacked = [option.partition("=")[2] for option in options if option.startswith("lowerdir=")]
        lowers += [path for group in stacked for path in group.split(":") if path] if stacked else [source]
    ordinary = tuple(path for path in lowers if _ORDINARY.search(path))
    return Lowers(lazy=tuple(path for path in lowers if path not in ordinary), ordinary=ordinary)


def require_lazy(nerdctl: Nerdctl, image: str, snapshotter: str) -> None:
    """Make sure of it before anything of the image runs: a container is created from it, looked at and removed.

    Raises:
        Failure: at least one layer would be an ordinary, fully downloaded one.
    """
    name = f"fastpull-probe-{uuid.uuid4().hex[:12]}"
    argv = nerdctl.argv("create", "--name", name, "--network", "none", image, "true", snapshotter=snapshotter)
    created = nerdctl.run(argv, timeout_s=3600.0)
    try:
        if created.returncode != 0:
            raise nerdctl.failure("create", created)
        container_id = created.stdout.split()[-1]
        lowers = classify(container_mounts(nerdctl, container_id, snapshotter))
    finally:
        nerdctl.call("rm", "-f", "-v", name)
    if lowers.ordinary or not lowers.lazy:
        raise _not_lazy(image, lowers)


def container_mounts(nerdctl: Nerdctl, key: str, snapshotter: str) -> list[tuple[str, str, list[str]]]:
    """What containerd would mount as the root of the container `key`."""
    request = snapshots_pb2.MountsRequest(snapshotter=snapshotter, key=key)
    metadata = (("containerd-namespace", nerdctl.namespace),)
    with grpc.insecure_channel(f"unix://{nerdctl.address}") as channel:
        try:
            answer = snapshots_pb2_grpc.SnapshotsStub(channel).Mounts(
                request, timeout=_RPC_TIMEOUT_S, metadata=metadata
            )
        except grpc.RpcError as problem:
            assert isinstance(problem, grpc.Call)
            raise Failure(
                f"containerd cannot tell the mounts: {problem.details()}", code=ExitCode.UNAVAILABLE
            ) from None
    return [(mount.type, mount.source, list(mount.options)) for mount in answer.mounts]


def _not_lazy(image: str, lowers: Lowers) -> Failure:
    total = len(lowers.lazy) + len(lowers.ordinary)
    return Failure(
        f"{image} would not be lazy: {len(lowers.ordinary)} of {total} layers are ordinary",
        hint="`fastpull inspect IMAGE` shows which layers are converted; `fastpull convert` converts the rest",
        code=ExitCode.NOT_LAZY,
    )
