"""The client: one object, one connection pool, all registries."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack

from fetcher.registry.auth import Authorizer, ProviderAnswer
from fetcher.registry.blobs import BlobReader
from fetcher.registry.config import RegistryConfig
from fetcher.registry.credentials import CredentialProvider, StaticProvider, docker_providers
from fetcher.registry.descriptor import Descriptor, Manifest
from fetcher.registry.hosts import Endpoint, HostTable
from fetcher.registry.kubelet import KubeletProvider
from fetcher.registry.manifests import ManifestStore
from fetcher.registry.pushing import BlobWriter
from fetcher.registry.reference import Origin, Reference
from fetcher.registry.referrers import Referrers
from fetcher.registry.router import Router
from fetcher.registry.session import Session
from fetcher.registry.tokens import TokenService
from fetcher.registry.transport import Transport
from fetcher.registry.uploads import Uploads
from layerformat.digest import Digest


class RegistryClient:
    """Reads from and pushes to registries. Every method may raise :class:`RegistryError`; transient failures were
    retried by then.

    An async context manager. Safe to use from many tasks of one event loop.
    """

    def __init__(self, config: RegistryConfig) -> None:
        self.config = config
        self._stack = AsyncExitStack()
        self._transport = Transport(config)
        self._authorizer = Authorizer(TokenService(self._transport, config), _providers(config))
        session = Session(self._transport, self._authorizer, config)
        self._router = Router(HostTable(config), config.retry)
        self._blobs = BlobReader(session, self._router, config.retry)
        self._manifests = ManifestStore(session, self._router)
        self._writer = BlobWriter(Uploads(session, self._router, config), self._blobs, config)
        self._referrers = Referrers(session, self._router, self._manifests, self._writer)

    async def __aenter__(self) -> "RegistryClient":
        await self._stack.enter_async_context(self._transport)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._stack.aclose()

    async def resolve(self, ref: Reference) -> Descriptor:
        """What ``ref`` is now. By HEAD; a registry whose HEAD does not tell is asked with GET."""
        return await self._manifests.resolve(ref)

    async def manifest(self, origin: Origin, reference: str) -> Manifest:
        """The manifest or index at a tag or digest; never one whose digest is not the one asked for."""
        return await self._manifests.get(origin, reference)

    def read_blob(
        self, origin: Origin, digest: Digest, *, offset: int = 0, length: int | None = None, via: Endpoint | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """``length`` bytes from ``offset`` in chunks of any size, as they arrive. **Not verified.**

        Entering waits for the head of the response and has retried by then (all endpoints of the origin, or ``via``
        alone). The iterator yields exactly the bytes asked for, or raises: :class:`ShortBody` or another transient
        error if the connection broke; what was yielded before is good as far as it goes, and the caller asks for the
        rest. Leaving early closes the connection.
        """
        return self._blobs.read(origin, digest, offset=offset, length=length, via=via)

    def pull_blob(self, origin: Origin, digest: Digest) -> AsyncIterator[bytes]:
        """A whole blob, resumed where a connection breaks.

        Ends with :class:`DigestMismatch` if the bytes are not the blob's.
        """
        return self._blobs.pull(origin, digest)

    async def endpoints(self, origin: Origin) -> tuple[Endpoint, ...]:
        """Mirrors and upstream of an origin, in the order to be tried now: for callers that spread reads by ``via``."""
        return await self._router.endpoints(origin, "pull")

    async def blob_exists(self, origin: Origin, digest: Digest) -> int | None:
        """Bytes of the blob, None if it is not there."""
        return await self._blobs.size(origin, digest)

    async def mount_blob(self, origin: Origin, digest: Digest, source: Origin) -> bool:
        """Have the registry take the blob from another of its repositories. False: it would not; push it instead."""
        return await self._writer.mount(origin, digest, source)

    async def push_blob(self, origin: Origin, chunks: AsyncIterator[bytes]) -> tuple[Digest, int]:
        """Upload what ``chunks`` yields; its digest and size in bytes.

        Holds two chunks of ``upload_chunk_bytes``. ``chunks`` may be advanced by another task than the caller's.
        :class:`UploadLost` (transient) means the registry forgot what it had: only a new stream can help.
        """
        return await self._writer.push(origin, chunks)

    async def push_blob_bytes(self, origin: Origin, data: bytes) -> Digest:
        """Upload ``data`` in one request, unless the registry has it."""
        return await self._writer.push_bytes(origin, data)

    async def push_layer_bytes(self, origin: Origin, data: bytes, media_type: str) -> Descriptor:
        """The same, as what a manifest names."""
        digest = await self._writer.push_bytes(origin, data)
        return Descriptor(media_type=media_type, digest=digest, size=len(data))

    async def push_manifest(self, origin: Origin, reference: str, body: bytes, media_type: str) -> Digest:
        """Put a manifest or index at a tag, or at its digest."""
        digest, _ = await self._manifests.put(origin, reference, body, media_type)
        return digest

    async def referrers(self, origin: Origin, digest: Digest, artifact_type: str | None = None) -> list[Descriptor]:
        """What refers to ``digest``; empty if nothing does."""
        return await self._referrers.find(origin, digest, artifact_type)

    async def push_referrer(
        self,
        origin: Origin,
        subject: Descriptor,
        artifact_type: str,
        layers: Sequence[Descriptor],
        annotations: Mapping[str, str],
    ) -> Descriptor:
        """Push a manifest of ``layers``, which are there already, about ``subject``; its descriptor."""
        return await self._referrers.push(origin, subject, artifact_type, layers, annotations)

    async def delete_manifest(self, origin: Origin, digest: Digest) -> None:
        """:class:`Rejected` where the registry does not allow it (405)."""
        await self._manifests.delete(origin, digest)

    async def explain_credentials(self, origin: Origin) -> tuple[ProviderAnswer, ...]:
        """What each credential provider says about the origin's registry, in the order they are asked."""
        return await self._authorizer.explain(origin.host, origin.repository)


def _providers(config: RegistryConfig) -> list[CredentialProvider]:
    providers: list[CredentialProvider] = []
    if config.credentials:
        providers.append(StaticProvider(config.credentials))
    if config.docker_config is not None:
        providers.extend(docker_providers(config.docker_config, config.environment))
    if config.kubelet_plugins is not None and config.kubelet_plugin_dir is not None:
        providers.append(KubeletProvider(config.kubelet_plugins, config.kubelet_plugin_dir, config.environment))
    return providers
