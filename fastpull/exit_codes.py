"""Every exit code of the `fastpull` command, and which error gives which: the only place that knows.

`fastpull run` passes the container's own exit code on; the codes below are then used only for failures that happen
before the container ran, or instead of it.
"""

from enum import IntEnum


class ExitCode(IntEnum):
    """Process exit codes; the text of each is in `MEANINGS`."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    DENIED = 4
    MALFORMED = 5
    UNAVAILABLE = 6
    MISSING_TOOL = 7
    COMMAND_FAILED = 8
    NOT_READY = 9
    NOT_LAZY = 10
    NOT_PERMITTED = 11
    ROLLED_BACK = 12
    UNPROVEN = 13
    BUG = 70
    INTERRUPTED = 130


MEANINGS: dict[ExitCode, str] = {
    ExitCode.OK: "success",
    ExitCode.FAILED: "a check failed, or a failure with no code of its own",
    ExitCode.USAGE: "the command line is wrong",
    ExitCode.NOT_FOUND: "the image, container or file does not exist",
    ExitCode.DENIED: "the registry refused the credentials, or wants some",
    ExitCode.MALFORMED: "an image, layer, index or configuration file is malformed or does not verify",
    ExitCode.UNAVAILABLE: "the registry, containerd or the fastpull daemon cannot be reached",
    ExitCode.MISSING_TOOL: "a program or Python package this command needs is not installed",
    ExitCode.COMMAND_FAILED: "a program that was run for this command failed",
    ExitCode.NOT_READY: "the container did not become ready, or did not finish, in time",
    ExitCode.NOT_LAZY: "--require-lazy: the image would not be loaded lazily",
    ExitCode.NOT_PERMITTED: "root is needed, or the request was refused to protect what is running",
    ExitCode.ROLLED_BACK: "setup failed and everything was put back as it was",
    ExitCode.UNPROVEN: "setup did its part, but the daemon or containerd has still to be (re)started by their owner",
    ExitCode.BUG: "a defect of fastpull; the traceback says where",
    ExitCode.INTERRUPTED: "interrupted (Ctrl-C or SIGTERM)",
}


def table() -> str:
    """The table as plain text, one code a line, for `--help` and the man page."""
    return "\n".join(f"{code.value:>4}  {MEANINGS[code]}" for code in ExitCode)
