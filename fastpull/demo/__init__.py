"""`fastpull demo`: one real image, started cold both ways behind a slow link, and the two starts side by side.

| module | offers |
|---|---|
| `server` | the program in the demo's image: imports the scientific stack, fits a model, answers HTTP |
| `image` | the demo's image, made from Debian and Python packages and kept for the next time |
| `bench` | `Bench`: link, registry and images, kept through all starts; a fresh containerd and daemon for each |
| `traffic` | bytes received against time, sampled while a container starts |
| `results` | what was measured: medians, the summary, the JSON document |
| `picture` | the PNG: both starts against time |
"""
