"""Pieces of nerdctl 2.2's help pages, as it prints them, for tests of the parser."""

RUN = """\
Run a command in a new container.

Usage: nerdctl run [flags] IMAGE [COMMAND] [ARG...]

Flags:
      --add-host strings                               Add a custom host-to-IP mapping (host:ip)
  -a, --attach strings                                 Attach STDIN, STDOUT, or STDERR
      --blkio-weight uint16                            Block IO (relative weight), between 10 and 1000
  -d, --detach                                         Run container in background and print container ID
      --entrypoint stringArray                         Overwrite the default ENTRYPOINT of the image
  -e, --env stringArray                                Set environment variables
      --gpus stringArray                               GPU devices to add to the container ('all' to pass all GPUs)
      --help                                           show help
  -h, --hostname string                                Container host name
      --init                                           Run an init process inside the container
  -i, --interactive                                    Keep STDIN open even if not attached
      --ipc string                                     IPC namespace to use ("host"|"private")
      --name string                                    Assign a name to the container
      --privileged                                     Give extended privileges to this container
  -p, --publish strings                                Publish a container's port(s) to the host
      --rm                                             Automatically remove the container when it exits
      --shm-size string                                Size of /dev/shm
      --systemd string[="true"]                        Allow running systemd in this container
  -t, --tty                                            Allocate a pseudo-TTY
  -v, --volume stringArray                             Bind mount a volume
"""

GLOBAL = """\
Flags:
  -a, --a string                 Alias of --address (default "/run/containerd/containerd.sock")
      --address string           containerd address, optionally with "unix://" prefix [$CONTAINERD_ADDRESS]
      --data-root string         Root directory of persistent nerdctl state
      --debug                    debug mode
  -h, --help                     help for nerdctl
  -n, --n string                 Alias of --namespace (default "default")
      --namespace string         containerd namespace
      --snapshotter string       containerd snapshotter [$CONTAINERD_SNAPSHOTTER] (default "overlayfs")
"""
