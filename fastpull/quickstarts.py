"""The model servers `fastpull quickstart` knows, and what a machine needs to run one. Checks, no changes."""

import shutil
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastpull.exit_codes import ExitCode
from fastpull.failures import Failure
from fastpull.image_view import view_image
from fastpull.nerdctl import Nerdctl
from fastpull.registry_access import open_client
from fetcher.registry import Reference, RegistryError

HOST_PORT = 8080
SERVER_PORT = 8000
_IMAGES = "public.ecr.aws/s6z9f6e5/tensorfuse/fastpull"


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A model server. `endpoint` answers when the model is loaded; `flags` are nerdctl's."""

    name: str
    image: str
    endpoint: str
    flags: tuple[str, ...]
    arguments: tuple[str, ...] = ()
    gpu: bool = True


def _server(name: str, health: str) -> Workload:
    flags = ("-p", f"{HOST_PORT}:{SERVER_PORT}", "--gpus", "all")
    url = f"http://localhost:{HOST_PORT}{health}"
    return Workload(name=name, image=f"{_IMAGES}/{name}:latest", endpoint=url, flags=flags)


WORKLOADS: Mapping[str, Workload] = {
    "tensorrt": _server("tensorrt", "/health"),
    "vllm": _server("vllm", "/health"),
    "sglang": _server("sglang", "/health_generate"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """One thing that is missing, and how to get it."""

    what: str
    fix: str


def machine_lacks(workload: Workload, nerdctl: Nerdctl, port: int | None) -> list[Missing]:
    """Everything that is missing on this machine to run the workload."""
    lacks = _gpu_lacks() if workload.gpu else []
    done = nerdctl.call("info", timeout_s=30.0)
    if done.returncode != 0:
        said = nerdctl.failure("info", done).message
        lacks.append(Missing(what=f"containerd ({said})", fix="start containerd; fastpull doctor"))
    if port is not None and _taken(port):
        lacks.append(Missing(what=f"TCP port {port} (in use)", fix="stop what listens there, or choose --publish"))
    return lacks


def _gpu_lacks() -> list[Missing]:
    lacks = []
    if not Path("/dev/nvidiactl").exists():
        lacks.append(
            Missing(what="an NVIDIA GPU (no /dev/nvidiactl)", fix="use a GPU machine, or --image a CPU server")
        )
    elif not _works(["nvidia-smi", "-L"]):
        lacks.append(Missing(what="the NVIDIA driver (nvidia-smi fails)", fix="install the driver"))
    if shutil.which("nvidia-ctk") is None and shutil.which("nvidia-container-cli") is None:
        lacks.append(Missing(what="the NVIDIA container toolkit", fix="install nvidia-container-toolkit"))
    return lacks


def _works(argv: Sequence[str]) -> bool:
    try:
        return subprocess.run(argv, capture_output=True, timeout=30, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return True
    return False


async def image_state(image: str, plain_http: Sequence[str]) -> str:
    """`yes`, `partly` or `no`: whether the image is converted.

    Raises:
        Failure: it cannot be reached.
    """
    reference = Reference.parse(image)
    try:
        async with open_client(plain_http) as client:
            views = await view_image(client, reference, None)
    except RegistryError as problem:
        hint = "check the network, or give --image an image you can reach"
        raise Failure(f"missing: the image ({problem})", hint=hint, code=ExitCode.UNAVAILABLE) from None
    states = {view.converted for view in views}
    return states.pop() if len(states) == 1 else "partly"
