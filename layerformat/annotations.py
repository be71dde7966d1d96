"""What a layer descriptor's annotations say.

containerd hands every annotation whose key starts with `containerd.io/snapshot/` to the snapshotter as a label, so the
same keys are read from a manifest and from a Prepare request.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

from layerformat.digest import DiffID, Digest, parse_digest
from layerformat.errors import FormatError

PREFIX: Final = "containerd.io/snapshot/fastpull."
VERSION_KEY: Final = PREFIX + "version"
DIGEST_KEY: Final = PREFIX + "digest"
SIZE_KEY: Final = PREFIX + "size"
INDEX_OFFSET_KEY: Final = PREFIX + "index-offset"
INDEX_SIZE_KEY: Final = PREFIX + "index-size"
INDEX_DIGEST_KEY: Final = PREFIX + "index-digest"
DIFF_ID_KEY: Final = PREFIX + "diff-id"
KEYS: Final = (VERSION_KEY, DIGEST_KEY, SIZE_KEY, INDEX_OFFSET_KEY, INDEX_SIZE_KEY, INDEX_DIGEST_KEY, DIFF_ID_KEY)

FORMAT_VERSION: Final = 1
_MAX_NUMBER: Final = 2**63 - 1  # what every consumer (JSON readers, sqlite, Go's int64) can hold


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRef:
    """A layer as its descriptor names it. All sizes and offsets are bytes of the (compressed) layer blob.

    Inherits the manifest's digest, so trust runs from the manifest to the index and from there to each frame.
    """

    version: int
    digest: Digest
    size: int
    index_offset: int  # of the index payload, just after its skippable frame's 8-byte header
    index_size: int  # of the payload, header excluded
    index_digest: Digest  # SHA-256 of the payload
    diff_id: DiffID  # SHA-256 of the uncompressed tar

    def __post_init__(self) -> None:
        """Refuse what no converter writes; FormatError names the field."""
        if self.version != FORMAT_VERSION:
            raise FormatError(f"layer {self.digest}: format version {self.version}, this reader knows {FORMAT_VERSION}")
        for name in ("digest", "index_digest", "diff_id"):
            parse_digest(getattr(self, name))
        for name in ("size", "index_offset", "index_size"):
            if not 0 < getattr(self, name) <= _MAX_NUMBER:
                raise FormatError(f"layer {self.digest}: {name} {getattr(self, name)} out of range")
        if self.index_offset + self.index_size > self.size:
            raise FormatError(f"layer {self.digest}: index ends beyond the blob's {self.size} bytes")

    def to_annotations(self) -> dict[str, str]:
        """The descriptor annotations that `from_annotations` reads back."""
        return {
            VERSION_KEY: str(self.version),
            DIGEST_KEY: self.digest,
            SIZE_KEY: str(self.size),
            INDEX_OFFSET_KEY: str(self.index_offset),
            INDEX_SIZE_KEY: str(self.index_size),
            INDEX_DIGEST_KEY: self.index_digest,
            DIFF_ID_KEY: self.diff_id,
        }

    @classmethod
    def from_annotations(cls, labels: Mapping[str, str]) -> "Self | None":
        """The layer that `labels` describe, or None when they say nothing of the format (no version key).

        Raises FormatError when the version key is there but the rest is missing, malformed or of another version.
        """
        if VERSION_KEY not in labels:
            return None
        version = _number(labels, VERSION_KEY)
        if version != FORMAT_VERSION:  # before anything else: a later version may mean other keys
            raise FormatError(f"{VERSION_KEY} is {version}, this reader knows {FORMAT_VERSION}")
        return cls(
            version=version,
            digest=parse_digest(_text(labels, DIGEST_KEY)),
            size=_number(labels, SIZE_KEY),
            index_offset=_number(labels, INDEX_OFFSET_KEY),
            index_size=_number(labels, INDEX_SIZE_KEY),
            index_digest=parse_digest(_text(labels, INDEX_DIGEST_KEY)),
            diff_id=DiffID(parse_digest(_text(labels, DIFF_ID_KEY))),
        )


def _text(labels: Mapping[str, str], key: str) -> str:
    try:
        return labels[key]
    except KeyError:
        raise FormatError(f"annotation {key} is missing") from None


def _number(labels: Mapping[str, str], key: str) -> int:
    """A canonical decimal: one spelling per number, so that equal layers have equal annotations."""
    text = _text(labels, key)
    if len(text) > 19 or not text.isascii() or not text.isdigit() or (text[0] == "0" and text != "0"):
        raise FormatError(f"annotation {key}: {text[:40]!r} is not a canonical decimal")
    return int(text)
