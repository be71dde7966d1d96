"""The bytes of a converted layer: written by the converter, read by the fetcher. docs/FORMAT.md is the specification.

errors       FormatError
digest       Digest, DiffID, ChainID
annotations  LayerRef: what a layer descriptor says about its index
frames       Frame, FrameTable, skippable frames, the seek table, one frame decoded and verified
index        Index, its payload, and its check against a LayerRef
entries      Entry: one file of a layer
tree         entries to a tree of inodes
erofs        on-disk definitions and the subset of EROFS that is used
erofs_write  build_metadata: entries to an EROFS image
erofs_parse  one structure of an image at a time, bounds checked
erofs_read   validate_metadata, read_metadata: a whole image, checked; back to entries
"""

__all__ = [
    "annotations",
    "digest",
    "entries",
    "erofs",
    "erofs_parse",
    "erofs_read",
    "erofs_write",
    "errors",
    "frames",
    "index",
    "tree",
]
