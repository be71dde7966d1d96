"""The data planes: how the kernel asks for a layer's bytes, and is answered.

``plane`` is what the node asks of each, ``selection`` decides which a node gets. ``fanotify`` with ``event_journal``;
``fuse`` with ``fuse_protocol``, ``fuse_session`` and ``fuse_journal``; both mount with ``erofs_mount``, over a
``loop_device`` where the kernel wants one; ``eager`` with its process ``eager_unpack``. ``keeper`` is the process that
holds their descriptors over the daemon's death, ``keeper_client`` the daemon's side of it, ``teardown`` the end of
both; ``touches`` tells what was read.
"""

__all__: list[str] = []
