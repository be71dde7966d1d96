"""What can go wrong with a registry: a closed set, and the one place that decides whether trying again can help.

Every message names the object (``host/repository@digest``) and never a query string, header or credential: signed
URLs and tokens are secrets, and messages end up in logs.
"""


class RegistryError(Exception):
    """Something about a registry; ``str()`` is one line for a person."""

    transient = False


class InvalidReference(RegistryError, ValueError):
    """The text is no image reference."""


class InvalidConfig(RegistryError, ValueError):
    """A file that says how to reach registries (hosts.toml, config.json, credential provider) is malformed."""


class CredentialsUnavailable(RegistryError):
    """A credential provider that should have answered failed (a helper is missing, crashed, or printed nonsense)."""


class NotFound(RegistryError):
    """The registry has no such repository, manifest or blob."""


class Unauthorized(RegistryError):
    """401, although every credential at hand was tried."""


class Denied(RegistryError):
    """403: known, but not allowed."""


class Rejected(RegistryError):
    """Another 4xx: the registry understood and will not (``status`` tells)."""

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


class Untrusted(RegistryError):
    """The TLS certificate did not verify, or a secret would have gone over plain HTTP."""


class ProtocolViolation(RegistryError):
    """The answer is not what the distribution specification allows."""


class DigestMismatch(RegistryError):
    """The bytes are not those that were asked for. Another copy of them may be: transient."""

    transient = True


class Unavailable(RegistryError):
    """No answer, a broken answer, or 5xx. ``retry_after_s`` is what the server asked for."""

    transient = True

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RateLimited(Unavailable):
    """429."""


class ShortBody(Unavailable):
    """The connection ended before the announced length. ``received_bytes`` arrived and are good as far as they go."""

    def __init__(self, message: str, *, received_bytes: int) -> None:
        super().__init__(message)
        self.received_bytes = received_bytes


class UploadLost(Unavailable):
    """The registry forgot an upload in progress; only the whole upload can be tried again, by who can produce it
    again.
    """


def is_transient(exc: BaseException) -> bool:
    """Whether the same request may well succeed a moment later. Every retry in the project asks this."""
    return isinstance(exc, RegistryError) and exc.transient


def retry_after_s(exc: BaseException) -> float | None:
    """Seconds the server asked to be left alone, if it did."""
    return exc.retry_after_s if isinstance(exc, Unavailable) else None
