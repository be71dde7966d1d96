"""The programs that can build an image from a Dockerfile, and their command lines. Pure but for `find_builder`.

Every builder ends with the image in a file, so that it is pushed once: as it is, or converted.
"""

import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fastpull.exit_codes import ExitCode
from fastpull.failures import Failure

_PROBE_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRequest:
    """What is to be built. `context` is a directory; `dockerfile` a path, or None for the context's own."""

    context: Path
    dockerfile: Path | None = None
    build_args: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()
    target: str | None = None
    platforms: tuple[str, ...] = ()
    no_cache: bool = False

    def flags(self) -> list[str]:
        """The flags that every builder spells alike."""
        words = [f"--build-arg={one}" for one in self.build_args] + [f"--secret={one}" for one in self.secrets]
        words += [f"--file={self.dockerfile}"] if self.dockerfile is not None else []
        words += [f"--target={self.target}"] if self.target is not None else []
        words += [f"--platform={','.join(self.platforms)}"] if self.platforms else []
        return [*words, *(["--no-cache"] if self.no_cache else [])]


class Builder(Protocol):
    """One program. `steps` are run in order, `cleanup` afterwards in any case; `source` is what convert reads."""

    @property
    def name(self) -> str: ...

    def steps(self, request: BuildRequest, archive: Path, name: str) -> list[list[str]]: ...

    def cleanup(self, request: BuildRequest, name: str) -> list[list[str]]: ...

    def source(self, archive: Path) -> str: ...


@dataclass(frozen=True, slots=True)
class Buildx:
    """`docker buildx`, whose OCI exporter writes the archive itself."""

    program: str
    name: str = "docker"

    def steps(self, request: BuildRequest, archive: Path, name: str) -> list[list[str]]:
        output = f"--output=type=oci,dest={archive},name={name}"
        return [[self.program, "buildx", "build", *request.flags(), output, str(request.context)]]

    def cleanup(self, request: BuildRequest, name: str) -> list[list[str]]:
        return []

    def source(self, archive: Path) -> str:
        return f"oci-archive:{archive}"


@dataclass(frozen=True, slots=True)
class NerdctlBuild:
    """`nerdctl build`, with BuildKit behind it."""

    program: str
    name: str = "nerdctl"

    def steps(self, request: BuildRequest, archive: Path, name: str) -> list[list[str]]:
        output = f"--output=type=oci,dest={archive}"
        return [[self.program, "build", *request.flags(), output, str(request.context)]]

    def cleanup(self, request: BuildRequest, name: str) -> list[list[str]]:
        return []

    def source(self, archive: Path) -> str:
        return f"oci-archive:{archive}"


@dataclass(frozen=True, slots=True)
class Buildah:
    """`buildah`, which keeps the image in its own store until it is written to the archive."""

    program: str
    name: str = "buildah"

    def steps(self, request: BuildRequest, archive: Path, name: str) -> list[list[str]]:
        many = len(request.platforms) > 1
        # --layers: the next build of the same Dockerfile uses what this one made.
        named = ["--manifest", name] if many else ["--layers", "--tag", name]
        build = [self.program, "build", *named, *request.flags(), str(request.context)]
        push = [self.program, *(["manifest", "push", "--all"] if many else ["push", "--quiet"])]
        return [build, [*push, name, f"oci-archive:{archive}"]]

    def cleanup(self, request: BuildRequest, name: str) -> list[list[str]]:
        many = len(request.platforms) > 1
        return [[self.program, *(["manifest", "rm"] if many else ["rmi"]), name]]

    def source(self, archive: Path) -> str:
        return f"oci-archive:{archive}"


_PROBES: Mapping[str, Sequence[str]] = {
    "docker": ("buildx", "ls"),
    "nerdctl": ("builder", "debug", "--help"),
    "buildah": ("--version",),
}
_BUILDERS: Mapping[str, Callable[[str], Builder]] = {"docker": Buildx, "nerdctl": NerdctlBuild, "buildah": Buildah}


def find_builder(wanted: str, environment: Mapping[str, str]) -> Builder:
    """The builder that was named, or with `auto` the first one that works: docker, nerdctl, buildah.

    Raises:
        Failure: none works.
    """
    missing: dict[str, str] = {}
    for name in _BUILDERS if wanted == "auto" else (wanted,):
        program = environment.get("FASTPULL_NERDCTL", name) if name == "nerdctl" else name
        found = shutil.which(program, path=environment.get("PATH"))
        why = "is not installed" if found is None else _why_not(name, found)
        if found is not None and why is None:
            return _BUILDERS[name](found)
        missing[name] = why or ""
    told = "; ".join(f"{name} {why}" for name, why in missing.items())
    raise Failure(f"nothing to build with: {told}", hint="install buildah, or Docker", code=ExitCode.MISSING_TOOL)


def _why_not(name: str, program: str) -> str | None:
    """None if the builder works here; a short probe that builds nothing."""
    argv = [program, *_PROBES[name]]
    if name == "nerdctl" and shutil.which("buildctl") is None:
        return "needs BuildKit (buildctl is not installed)"
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_PROBE_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as problem:
        return str(problem)
    said = (done.stderr or done.stdout).strip().splitlines()
    return None if done.returncode == 0 else said[-1] if said else f"failed with status {done.returncode}"
