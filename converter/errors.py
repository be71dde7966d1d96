"""What can go wrong in a conversion, and the exit code of each. One line says what, one says what to do."""

from typing import ClassVar


class ConvertError(Exception):
    """Base of the converter's own errors: a message for a person, a hint, and the command's exit code."""

    exit_code: ClassVar[int] = 1
    default_hint: ClassVar[str] = ""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = self.default_hint if hint is None else hint


class UsageError(ConvertError):
    """The request itself makes no sense."""

    exit_code = 2
    default_hint = "see fastpull convert --help"


class SourceNotFound(ConvertError):
    """No such image, tag, file or platform."""

    exit_code = 3
    default_hint = "check the name, the tag and the platform"


class AuthError(ConvertError):
    """A registry refused the credentials, or wants some."""

    exit_code = 4
    default_hint = "log in to the registry (docker login, or a credential helper in ~/.docker/config.json)"


class MalformedInput(ConvertError):
    """The source image is damaged, lies about itself, or is of a kind that cannot be converted."""

    exit_code = 5
    default_hint = "pull the image with another tool to see whether it is intact"


class MalformedLayer(MalformedInput):
    """A layer's tar or compression is damaged or holds what no container runtime could extract."""


class DestinationError(ConvertError):
    """Writing failed; nothing was published under the destination's name."""

    exit_code = 1
    default_hint = "nothing was published; check free space and permissions, then run the same command again"


class DestinationUnavailable(DestinationError):
    """The destination's registry cannot be reached or is overloaded."""

    exit_code = 6
    default_hint = "nothing was published; run the same command again, layers that arrived are not sent twice"


class SourceUnavailable(ConvertError):
    """The source exists but could not be read: network, registry overload, I/O error."""

    exit_code = 6
    default_hint = "run the same command again; layers already at the destination are not done twice"
