"""The programs that can build an image from a Dockerfile, and their command lines. Pure but for the search.

Every builder ends with the image in a file, so that it is pushed once: as it is, or converted.
"""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fastpull.exit_codes import ExitCode
from fastpull.failures import Failure

# A builder may have to start a BuildKit of its own first (buildx's container driver does).
_PROBE_TIMEOUT_S = 60.0
_PROBE_NAME = "localhost/fastpull-build:probe"
# How logrus, and so nerdctl, wraps what it has to say.
_LOGGED = re.compile(r'\blevel=\w+ msg="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRequest:
    """What is to be built. `context` is a directory; `dockerfile` a path, or None for the context's own.

    `described`: whether the image may come with attestations. Those of an image that is converted next would describe
    one that nobody can pull.
    """

    context: Path
    dockerfile: Path | None = None
    build_args: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()
    target: str | None = None
    platforms: tuple[str, ...] = ()
    no_cache: bool = False
    described: bool = True

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


def _attestations(request: BuildRequest) -> list[str]:
    return [] if request.described else ["--provenance=false"]


@dataclass(frozen=True, slots=True)
class Buildx:
    """buildx, whose OCI exporter writes the archive itself. `command`: `docker buildx`, or buildx on its own."""

    command: tuple[str, ...]
    name: str = "docker"

    def steps(self, request: BuildRequest, archive: Path, name: str) -> list[list[str]]:
        flags = [*request.flags(), *_attestations(request), f"--output=type=oci,dest={archive},name={name}"]
        return [[*self.command, "build", *flags, str(request.context)]]

    def cleanup(self, request: BuildRequest, name: str) -> list[list[str]]:
        return []

    def source(self, archive: Path) -> str:
        return f"oci-archive:{archive}"


@dataclass(frozen=True, slots=True)
class DockerDaemon:
    """`docker buildx` with the BuildKit inside a Docker daemon whose image store is its own.

    That one has no OCI exporter (buildx, driver/docker: it needs the containerd image store), so the image takes the
    way through the daemon's store.
    """

    program: str
    name: str = "docker"

    def steps(self, request: BuildRequest, archive: Path, name: str) -> list[list[str]]:
        flags = [*request.flags(), *_attestations(request), "--load", f"--tag={name}"]
        build = [self.program, "buildx", "build", *flags, str(request.context)]
        return [build, [self.program, "image", "save", f"--output={archive}", name]]

    def cleanup(self, request: BuildRequest, name: str) -> list[list[str]]:
        return [[self.program, "image", "rm", name]]

    def source(self, archive: Path) -> str:
        return f"docker-archive:{archive}"


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
    """`buildah`, which keeps the image in its own store until it is written to the archive.

    The name is a list's, for one platform too: removing the list leaves the image and its steps in the store, where
    the next build finds them (--layers). Removing an image's own name would remove all of them with it.

    Where a platform is asked for there is no --layers: buildah (1.28) finds another platform's steps just as well, and
    labels them with this one.
    """

    program: str
    name: str = "buildah"

    def steps(self, request: BuildRequest, archive: Path, name: str) -> list[list[str]]:
        cached = [] if request.platforms else ["--layers"]
        build = [self.program, "build", *cached, f"--manifest={name}", *request.flags(), str(request.context)]
        return [build, [self.program, "manifest", "push", "--all", name, f"oci-archive:{archive}"]]

    def cleanup(self, request: BuildRequest, name: str) -> list[list[str]]:
        return [[self.program, "manifest", "rm", name]]

    def source(self, archive: Path) -> str:
        return f"oci-archive:{archive}"


# --- Which one


@dataclass(frozen=True, slots=True)
class _Programs:
    """What an environment has on its PATH."""

    environment: Mapping[str, str]

    def find(self, name: str) -> str | None:
        return shutil.which(name, path=self.environment.get("PATH"))

    def docker(self) -> Iterator[Builder]:
        docker = self.find("docker")
        if docker is not None:
            yield Buildx((docker, "buildx"))
        for alone in filter(None, map(self.find, ("buildx", "docker-buildx"))):
            yield Buildx((alone,))
        if docker is not None:
            yield DockerDaemon(docker)

    def nerdctl(self) -> Iterator[Builder]:
        found = self.find(self.environment.get("FASTPULL_NERDCTL", "nerdctl"))
        if found is not None:
            yield NerdctlBuild(found)

    def buildah(self) -> Iterator[Builder]:
        found = self.find("buildah")
        if found is not None:
            yield Buildah(found)


_KINDS: Mapping[str, Callable[[_Programs], Iterator[Builder]]] = {
    "docker": _Programs.docker,
    "nerdctl": _Programs.nerdctl,
    "buildah": _Programs.buildah,
}
BUILDERS = tuple(_KINDS)


def find_builder(wanted: str, environment: Mapping[str, str]) -> Builder:
    """The builder that was named, or with `auto` the first one that works: docker, nerdctl, buildah.

    Raises:
        Failure: none works.
    """
    programs, missing = _Programs(environment), []
    for name in _KINDS if wanted == "auto" else (wanted,):
        reasons = []
        for candidate in _KINDS[name](programs):
            reason = _why_not(candidate, environment)
            if reason is None:
                return candidate
            reasons.append(reason)
        # Of the ways to one builder, the first is the usual one.
        missing.append(f"{name}: {reasons[0] if reasons else 'not installed'}")
    hint = "install buildah; or start buildkitd (nerdctl needs buildctl too), or Docker"
    raise Failure(f"nothing to build with: {'; '.join(missing)}", hint=hint, code=ExitCode.MISSING_TOOL)


def _why_not(builder: Builder, environment: Mapping[str, str]) -> str | None:
    """None if the builder works here. What it is for is tried with an empty image: a daemon that is not running, or an
    exporter that is not there, shows only then."""
    with tempfile.TemporaryDirectory(prefix="fastpull-probe-") as scratch:
        context = Path(scratch) / "context"
        context.mkdir()
        (context / "Dockerfile").write_text("FROM scratch\nLABEL fastpull.probe=1\n")
        request = BuildRequest(context=context, described=False)
        try:
            reasons = (_attempt(step, environment) for step in builder.steps(request, Path(scratch) / "i", _PROBE_NAME))
            return next((reason for reason in reasons if reason is not None), None)
        finally:
            for step in builder.cleanup(request, _PROBE_NAME):
                _attempt(step, environment)


def _attempt(argv: Sequence[str], environment: Mapping[str, str]) -> str | None:
    """Run one step of a probe; None, or the last thing it said."""
    try:
        done = subprocess.run(
            argv,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PROBE_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as problem:
        return str(problem)
    if done.returncode == 0:
        return None
    return last_words(done.stderr or done.stdout) or f"failed without a word (status {done.returncode})"


def last_words(output: str) -> str:
    """The last line of a program's messages, out of its log format if it has one."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    if not lines:
        return ""
    logged = _LOGGED.search(lines[-1])
    return logged[1].replace('\\"', '"') if logged else lines[-1].removeprefix("ERROR: ")
