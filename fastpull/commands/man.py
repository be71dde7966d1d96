"""`fastpull man`: the manual page, made from the commands' own help (man(7) macros)."""

import inspect as python_inspect
import re
from collections.abc import Iterator

import click

from fastpull.exit_codes import MEANINGS

_NAME_LINE = "fastpull \\- start container images before they are downloaded"


@click.command()
def man() -> None:
    """Print the manual page: fastpull man > /usr/share/man/man1/fastpull.1"""
    from fastpull.cli import VERSION, cli

    click.echo("\n".join(page(cli, VERSION)))


def page(group: click.Group, version: str) -> Iterator[str]:
    """The lines of the page."""
    context = click.Context(group, info_name="fastpull")
    yield f'.TH FASTPULL 1 "" "fastpull {version}" "User Commands"'
    yield from (".SH NAME", _NAME_LINE, ".SH SYNOPSIS", ".B fastpull", "COMMAND [OPTIONS] [ARGS]...")
    yield from (".SH DESCRIPTION", _text(group.help or ""), ".SH COMMANDS")
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is not None and not command.hidden:
            yield from _command(command, click.Context(command, info_name=name, parent=context))
    yield ".SH EXIT STATUS"
    for code, meaning in MEANINGS.items():
        yield from (".TP", f".B {code.value}", _text(meaning))
    yield from (".SH ENVIRONMENT", ".TP", ".B FASTPULL_NERDCTL", "The nerdctl to run.")
    yield from (".TP", ".B NO_COLOR", "If set, output has no colours.")


def _command(command: click.Command, context: click.Context) -> Iterator[str]:
    yield f".SS {_text(context.command_path)} {_text(' '.join(command.collect_usage_pieces(context)))}"
    yield _text(python_inspect.cleandoc(command.help or ""))
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None:
            yield from (".TP", f".B {_text(record[0])}", _text(record[1]))
    if command.epilog:
        yield from (".PP", ".nf", _text(command.epilog.replace("\b\n", "")), ".fi")
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from _command(inner, click.Context(inner, info_name=name, parent=context))


def _text(text: str) -> str:
    """Text as troff prints it unchanged: backslashes and hyphens escaped, no line that is taken for a request."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"(?m)^([.'])", r"\\&\1", escaped)
