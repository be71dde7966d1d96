"""What can go wrong, mirrored from containerd's errdefs, and the one table that gives each its gRPC status."""

from __future__ import annotations

import errno
from typing import Final

from grpc import StatusCode

from layerformat.errors import FormatError


class SnapshotError(Exception):
    """Base of everything the snapshotter raises on purpose. The text reaches the user through containerd: one line."""


class InvalidArgument(SnapshotError):
    """The request can never succeed as it is."""


class NotFound(SnapshotError):
    """No snapshot, or no parent, of that name."""


class AlreadyExists(SnapshotError):
    """The name is taken; or, answering a Prepare with `containerd.io/snapshot.ref`: the layer is there, skip it."""


class FailedPrecondition(SnapshotError):
    """The snapshot is in the wrong state for this."""


class Unavailable(SnapshotError):
    """Right request, wrong moment: a retry may succeed."""


STATUS: Final[dict[type[SnapshotError], StatusCode]] = {
    SnapshotError: StatusCode.UNKNOWN,
    InvalidArgument: StatusCode.INVALID_ARGUMENT,
    NotFound: StatusCode.NOT_FOUND,
    AlreadyExists: StatusCode.ALREADY_EXISTS,
    FailedPrecondition: StatusCode.FAILED_PRECONDITION,
    Unavailable: StatusCode.UNAVAILABLE,
}

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


def grpc_status(exc: Exception) -> StatusCode:
    """The status for any exception, foreign ones included. What nobody foresaw is UNKNOWN, never a success."""
    if isinstance(exc, SnapshotError):
        return STATUS[type(exc)]
    if isinstance(exc, FormatError):
        return StatusCode.FAILED_PRECONDITION
    if isinstance(exc, OSError) and exc.errno in _FULL:
        return StatusCode.RESOURCE_EXHAUSTED
    return StatusCode.UNKNOWN
