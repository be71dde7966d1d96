"""Making the next start a cold one: the image gone from containerd and from fastpull's cache, the page cache empty."""

import os
from pathlib import Path

from fastpull.aio import run_async
from fastpull.daemon_client import clear_cache
from fastpull.exit_codes import ExitCode
from fastpull.failures import Failure
from fastpull.local_images import image_present
from fastpull.nerdctl import Nerdctl

_DROP_CACHES = Path("/proc/sys/vm/drop_caches")


def make_cold(nerdctl: Nerdctl, image: str, admin_socket: Path) -> None:
    """Remove the image, have the daemon drop the layers that no image uses any more, drop the page cache.

    Raises:
        Failure: a container uses the image, or this is not root.
    """
    _remove_image(nerdctl, image)
    if admin_socket.exists():  # without a daemon there is no cache of it that could make the start warm
        run_async(clear_cache(admin_socket))
    drop_page_cache()


def _remove_image(nerdctl: Nerdctl, image: str) -> None:
    """`rmi` without --force: an image that a container uses stays, and the start would not be cold."""
    if not run_async(image_present(nerdctl.address, nerdctl.namespace, image)):
        return
    removed = nerdctl.call("rmi", image, timeout_s=600.0)
    if removed.returncode != 0:
        raise Failure(
            f"{image} cannot be removed for a cold start: {nerdctl.failure('rmi', removed).message}",
            hint="stop the containers that use it (nerdctl ps -a); or measure without a cold start",
            code=ExitCode.NOT_PERMITTED,
        )


def drop_page_cache() -> None:
    """Write dirty pages back and let go of clean ones, dentries and inodes (kernel: admin-guide/sysctl/vm.rst)."""
    os.sync()
    try:
        _DROP_CACHES.write_text("3\n")
    except OSError:
        raise Failure("--cold needs root to drop the page cache", code=ExitCode.NOT_PERMITTED) from None
