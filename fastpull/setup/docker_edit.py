"""Docker's daemon.json for its containerd image store with our snapshotter. Pure."""

import json
from typing import Any

from fastpull.setup.toml_edit import CannotEdit


def edit(text: str, snapshotter: str) -> str:
    """The file's text with the image store on and our snapshotter chosen; everything else stays.

    Raises:
        CannotEdit: it is not a JSON object, or another storage driver was chosen on purpose.
    """
    document = _parse(text)
    features = document.get("features", {})
    if not isinstance(features, dict):
        raise CannotEdit("daemon.json: features is not an object")
    driver = document.get("storage-driver")
    if driver not in (None, snapshotter, "overlayfs", "overlay2"):
        raise CannotEdit(f"daemon.json: storage-driver is {driver!r}; remove it if fastpull is to take its place")
    changed = {**document, "features": {**features, "containerd-snapshotter": True}, "storage-driver": snapshotter}
    return text if changed == document else json.dumps(changed, indent=2) + "\n"


def _parse(text: str) -> dict[str, Any]:
    if not text.strip():
        return {}
    try:
        document = json.loads(text)
    except ValueError as problem:
        raise CannotEdit(f"daemon.json: {problem}") from None
    if not isinstance(document, dict):
        raise CannotEdit("daemon.json is not a JSON object")
    return document
