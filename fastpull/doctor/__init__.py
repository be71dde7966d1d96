"""What `fastpull doctor` looks at. Each check is a function that gives one `Check` or several.

| module | looks at |
|---|---|
| `check` | `Check`: one finding and its fix |
| `host` | the kernel's abilities, by trying each; free space |
| `config` | containerd's effective configuration (pure) |
| `services` | the running containerd, nerdctl, the fastpull daemon |
"""
