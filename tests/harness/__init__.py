"""What the tests stand on. The private laboratory itself is `fastpull.lab`; this package adds what only tests need.

| module | offers |
|---|---|
| `leaks` | `Footprint`: mounts, loop devices, namespaces, processes, directories and fds, to compare before and after |
| `images` | sample images: a busybox base, every kind of entry, one big file |
| `trees` | what a tree looks like in every attribute, to compare a lazy container with an ordinary one |
| `page_cache` | what the kernel keeps of single files |
| `skips` | which skips are declared |
| `clean_machine` | a machine of its own, with systemd or without, for what is done as root at `/` |
| `fake_registry` | a registry in this process, scriptable to misbehave |

The fixtures (`workspace`, `registry`, `link`, `slow_registry`, `daemon`, `containerd`, `release`,
`current_release`, `sample_images`) are in tests/conftest.py.
"""

from fastpull.lab.containerd import Containerd as PrivateContainerd
from fastpull.lab.daemon import Daemon
from fastpull.lab.network import LinkShape, ShapedLink
from fastpull.lab.registry import Registry
from fastpull.lab.workspace import Workspace

#: A daemon's configuration. A layer that is being recorded goes on raising events when it is complete.
UNRECORDED = '[profiles]\nrecord = "off"\n'

__all__ = ["UNRECORDED", "Daemon", "LinkShape", "PrivateContainerd", "Registry", "ShapedLink", "Workspace"]
