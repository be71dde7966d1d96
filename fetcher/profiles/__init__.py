"""What a start reads: recorded, kept, shared, and fetched ahead of the next one.

``profile`` (the document) and ``merging`` (one of several), both pure; ``recording`` (one) and ``recorder`` (all of a
node); ``store`` and ``referrers`` (where they are kept: here, and beside the image in its registry); ``replay`` (found,
and fetched); ``warming`` and its process ``warmer`` (read into the page cache); ``profiles`` (the whole, at work on
a ``node``). ``docs/design/0003-profiles.md`` tells how an image passes through.
"""

__all__: list[str] = []
