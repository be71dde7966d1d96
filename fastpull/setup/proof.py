"""The proof of an installation: a tiny image is served from this process and pulled; its layer has to be lazy.

Nothing outside the machine is needed. The image and its namespace are gone afterwards.
"""

import asyncio
import json
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
from aiohttp import web

from converter.convert import convert_image
from converter.options import ConvertOptions
from fastpull.containerd_api import channel, details, in_namespace
from fastpull.exit_codes import ExitCode
from fastpull.failures import Failure
from fastpull.lab.layout import ImageInput, LayerInput, Member, members, write_layout
from fastpull.laziness import classify
from fastpull.service_hints import containerd_log, daemon_log
from fetcher.registry import RegistryClient, RegistryConfig
from snapshotter._pb import snapshots_pb2, snapshots_pb2_grpc

NAME = "fastpull/proof"
TAG = "1"
_FILE_BYTES = 1 << 20
_PULL_TIMEOUT_S = 60.0
_RPC_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """The containerd to be proven."""

    containerd_address: Path
    snapshotter: str
    ctr: str = "ctr"
    release: tuple[int, int] = (2, 0)


def prove(proof: Proof) -> None:
    """Pull the image and look at what containerd would mount.

    Raises:
        Failure: it cannot be pulled, or its layer is not lazy.
    """
    with tempfile.TemporaryDirectory(prefix="fastpull-proof-") as scratch:
        asyncio.run(_prove(proof, Path(scratch)))


async def _prove(proof: Proof, scratch: Path) -> None:
    namespace = f"fastpull-proof-{uuid.uuid4().hex[:8]}"
    layout, chain_id = await _tiny_image(scratch)
    async with _served(layout) as host:
        reference = f"{host}/{NAME}:{TAG}"
        try:
            if proof.release < (1, 7):
                await asyncio.to_thread(_pull_as_client, proof, namespace, reference, layout, chain_id)
            else:
                await asyncio.to_thread(_pull, proof, namespace, reference)
            await asyncio.to_thread(_look, proof, namespace, chain_id)
        finally:
            await asyncio.to_thread(_forget, proof, namespace, reference)


async def _tiny_image(scratch: Path) -> tuple[Path, str]:
    """A converted image of one layer as an OCI layout; its chain id, which is its diff id."""
    source, converted = scratch / "source", scratch / "converted"
    # Random bytes: no other image on the node has this layer, so it cannot be local already.
    layer = LayerInput(write=members([Member(name="proof", data=os.urandom(_FILE_BYTES), mode=0o644)]))
    await asyncio.to_thread(write_layout, source, TAG, ImageInput(layers=[layer], command=["/proof"]))
    async with RegistryClient(RegistryConfig()) as client:
        await convert_image(f"oci:{source}:{TAG}", f"oci:{converted}:{TAG}", ConvertOptions(jobs=1), client=client)
    config = await asyncio.to_thread(_config_of, converted)
    return converted, str(config["rootfs"]["diff_ids"][0])


def _blob(layout: Path, digest: str) -> Path:
    return layout / "blobs" / digest.replace(":", "/")


def _manifest_digest(layout: Path) -> str:
    return str(json.loads((layout / "index.json").read_text())["manifests"][0]["digest"])


def _config_of(layout: Path) -> "dict[str, dict[str, list[str]]]":
    manifest = json.loads(_blob(layout, _manifest_digest(layout)).read_text())
    config: dict[str, dict[str, list[str]]] = json.loads(_blob(layout, manifest["config"]["digest"]).read_text())
    return config


@asynccontextmanager
async def _served(layout: Path) -> AsyncIterator[str]:
    """The layout as a registry on a free loopback port: enough of the distribution protocol to pull from."""
    application = web.Application()
    application.router.add_get("/v2/", _base)
    application.router.add_get("/v2/{name:.+}/manifests/{reference}", _Manifests(layout).get)
    application.router.add_get("/v2/{name:.+}/blobs/{digest}", _Blobs(layout).get)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def _base(_request: web.Request) -> web.Response:
    return web.json_response({})


@dataclass(frozen=True, slots=True)
class _Manifests:
    layout: Path

    async def get(self, request: web.Request) -> web.Response:
        digest = await asyncio.to_thread(_manifest_digest, self.layout)
        if request.match_info["reference"] not in (TAG, digest):
            raise web.HTTPNotFound
        body = await asyncio.to_thread(_blob(self.layout, digest).read_bytes)
        headers = {"Content-Type": json.loads(body)["mediaType"], "Docker-Content-Digest": digest}
        return web.Response(body=body, headers=headers)


@dataclass(frozen=True, slots=True)
class _Blobs:
    layout: Path

    async def get(self, request: web.Request) -> web.FileResponse:
        path = _blob(self.layout, request.match_info["digest"])
        if not path.is_file():
            raise web.HTTPNotFound
        return web.FileResponse(path)  # answers Range requests itself


def _pull(proof: Proof, namespace: str, reference: str) -> None:
    _checked(_ctr(proof, namespace, "images", "pull", "--plain-http", "--snapshotter", proof.snapshotter, reference))


def _pull_as_client(proof: Proof, namespace: str, reference: str, layout: Path, chain_id: str) -> None:
    """What nerdctl's client library does: ctr of containerd 1.6 never says which snapshot it is about to unpack, and a
    snapshotter that is not told can only unpack in full (docs/snapshotter.md).
    """
    _checked(_ctr(proof, namespace, "content", "fetch", "--plain-http", reference))
    # No image refers to the snapshot until it is unpacked: without a lease, garbage collection takes it at once.
    _checked(_ctr(proof, namespace, "leases", "create", "--id", namespace))
    metadata = (*in_namespace(namespace), ("containerd-lease", namespace))
    manifest = json.loads(_blob(layout, _manifest_digest(layout)).read_bytes())
    labels = {**manifest["layers"][0].get("annotations", {}), "containerd.io/snapshot.ref": chain_id}
    request = snapshots_pb2.PrepareSnapshotRequest(
        snapshotter=proof.snapshotter, key=f"extract-proof {chain_id}", labels=labels
    )
    with channel(str(proof.containerd_address)) as connected:
        try:
            snapshots_pb2_grpc.SnapshotsStub(connected).Prepare(request, timeout=_RPC_TIMEOUT_S, metadata=metadata)
        except grpc.RpcError as problem:
            if isinstance(problem, grpc.Call) and problem.code() is grpc.StatusCode.ALREADY_EXISTS:
                return  # the snapshot is there without unpacking
            raise Failure(f"a test image cannot be pulled: {details(problem)}", code=ExitCode.FAILED) from None
    hint = f"fastpull doctor; {daemon_log()}"
    raise Failure("a test image would be unpacked whole instead of lazily", hint=hint, code=ExitCode.NOT_LAZY)


def _checked(done: "subprocess.CompletedProcess[str]") -> None:
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        message = f"a test image cannot be pulled: {said[-1] if said else done.returncode}"
        raise Failure(message, hint=f"{containerd_log()}; {daemon_log()}", code=ExitCode.COMMAND_FAILED)


def _look(proof: Proof, namespace: str, chain_id: str) -> None:
    """A read-only view of the image: is its layer one that fastpull serves?"""
    metadata, key = in_namespace(namespace), "fastpull-proof"
    with channel(str(proof.containerd_address)) as connected:
        snapshots = snapshots_pb2_grpc.SnapshotsStub(connected)
        # Nothing refers to it: garbage collection, which runs after a pull, would take it from under us.
        root = {"containerd.io/gc.root": "proof"}
        view = snapshots_pb2.ViewSnapshotRequest(snapshotter=proof.snapshotter, key=key, parent=chain_id, labels=root)
        remove = snapshots_pb2.RemoveSnapshotRequest(snapshotter=proof.snapshotter, key=key)
        try:
            mounts = snapshots.View(view, timeout=_RPC_TIMEOUT_S, metadata=metadata).mounts
            snapshots.Remove(remove, timeout=_RPC_TIMEOUT_S, metadata=metadata)
        except grpc.RpcError as problem:
            raise Failure(f"a test image cannot be mounted: {details(problem)}", code=ExitCode.FAILED) from None
    lowers = classify([(mount.type, mount.source, list(mount.options)) for mount in mounts])
    if lowers.ordinary or not lowers.lazy:
        hint = f"fastpull doctor; {daemon_log()}"
        raise Failure("a test image was pulled whole instead of lazily", hint=hint, code=ExitCode.NOT_LAZY)


def _forget(proof: Proof, namespace: str, reference: str) -> None:
    """Leave nothing: a pull that failed half-way has a lease, and blobs that keep the namespace from being removed."""
    _ctr(proof, namespace, "images", "rm", "--sync", reference)
    for lease in _ctr(proof, namespace, "leases", "ls", "-q").stdout.split():
        _ctr(proof, namespace, "leases", "rm", "--sync", lease)
    for digest in _ctr(proof, namespace, "content", "ls", "-q").stdout.split():
        _ctr(proof, namespace, "content", "rm", digest)
    _ctr(proof, namespace, "namespaces", "rm", namespace)


def _ctr(proof: Proof, namespace: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    program = shutil.which(proof.ctr)
    if program is None:
        raise Failure(f"{proof.ctr} was not found; it comes with containerd", code=ExitCode.MISSING_TOOL)
    argv = [program, "--address", str(proof.containerd_address), "--namespace", namespace, *arguments]
    try:
        return subprocess.run(argv, capture_output=True, text=True, timeout=_PULL_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        message = f"ctr {' '.join(arguments[:2])} did not end in {_PULL_TIMEOUT_S:.0f} s"
        raise Failure(message, hint=f"{containerd_log()}; {daemon_log()}", code=ExitCode.COMMAND_FAILED) from None
