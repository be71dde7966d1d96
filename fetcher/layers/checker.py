"""The check of a layer's index, and the process that carries it out where it takes long.

Run as a module, it takes one JSON object on standard input: ``directory`` of a draft, ``annotations`` of the layer. It
prints ``{"metadata_digest": DIGEST}``, ``{"malformed": WHY}`` or ``{"errno": NUMBER}``.

Nothing is imported that a start would have to wait for.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from contextlib import suppress
from pathlib import Path

from fetcher.layers.extents import EXTENTS, encode_extents
from layerformat.annotations import LayerRef
from layerformat.digest import Digest, sha256_digest
from layerformat.errors import FormatError
from layerformat.index import open_index


def check_index(directory: Path, ref: LayerRef) -> Digest:
    """Check all of a draft's ``index``, write what follows from it (metadata, extents), return the metadata's digest.

    CPU bound, about 10 us a file of the layer. Raises FormatError, or OSError when the disk is full.
    """
    opened = open_index((directory / "index").read_bytes(), ref)
    write_durably(directory / "meta.erofs", opened.metadata)
    write_durably(directory / EXTENTS, encode_extents(opened.extents))
    return sha256_digest(opened.metadata)


def write_durably(path: Path, data: bytes) -> None:
    """Write a file that is on the disk on return. Blocks; raises OSError."""
    with path.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fdatasync(stream.fileno())


def main() -> int:
    """The process. Where its parent dies before it asks or is answered, it ends in silence."""
    # It makes several objects for each file and is soon gone: looking for garbage among them took a third of its time.
    gc.disable()
    question = sys.stdin.read()
    if not question:
        return 0
    order = json.loads(question)
    ref = LayerRef.from_annotations(order["annotations"])
    assert ref is not None
    try:
        told: dict[str, object] = {"metadata_digest": check_index(Path(order["directory"]), ref)}
    except FormatError as error:
        told = {"malformed": str(error)}
    except OSError as error:
        told = {"errno": error.errno}
    with suppress(OSError):
        os.write(sys.stdout.fileno(), json.dumps(told).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
