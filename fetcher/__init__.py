"""The bytes of the layers: what to fetch next, from where, verified, and how the kernel gets to see them.

Modules, from the kernel up: ``kernel`` (system calls), ``keeper`` (the process that holds file descriptors over the
daemon's death), ``journal`` (events taken but not answered), ``bitmap`` and ``layer`` (what a node has of a layer),
``registry`` (where the rest comes from), ``governor`` (what comes next), ``fanotify``, ``fuse`` and ``eager`` (the data
planes), ``planes`` (which of them), ``node`` (:class:`~fetcher.node.Fetcher`, the whole).
"""

__all__: list[str] = []
