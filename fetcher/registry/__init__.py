"""Registries: everything that speaks the OCI distribution protocol. Other packages import from here only.

From the outside in: ``client`` (the one object to use), ``blobs``, ``pushing`` and ``uploads``, ``manifests``,
``referrers`` (what can be done), ``router`` and ``hosts`` (which servers to ask: mirrors, certs.d), ``retry``,
``session`` (authentication and redirects of one request), ``auth``, ``tokens``, ``challenge``, ``credentials``,
``kubelet``, ``exec_helper`` (who we are), ``transport`` (the seam to HTTP), ``status`` and ``errors`` (what went
wrong), ``ranges``, ``proxies``, ``reference``, ``descriptor``, ``config`` (values).
"""

from fetcher.registry.auth import ProviderAnswer
from fetcher.registry.client import RegistryClient
from fetcher.registry.config import RegistryConfig, Timeouts, docker_config_path, is_loopback, is_plain
from fetcher.registry.credentials import Credentials
from fetcher.registry.descriptor import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    EMPTY_TYPE,
    INDEX_TYPES,
    MANIFEST_TYPES,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Manifest,
    Platform,
    descriptors,
    encode_json,
    parse_json_object,
)
from fetcher.registry.errors import (
    CredentialsUnavailable,
    Denied,
    DigestMismatch,
    InvalidConfig,
    InvalidReference,
    NotFound,
    ProtocolViolation,
    RateLimited,
    RegistryError,
    Rejected,
    ShortBody,
    Unauthorized,
    Unavailable,
    Untrusted,
    UploadLost,
    is_transient,
    retry_after_s,
)
from fetcher.registry.hosts import Endpoint
from fetcher.registry.reference import Origin, Reference
from fetcher.registry.retry import RetryPolicy

__all__ = [
    "DOCKER_LIST",
    "DOCKER_MANIFEST",
    "EMPTY_TYPE",
    "INDEX_TYPES",
    "MANIFEST_TYPES",
    "OCI_INDEX",
    "OCI_MANIFEST",
    "Credentials",
    "CredentialsUnavailable",
    "Denied",
    "Descriptor",
    "DigestMismatch",
    "Endpoint",
    "InvalidConfig",
    "InvalidReference",
    "Manifest",
    "NotFound",
    "Origin",
    "Platform",
    "ProtocolViolation",
    "ProviderAnswer",
    "RateLimited",
    "Reference",
    "RegistryClient",
    "RegistryConfig",
    "RegistryError",
    "Rejected",
    "RetryPolicy",
    "ShortBody",
    "Timeouts",
    "Unauthorized",
    "Unavailable",
    "Untrusted",
    "UploadLost",
    "descriptors",
    "docker_config_path",
    "encode_json",
    "is_loopback",
    "is_plain",
    "is_transient",
    "parse_json_object",
    "retry_after_s",
]
