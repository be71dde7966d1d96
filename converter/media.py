"""Media types of images and their layers (OCI image specification; Docker image manifest version 2, schema 2)."""

from typing import Final

from fetcher.registry import Descriptor

OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
DOCKER_CONFIG: Final = "application/vnd.docker.container.image.v1+json"
CONFIG_TYPES: Final = frozenset((OCI_CONFIG, DOCKER_CONFIG))

LAYER_ZSTD: Final = "application/vnd.oci.image.layer.v1.tar+zstd"
DOCKER_LAYER: Final = "application/vnd.docker.image.rootfs.diff.tar"
_LAYER_STEMS: Final = ("application/vnd.oci.image.layer.v1.tar", DOCKER_LAYER)
_COMPRESSIONS: Final = frozenset(("", "+gzip", "+zstd", ".gzip", ".zstd"))


def is_tar_layer(media_type: str) -> bool:
    """Whether it names a layer tar that anybody may copy: no foreign (`nondistributable`) and no encrypted ones."""
    return any(media_type.startswith(stem) and media_type.removeprefix(stem) in _COMPRESSIONS for stem in _LAYER_STEMS)


def is_foreign(layer: Descriptor) -> bool:
    """Whether the blob is to be had elsewhere only (`urls`), and must not be pushed."""
    return "nondistributable" in layer.media_type or ".foreign." in layer.media_type
