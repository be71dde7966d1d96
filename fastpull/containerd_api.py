"""Channels to containerd's socket, synchronous and asynchronous, and how its refusals read."""

import grpc
import grpc.aio

# gRPC would send the socket's escaped path as the authority, which older HTTP/2 servers refuse.
_OPTIONS = (("grpc.default_authority", "localhost"),)


def channel(address: str) -> grpc.Channel:
    """A channel to the unix socket at `address`; to be closed by the caller."""
    return grpc.insecure_channel(f"unix:{address}", options=_OPTIONS)


def aio_channel(address: str) -> grpc.aio.Channel:
    """As `channel`, for asyncio."""
    return grpc.aio.insecure_channel(f"unix:{address}", options=_OPTIONS)


def in_namespace(namespace: str) -> tuple[tuple[str, str], ...]:
    """The metadata that makes a call one of a containerd namespace."""
    return (("containerd-namespace", namespace),)


def details(problem: grpc.RpcError) -> str:
    """What the server said, in one line."""
    text = str(problem.details()) if isinstance(problem, grpc.Call) else str(problem)
    return " ".join(text.split())
