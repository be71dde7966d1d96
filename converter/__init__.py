"""From any image to one that starts lazily; `converter.convert.convert_image` is the way in.

From the outside in: `convert` (an image or index), `layers` (what becomes of each layer), `lower` (attributes taken
from layers below), `pipeline` (one layer, streaming), `threads`; `tarlayer` (the padded tar) on `tarheader`, `pax`,
`sparse`, `headergroup` and `tree` (what extraction leaves behind); `cuts`, `framer`, `compress` (frames); `locations`,
`transports`, `sources`, `docker_archive`, `destinations`, `oci_destinations`, `copying`, `files`, `unnamed`, `media`
(where images are); `options`, `progress`, `errors` (values).
"""

__all__: list[str] = []
