"""The image a profile is about: its manifest, as the registry has it, and its converted layers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from converter.convert import host_platform, matches
from fastpull.exit_codes import ExitCode
from fastpull.failures import Failure
from fastpull.image_view import fetch_index
from fastpull.registry_access import image_manifests
from fetcher.registry import Descriptor, Manifest, Origin, Platform, Reference, RegistryClient
from layerformat.annotations import LayerRef
from layerformat.digest import DiffID, Digest
from layerformat.errors import FormatError
from layerformat.frames import FrameTable


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One platform's image."""

    reference: Reference
    manifest: Descriptor
    layers: tuple[LayerRef, ...]  # the converted ones, from the bottom up

    @property
    def origin(self) -> Origin:
        return self.reference.origin

    @property
    def digest(self) -> Digest:
        return self.manifest.digest

    @property
    def diff_ids(self) -> tuple[DiffID, ...]:
        return tuple(ref.diff_id for ref in self.layers)

    def describe(self, window_s: float) -> dict[str, Any]:
        """The body of a recording's start, for a daemon that has not seen the image yet."""
        return {
            "name": str(self.reference),
            "layers": [ref.to_annotations() for ref in self.layers],
            "origins": [{"host": self.origin.host, "repository": self.origin.repository}],
            "window_s": window_s,
        }


async def find_target(client: RegistryClient, text: str, platform: str | None = None) -> Target:
    """The image at a reference, for this machine's platform unless told.

    Raises:
        Failure: there is no such platform, or no layer is converted.
        RegistryError: the registry has no such image, or is not to be reached.
    """
    reference = Reference.parse(text)
    wanted = Platform.parse(platform) if platform is not None else host_platform()
    found = await image_manifests(client, reference, None)
    manifests = [manifest for which, manifest in found if which is None or matches(which, wanted)]
    if not manifests:
        raise Failure(
            f"{reference} has no image for {wanted}", hint="name one with --platform", code=ExitCode.NOT_FOUND
        )
    layers = _converted(manifests[0])
    if not layers:
        hint = f"convert it first: fastpull convert {reference} DST"
        raise Failure(f"no layer of {reference} is converted", hint=hint, code=ExitCode.NOT_LAZY)
    return Target(reference=reference, manifest=manifests[0].descriptor, layers=layers)


async def all_targets(client: RegistryClient, reference: Reference) -> list[Target]:
    """The images of every platform that has a converted layer. Raises RegistryError."""
    found = await image_manifests(client, reference, None)
    targets = [
        Target(reference=reference, manifest=manifest.descriptor, layers=_converted(manifest)) for _, manifest in found
    ]
    return [target for target in targets if target.layers]


def _converted(manifest: Manifest) -> tuple[LayerRef, ...]:
    refs: Sequence[LayerRef | None] = [_ref(layer) for layer in manifest.layers]
    return tuple(ref for ref in refs if ref is not None)


def _ref(layer: Descriptor) -> LayerRef | None:
    try:
        ref = LayerRef.from_annotations(layer.annotations)
    except FormatError:
        return None
    return ref if ref is not None and ref.digest == layer.digest else None


async def frame_tables(client: RegistryClient, target: Target) -> dict[DiffID, FrameTable]:
    """The frames of every layer, from the indexes in the registry. Raises RegistryError or FormatError."""
    return {ref.diff_id: (await fetch_index(client, target.origin, ref)).frames for ref in target.layers}
