"""Every error has its gRPC status."""

import errno

import pytest
from grpc import StatusCode

from layerformat.errors import FormatError
from snapshotter import errors
from snapshotter.errors import STATUS, SnapshotError, grpc_status


def descendants(base: type[SnapshotError]) -> set[type[SnapshotError]]:
    return {base}.union(*(descendants(each) for each in base.__subclasses__()))


def test_the_table_is_total() -> None:
    assert descendants(SnapshotError) == set(STATUS)
    named = {each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, SnapshotError)}
    assert named == set(STATUS)


def test_no_error_passes_for_success() -> None:
    assert StatusCode.OK not in STATUS.values()
    assert len(set(STATUS.values())) == len(STATUS)


@pytest.mark.parametrize(
    ("exc", "status"),
    [
        (FormatError("x"), StatusCode.FAILED_PRECONDITION),
        (OSError(errno.ENOSPC, "full"), StatusCode.RESOURCE_EXHAUSTED),
        (OSError(errno.EIO, "broken"), StatusCode.UNKNOWN),
        (KeyError("bug"), StatusCode.UNKNOWN),
    ],
)
def test_foreign_errors(exc: Exception, status: StatusCode) -> None:
    assert grpc_status(exc) is status
