"""The `fastpull` command: a group whose subcommands are imported only when they are used.

`fastpull --help` must be quick, so the group knows each command's one-line help without importing it.
"""

import importlib
import importlib.util
import signal
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass

import click

from fastpull.exit_codes import ExitCode, table

VERSION = "0.1.0"


@dataclass(frozen=True, slots=True)
class Lazy:
    """Where a command lives (`module:attribute`) and what `fastpull --help` says of it."""

    target: str
    summary: str
    hidden: bool = False


COMMANDS: dict[str, Lazy] = {
    "run": Lazy("fastpull.commands.run:run", "Run a container, lazily; measure its start."),
    "convert": Lazy("fastpull.commands.convert:convert", "Convert an image so that it can be started lazily."),
    "build": Lazy("fastpull.commands.build:build", "Build an image from a Dockerfile, convert it and push it."),
    "quickstart": Lazy("fastpull.commands.quickstart:quickstart", "Compare both modes on a model server."),
    "inspect": Lazy("fastpull.commands.inspect:inspect", "Show whether an image is converted, and its layers."),
    "verify": Lazy("fastpull.commands.verify:verify", "Read an image from the registry and check every byte."),
    "status": Lazy("fastpull.commands.status:status", "Show what is local, what is loading and why."),
    "report": Lazy("fastpull.commands.report:report", "Write a page about one start: what was read, what waited."),
    "profile": Lazy("fastpull.commands.profile:profile", "Record, show, push and remove start profiles."),
    "clean": Lazy("fastpull.commands.clean:clean", "Remove what fastpull made on this machine."),
    "doctor": Lazy("fastpull.commands.doctor:doctor", "Check this machine, with a fix for each problem."),
    "setup": Lazy("fastpull.commands.setup:setup", "Install fastpull on this machine, or remove it."),
    "auth": Lazy("fastpull.commands.auth:auth", "See which credentials a registry gets."),
    "demo": Lazy("fastpull.commands.demo:demo", "Show both ways of starting an image, side by side."),
    "completion": Lazy("fastpull.commands.completion:completion", "Print the completion script of a shell."),
    "man": Lazy("fastpull.commands.man:man", "Print the manual page.", hidden=True),
}


class LazyGroup(click.Group):
    """A group that imports a subcommand when it is looked up, and not for its line in `--help`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name, entry in COMMANDS.items() if _is_here(entry)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(cmd_name)
        if entry is None or not _is_here(entry):
            return None
        module, _, attribute = entry.target.partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            names = [name for name in self.list_commands(ctx) if not COMMANDS[name].hidden]
            formatter.write_dl([(name, COMMANDS[name].summary) for name in names])


def _is_here(entry: Lazy) -> bool:
    """Whether the command's module is in this installation; looked for without importing it."""
    return importlib.util.find_spec(entry.target.partition(":")[0]) is not None


def _print_exit_codes(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        click.echo(table())
        ctx.exit()


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Each command has examples: fastpull COMMAND --help",
)
@click.version_option(VERSION, prog_name="fastpull", message="%(version)s")
@click.option(
    "--exit-codes",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_exit_codes,
    help="Print the table of exit codes.",
)
def cli() -> None:
    """Start massive container images in seconds: the files a container reads come first, the rest follows."""


def run_command(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; a failure is printed in one line, a defect as a traceback."""
    try:
        result = cli.main(args=list(arguments), prog_name="fastpull", standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("fastpull: interrupted", err=True)
        return ExitCode.INTERRUPTED
    except click.ClickException as problem:
        problem.show()
        return problem.exit_code
    except BrokenPipeError:
        return ExitCode.OK
    except Exception as problem:
        return _report(problem)
    return result if isinstance(result, int) else ExitCode.OK


def _report(problem: Exception) -> int:
    # Imported here: naming the errors of the other packages imports them, and most command lines never get here.
    from fastpull.problems import explain

    known = explain(problem)
    if known is None:
        traceback.print_exception(problem)
        click.echo("fastpull: this is a defect of fastpull; please report it with the lines above", err=True)
        return ExitCode.BUG
    known.show()
    return known.exit_code


def main() -> None:
    """Entry point of the `fastpull` script."""
    # As Ctrl-C: whatever was set up is taken down.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(run_command(sys.argv[1:]))
