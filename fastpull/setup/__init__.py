"""Installing fastpull on a machine, and taking it away again, as one transaction.

| module | offers |
|---|---|
| `toml_edit` | changing a TOML file's text while keeping everything else of it, proven by parsing the result (pure) |
| `containerd_edit` | what containerd's configuration must say, for versions 1 to 4 of its format (pure) |
| `docker_edit` | the same for Docker's daemon.json (pure) |
| `files` | a transaction over files: backups, atomic writes, rollback, the journal that uninstalling reads |
| `unit` | the systemd unit and the daemon's first configuration file (pure) |
| `services` | who runs the daemon and restarts containerd: systemd, setup itself, the owner |
| `background` | the daemon as a process of its own, where there is no systemd |
| `proof` | a tiny image, served from here and pulled lazily: the proof that it works |
| `install` | the order of it all, and its rollback |
| `readers` | which containers stand on fastpull's layers, from the kernel's mount tables |
| `leavings` | what the daemon leaves on purpose: mounts, the keeper, its directories |
| `uninstall` | taking it all away, and refusing to |
"""
