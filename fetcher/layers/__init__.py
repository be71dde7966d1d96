"""What a node has of each layer, and how it comes to have it.

``layer`` (its directory, index and file), ``bitmap`` (which frames are there), ``extents`` (which file a byte is of);
``admission`` (fetched, checked, named), ``checking`` and its process ``checker`` (whether an index is sound),
``tar_digest`` (whether the whole is what the image's config names).
"""

__all__: list[str] = []
