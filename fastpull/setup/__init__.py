"""Installing fastpull on a machine, and taking it away again, as one transaction.

| module | offers |
|---|---|
| `toml_edit` | changing a TOML file's text while keeping everything else of it, proven by parsing the result (pure) |
| `containerd_edit` | what containerd's configuration must say, for versions 1 to 4 of its format (pure) |
| `docker_edit` | the same for Docker's daemon.json (pure) |
| `files` | a transaction over files: backups, atomic writes, rollback, the journal that uninstalling reads |
| `unit` | the systemd unit and the daemon's first configuration file (pure) |
| `services` | systemctl, and restarting without it |
| `proof` | a tiny image, served from here and pulled lazily: the proof that it works |
| `install` | the order of it all |
"""
