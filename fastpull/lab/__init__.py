"""A private laboratory: everything a lazy start needs, in one temporary directory, apart from the host's own services.

| module | offers |
|---|---|
| `workspace` | `Workspace`: the temporary directory, the mark its processes carry, the sweep at the end |
| `process` | `Service`: one child process with a log file; `run`: one command, with its output in the error |
| `mounts` | what is mounted below a directory, and how to unmount it |
| `tools` | where containerd, nerdctl and the rest are found |
| `network` | `ShapedLink`: a network namespace behind a veth with a rate limit and byte counters |
| `relay` | the process that adds latency to a link |
| `registry` | `Registry`: a distribution registry, on loopback or behind a shaped link |
| `containerd` | `Containerd`: a containerd of either generation, with `ctr` and `nerdctl` bound to it |
| `buildkit` | `Buildkitd`: BuildKit's daemon, which builds with runc |
| `daemon` | `Daemon`: `fastpull-snapshotter`, which can be killed and started again |
| `cgroups` | removing the control groups that runtimes leave |
| `cost` | memory and CPU time of a process and its children |
| `layout` | OCI layouts from tar streams, without any other tool |

Used by `fastpull demo`, by the benchmarks and by the tests. Everything is an ordinary context manager; the calls block.
"""
