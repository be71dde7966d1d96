"""nerdctl: where it is, which of its flags take a value, and how it is called.

Which token of `nerdctl run --foo bar IMAGE` is the image depends on whether `--foo` takes a value. That is learned
from the `--help` of the nerdctl that will be run, so it fits every version.
"""

import json
import re
import shutil
import subprocess
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from fastpull.exit_codes import ExitCode
from fastpull.failures import Failure

# One line of a pflag usage table: "  -p, --publish strings   Publish a port". A flag without a type word is a switch;
# "string[=\"x\"]" has a value only in the form --flag=value.
_FLAG_LINE = re.compile(
    r"^ {2,}(?:-(?P<short>\w), )?--(?P<long>[\w.-]+)(?: (?P<type>[^\s\[]\S*?))?(?P<optional>\[=\S*)?(?: {2,}|$)"
)
_HELP_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FlagArity:
    """Which flags take their value from the next argument. Names come without dashes.

    `global_flags` are those that every nerdctl subcommand understands, with their dashes.
    """

    long: Mapping[str, bool]
    short: Mapping[str, bool]
    global_flags: frozenset[str] = frozenset()

    def wants_next(self, token: str) -> bool:
        """Whether the flag (or cluster of short flags) `token` swallows the next token; an unknown flag does not."""
        if token.startswith("--"):
            return self.long.get(token[2:], False)  # a token with "=" is no flag's name
        for position, letter in enumerate(token[1:], start=1):
            if self.short.get(letter, False):
                return position == len(token) - 1  # -it IMAGE and -p 80:80 IMAGE, but -p80:80 IMAGE
            if token[position + 1 : position + 2] == "=":
                return False
        return False


def parse_help(text: str) -> FlagArity:
    """Read the flag tables of a cobra `--help` page."""
    long: dict[str, bool] = {}
    short: dict[str, bool] = {}
    for line in text.splitlines():
        match = _FLAG_LINE.match(line)
        if match is None:
            continue
        takes = match["type"] is not None and match["optional"] is None
        long[match["long"]] = takes
        if match["short"]:
            short[match["short"]] = takes
    return FlagArity(long=long, short=short)


def merge(local: FlagArity, global_: FlagArity) -> FlagArity:
    """Flags of a subcommand together with the global ones; the subcommand's win."""
    only_global = [f"--{name}" for name in global_.long if name not in local.long]
    only_global += [f"-{letter}" for letter in global_.short if letter not in local.short]
    return FlagArity(
        long={**global_.long, **local.long},
        short={**global_.short, **local.short},
        global_flags=frozenset(only_global),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Nerdctl:
    """One nerdctl binary with the global options it is always called with."""

    binary: Path
    options: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    def argv(self, *arguments: str, snapshotter: str | None = None) -> list[str]:
        """The full command line. `snapshotter` is left out where the caller's own options name one."""
        chosen = [] if snapshotter is None or self.names("snapshotter") else ["--snapshotter", snapshotter]
        return [str(self.binary), *self.options, *chosen, *arguments]

    def names(self, option: str) -> bool:
        """Whether the caller's global options set `--option`."""
        return any(given == f"--{option}" or given.startswith(f"--{option}=") for given in self.options)

    def value_of(self, *names: str) -> str | None:
        """The value the caller's global options give to one of `names` (`--x v` and `--x=v`); the last one counts."""
        found: str | None = None
        for position, given in enumerate(self.options):
            for name in names:
                if given.startswith(f"{name}="):
                    found = given.partition("=")[2]
                elif given == name and position + 1 < len(self.options):
                    found = self.options[position + 1]
        return found

    @property
    def namespace(self) -> str:
        """The containerd namespace nerdctl will use: its flag, its environment, its configuration file, `default`."""
        given = self.value_of("--namespace", "-n") or self.environment.get("CONTAINERD_NAMESPACE")
        return given or _configured(self.environment, "namespace") or "default"

    @property
    def address(self) -> str:
        """The containerd socket nerdctl will use, as a path; found as `namespace` is."""
        given = self.value_of("--address", "-a", "--host", "-H") or self.environment.get("CONTAINERD_ADDRESS")
        found = given or _configured(self.environment, "address") or "/run/containerd/containerd.sock"
        return found.removeprefix("unix://")

    def output(self, *arguments: str, timeout_s: float = 120.0) -> str:
        """stdout of one call.

        Raises:
            Failure: nerdctl failed; its last line of stderr is the message.
        """
        done = self.call(*arguments, timeout_s=timeout_s)
        if done.returncode != 0:
            raise self.failure(arguments[0], done)
        return done.stdout

    def failure(self, what: str, done: subprocess.CompletedProcess[str]) -> Failure:
        """The failure that a call which ended badly amounts to."""
        message = _last_line(done.stderr) or f"status {done.returncode}"
        return Failure(f"nerdctl {what}: {message}", code=ExitCode.COMMAND_FAILED)

    def call(self, *arguments: str, timeout_s: float = 120.0) -> subprocess.CompletedProcess[str]:
        """Run one call to its end with captured output; the exit status is the caller's business."""
        return self.run(self.argv(*arguments), timeout_s=timeout_s)

    def run(self, argv: Sequence[str], *, timeout_s: float = 120.0) -> subprocess.CompletedProcess[str]:
        """As `call`, for a command line that `argv()` made."""
        quiet = subprocess.DEVNULL
        try:
            return subprocess.run(argv, stdin=quiet, capture_output=True, text=True, timeout=timeout_s, check=False)
        except subprocess.TimeoutExpired:
            message = f"nerdctl gave no answer in {timeout_s:.0f} s"
            raise Failure(message, code=ExitCode.UNAVAILABLE) from None
        except OSError as problem:
            raise Failure(f"cannot run {self.binary}: {problem.strerror}", code=ExitCode.MISSING_TOOL) from None


def find_nerdctl(environment: Mapping[str, str], options: Sequence[str] = ()) -> Nerdctl:
    """The nerdctl named by FASTPULL_NERDCTL, else the one on PATH.

    Raises:
        Failure: there is none.
    """
    named = environment.get("FASTPULL_NERDCTL") or "nerdctl"
    binary = shutil.which(named, path=environment.get("PATH"))
    if binary is None:
        raise Failure(
            f"nerdctl was not found ({named})",
            hint="install nerdctl 2.x, or name its path in FASTPULL_NERDCTL",
            code=ExitCode.MISSING_TOOL,
        )
    return Nerdctl(binary=Path(binary), options=tuple(options), environment=environment)


def flag_arity(nerdctl: Nerdctl, cache_dir: Path | None) -> FlagArity:
    """The flags of `nerdctl run`, from its help; remembered in `cache_dir` for as long as the binary is the same."""
    status = nerdctl.binary.stat()
    identity = f"{nerdctl.binary.resolve()}:{status.st_size}:{status.st_mtime_ns}"
    cached = _read_cache(cache_dir, identity)
    if cached is not None:
        return cached
    arity = merge(parse_help(_help(nerdctl, "run", "--help")), parse_help(_help(nerdctl, "--help")))
    if not arity.long:
        message = f"{nerdctl.binary} run --help lists no flags"
        raise Failure(message, hint="is this nerdctl?", code=ExitCode.MISSING_TOOL)
    _write_cache(cache_dir, identity, arity)
    return arity


def with_globals(nerdctl: Nerdctl, flags: Sequence[str], arity: FlagArity) -> Nerdctl:
    """The same nerdctl, called from now on with the global flags found among the flags of one subcommand.

    `nerdctl run --data-root X IMAGE` makes a container that only `nerdctl --data-root X rm` can remove.
    """
    found: list[str] = []
    position = 0
    while position < len(flags):
        name, equals, _ = flags[position].partition("=")
        length = 2 if not equals and arity.wants_next(flags[position]) else 1
        if name in arity.global_flags:
            found += flags[position : position + length]
        position += length
    return replace(nerdctl, options=(*nerdctl.options, *found))


def _help(nerdctl: Nerdctl, *arguments: str) -> str:
    bare = Nerdctl(binary=nerdctl.binary, environment=nerdctl.environment)
    return bare.call(*arguments, timeout_s=_HELP_TIMEOUT_S).stdout


def _read_cache(cache_dir: Path | None, identity: str) -> FlagArity | None:
    if cache_dir is None:
        return None
    try:
        stored = json.loads((cache_dir / "nerdctl-flags.json").read_text())
        if stored["identity"] != identity:
            return None
        global_flags = frozenset(str(name) for name in stored["global"])
        return FlagArity(long=dict(stored["long"]), short=dict(stored["short"]), global_flags=global_flags)
    except (OSError, ValueError, KeyError, TypeError):
        return None  # a missing or damaged cache only costs another --help


def _write_cache(cache_dir: Path | None, identity: str, arity: FlagArity) -> None:
    if cache_dir is None:
        return
    flags = {"long": dict(arity.long), "short": dict(arity.short), "global": sorted(arity.global_flags)}
    text = json.dumps({"identity": identity, **flags})
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        partial = cache_dir / "nerdctl-flags.json.new"
        partial.write_text(text)
        partial.replace(cache_dir / "nerdctl-flags.json")
    except OSError:
        pass  # a read-only home directory must not stop a container from starting


def _configured(environment: Mapping[str, str], key: str) -> str | None:
    """A string of nerdctl's own configuration file; a file that cannot be read is nerdctl's to complain about."""
    path = Path(environment.get("NERDCTL_TOML") or "/etc/nerdctl/nerdctl.toml")
    try:
        value = tomllib.loads(path.read_text()).get(key)
    except (OSError, ValueError):
        return None
    return value if isinstance(value, str) else None


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return _plain(lines[-1]) if lines else ""


def _plain(line: str) -> str:
    # nerdctl logs in logfmt: time="..." level=fatal msg="what a person wants to read"
    match = re.search(r'msg="((?:[^"\\]|\\.)*)"', line)
    said = match[1].replace('\\"', '"').replace("\\n", " ") if match else line
    return " ".join(said.split())
