"""A private distribution registry: Debian's docker-registry with its store in the workspace, over plain HTTP.

For measurements its blobs are served by nginx, as object storage serves those of large registries: distribution reads
4 MiB of a blob for every range request, however short (its file reader's buffer), and takes 4 ms of CPU for that.
Where the registry shares its processors with what is measured, a start would be timed by its server.
"""

import contextlib
import http.client
import socket
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from fastpull.lab import tools
from fastpull.lab.network import ShapedLink
from fastpull.lab.process import LabError, Service, run, wait_until
from fastpull.lab.workspace import Workspace

REGISTRY_PORT = 5000
_BEHIND_RELAY_PORT = 5001
_BEHIND_STORAGE_PORT = 5002
_COPY_TIMEOUT_S = 900


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def registry_config(*, store: Path, address: str) -> str:
    """The registry's YAML. Deleting is allowed; uploads are never purged under a test."""
    return f"""version: 0.1
log: {{level: warn, accesslog: {{disabled: true}}}}
storage:
  filesystem: {{rootdirectory: {store}}}
  delete: {{enabled: true}}
  cache: {{blobdescriptor: inmemory}}
  maintenance: {{uploadpurging: {{enabled: false}}}}
http: {{addr: "{address}", secret: laboratory}}
"""


def storage_config(*, store: Path, address: str, registry: str, directory: Path) -> str:
    """nginx's configuration: blobs that are read come from the store's files, all else is the registry's to answer."""
    temporary = "\n".join(
        f"  {kind}_temp_path {directory}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return f"""daemon off;
worker_processes 1;
user root;
pid {directory}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  sendfile on;
  keepalive_requests 1000000;
  client_max_body_size 0;
{temporary}
  server {{
    listen {address};
    proxy_http_version 1.1;
    proxy_request_buffering off;
    proxy_set_header Host $http_host;
    location / {{ proxy_pass http://{registry}; }}
    location ~ ^/v2/.+/blobs/sha256:(?<shard>[0-9a-f][0-9a-f])(?<rest>[0-9a-f]+)$ {{
      root {store}/docker/registry/v2/blobs/sha256;
      default_type application/octet-stream;
      etag off;
      add_header Docker-Content-Digest sha256:$shard$rest;
      error_page 404 405 = @registry;
      if ($request_method != GET) {{ return 405; }}
      try_files /$shard/$shard$rest/data @registry;
    }}
    location @registry {{ proxy_pass http://{registry}; }}
  }}
}}
"""


class Registry:
    """A registry at `host` ("address:port"), on loopback or, given a link, at the link's far end.

    With `storage` its blobs are read from nginx.
    """

    def __init__(
        self, workspace: Workspace, link: ShapedLink | None = None, *, name: str = "registry", storage: bool = False
    ) -> None:
        self._space = workspace
        self._link = link
        self._storage = storage
        self._dir = workspace.directory(name)
        self._services = contextlib.ExitStack()
        self.store = self._dir / "store"
        self.host = ""

    def __repr__(self) -> str:
        return f"<Registry {self.host}>"

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._services.close()
            raise
        return self

    def _start(self) -> None:
        if self._link is None:
            self.host = f"127.0.0.1:{free_port()}"
            self._serve(self.host)
        else:
            self.host = f"{self._link.far}:{REGISTRY_PORT}"
            self._serve_behind(self._link)
        self._wait()

    def _serve_behind(self, link: ShapedLink) -> None:
        if not link.shape.rtt_ms:
            self._serve(self.host)
            return
        behind = f"127.0.0.1:{_BEHIND_RELAY_PORT}"
        self._serve(behind)
        relay = [sys.executable, "-m", "fastpull.lab.relay", "--listen", self.host, "--target", behind]
        self._spawn([*relay, "--rtt-ms", str(link.shape.rtt_ms)], "relay.log")

    def _serve(self, address: str) -> None:
        if self._storage:
            behind = f"127.0.0.1:{_BEHIND_STORAGE_PORT if self._link else free_port()}"
            self._serve_blobs(address, behind)
            address = behind
        config = self._dir / "config.yml"
        config.write_text(registry_config(store=self.store, address=address))
        self._spawn([str(tools.find("docker-registry")), "serve", str(config)], "registry.log")

    def _serve_blobs(self, address: str, registry: str) -> None:
        config = self._dir / "nginx.conf"
        text = storage_config(store=self.store, address=address, registry=registry, directory=self._dir)
        config.write_text(text)
        program = [str(tools.find("nginx")), "-p", str(self._dir), "-c", str(config)]
        self._spawn([*program, "-e", str(self._dir / "nginx.log")], "nginx.log")

    def _spawn(self, argv: list[str], log: str) -> Service:
        command = self._link.inside(argv) if self._link else argv
        return self._services.enter_context(Service(command, log=self._dir / log, env=self._space.env))

    def _wait(self) -> None:
        host, _, port = self.host.rpartition(":")

        def answers() -> bool:
            connection = http.client.HTTPConnection(host, int(port), timeout=5)
            try:
                connection.request("GET", "/v2/")
                return connection.getresponse().status == http.client.OK
            except (OSError, http.client.HTTPException):
                return False
            finally:
                connection.close()

        try:
            wait_until(answers, what=f"registry at {self.host}")
        except LabError as late:
            logs = "".join(log.read_text(errors="replace")[-2000:] for log in sorted(self._dir.glob("*.log")))
            raise LabError(f"{late}\n{logs}") from late

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._services.close()

    def reference(self, name: str) -> str:
        """`name` ("repository[:tag]") as a full reference to this registry."""
        return f"{self.host}/{name}"

    def push_layout(self, layout: Path, tag: str, name: str) -> str:
        """Copy image `tag` of an OCI layout here, blobs unchanged; returns its full reference."""
        reference = self.reference(name)
        source = f"oci:{layout}:{tag}"
        skopeo = [str(tools.find("skopeo")), "--insecure-policy", "copy", "--all", "--preserve-digests", "--quiet"]
        run([*skopeo, "--dest-tls-verify=false", source, f"docker://{reference}"], timeout_s=_COPY_TIMEOUT_S)
        return reference

    def hosts_dir(self) -> Path:
        """A directory in the form of containerd's certs.d that says this registry speaks plain HTTP."""
        top = self._dir / "certs.d"
        entry = top / self.host
        entry.mkdir(parents=True, exist_ok=True)
        (entry / "hosts.toml").write_text(f'server = "http://{self.host}"\n')
        return top

    def warm(self) -> None:
        """Read every blob once, so that a measurement that dropped the page cache does not time this disk."""
        for path in self.store.rglob("data"):
            with path.open("rb", buffering=0) as blob:
                while blob.read(1 << 20):
                    pass
