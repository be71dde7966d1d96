"""Referrers as anyone may push them."""

from collections.abc import Mapping

from fetcher.registry import Descriptor, Origin, RegistryClient


async def attach(
    client: RegistryClient,
    origin: Origin,
    subject: Descriptor,
    artifact_type: str,
    body: bytes,
    annotations: Mapping[str, str],
) -> Descriptor:
    """A referrer of one layer, which has the same media type."""
    layer = await client.push_layer_bytes(origin, body, artifact_type)
    return await client.push_referrer(origin, subject, artifact_type, [layer], annotations)
