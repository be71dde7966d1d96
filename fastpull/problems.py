"""Errors of the other packages as the command tells them: one table, tested for totality.

The converter's errors carry their own code and hint. An error without a row is a defect of fastpull and ends in a
traceback.
"""

from collections.abc import Mapping

from converter.errors import ConvertError
from fastpull.exit_codes import ExitCode
from fastpull.failures import Failure
from fetcher.registry import errors as registry
from layerformat.errors import FormatError

_CHECK_NETWORK = "check the name, the network and any proxy; fastpull doctor looks at this machine"
_LOG_IN = "log in with `nerdctl login` or `docker login`; `fastpull auth check REF` shows what is sent"

TABLE: Mapping[type[Exception], tuple[ExitCode, str]] = {
    registry.InvalidReference: (ExitCode.USAGE, "an image is written [HOST[:PORT]/]REPOSITORY[:TAG][@DIGEST]"),
    registry.InvalidConfig: (ExitCode.MALFORMED, "mend or remove the file"),
    registry.CredentialsUnavailable: (ExitCode.DENIED, "run the credential helper by hand to see what it says"),
    registry.NotFound: (ExitCode.NOT_FOUND, "check the repository and the tag"),
    registry.Unauthorized: (ExitCode.DENIED, _LOG_IN),
    registry.Denied: (ExitCode.DENIED, "these credentials may not do this; ask for access to the repository"),
    registry.Rejected: (ExitCode.FAILED, "the registry understood and refused; its own log says more"),
    registry.Untrusted: (ExitCode.UNAVAILABLE, "put the CA into certs.d/HOST/hosts.toml, or use --plain-http"),
    registry.ProtocolViolation: (ExitCode.MALFORMED, "something between here and the registry is not a registry"),
    registry.DigestMismatch: (ExitCode.MALFORMED, "the registry or a mirror sends wrong bytes; try another source"),
    registry.Unavailable: (ExitCode.UNAVAILABLE, _CHECK_NETWORK),
    registry.RegistryError: (ExitCode.FAILED, ""),
    FormatError: (ExitCode.MALFORMED, "the image is damaged or made by a newer fastpull; convert it again"),
    PermissionError: (ExitCode.NOT_PERMITTED, "run it as root"),
    FileNotFoundError: (ExitCode.NOT_FOUND, ""),
    ConnectionError: (ExitCode.UNAVAILABLE, ""),
}


def explain(problem: BaseException) -> Failure | None:
    """The failure to print for `problem`, or None where it is a defect. The most derived row of the table counts."""
    if isinstance(problem, BaseExceptionGroup):
        return _explain_group(problem)
    if isinstance(problem, Failure):
        return problem
    if isinstance(problem, ConvertError):
        return Failure(_one_line(problem), hint=problem.hint, code=ExitCode(problem.exit_code))
    for base in type(problem).__mro__:
        row = TABLE.get(base)
        if row is not None:
            return Failure(_one_line(problem), hint=row[1], code=row[0])
    return None


def _explain_group(group: BaseExceptionGroup[BaseException]) -> Failure | None:
    # The first known error is the cause; the others of a task group are its echo. One unknown error is a defect.
    explained = [explain(inner) for inner in group.exceptions]
    return None if any(one is None for one in explained) else explained[0]


def _one_line(problem: BaseException) -> str:
    text = str(problem) or type(problem).__name__
    return " ".join(text.split())
