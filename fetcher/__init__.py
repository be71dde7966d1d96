"""The bytes of the layers: what to fetch next, from where, verified, and how the kernel gets to see them.

From the ground up: ``registry`` (where the bytes come from), ``layers`` (what a node has of each layer), ``scheduler``
(what comes next, and the fetching), ``planes`` (how the kernel asks and is answered), ``profiles`` (what a start
reads), ``node`` (:class:`~fetcher.node.Fetcher`, the whole). Beside them: ``model`` (values), ``kernel`` (system
calls), ``cache`` (what must go), ``tasks`` and ``subprocesses`` (what is under way, supervised).
"""

__all__: list[str] = []
