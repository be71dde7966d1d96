"""`fastpull report`: one start of one image, told as a page.

| module | offers |
|---|---|
| `trace` | what was read, when, of which layer and file; starts told apart (pure) |
| `findings` | the figures of a start, and what to change (pure) |
| `page` | the page, self-contained HTML (pure) |
| `gather` | the data, from the daemon, containerd and the layers' indexes on disk |
"""
