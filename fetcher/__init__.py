"""The bytes of the layers: what to fetch next, from where, verified, and how the kernel gets to see them.

Modules, from the kernel up: ``kernel`` (system calls), ``keeper`` (the process that holds file descriptors over the
daemon's death), ``journal`` (events taken but not answered), ``bitmap`` and ``layer`` (what a node has of a layer),
``admission``, ``checking`` and ``checker`` (how it comes to have it),
``registry`` (where the rest comes from), ``governor`` and ``queues`` (what comes next), ``transfers`` and
``decode`` (how it comes), ``reuse`` and ``cache`` (what need not come, what must go), ``fanotify``, ``fuse`` and
``eager`` (the data planes), ``planes`` (which of them), ``profiles`` (what a start reads), ``node``
(:class:`~fetcher.node.Fetcher`, the whole).
"""

__all__: list[str] = []
