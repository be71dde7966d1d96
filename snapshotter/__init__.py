"""containerd's snapshots API: which snapshots there are, what lies on what, and which of them are layers of ours.

Modules, from the outside in: ``service`` (gRPC: decode, one core call, encode), ``calls`` (how the calls went),
``core`` (the life of snapshots), ``layers`` (the remote protocol, who holds which layer), ``resolve`` and
``containerd`` (which layer a Prepare is for), ``mounts`` (from a chain to mount options; pure), ``probe`` (what this
kernel's overlayfs needs), ``store`` and ``database`` (sqlite), ``directories`` (on the disk), ``filters``
(containerd's filter grammar), ``provider`` (what is asked of the fetcher), ``model`` and ``errors``. The whole is
described in docs/snapshotter.md.
"""

__all__: list[str] = []
