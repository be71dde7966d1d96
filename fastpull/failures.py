"""A user's mistake or a missing piece of the machine: one line, a hint, an exit code; never a traceback."""

from typing import IO, Any

import click

from fastpull.exit_codes import ExitCode


class Failure(click.ClickException):
    """What went wrong in one line, what to do about it in another, and the exit code that says which kind it was."""

    def __init__(self, message: str, *, hint: str = "", code: ExitCode = ExitCode.FAILED) -> None:
        super().__init__(message)
        self.hint = hint
        # click reads `exit_code` from the instance but declares it for the class only.
        vars(self)["exit_code"] = int(code)

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the message and the hint to stderr (or `file`)."""
        click.echo(f"fastpull: {self.message}", err=file is None, file=file)
        if self.hint:
            click.echo(f"  hint: {self.hint}", err=file is None, file=file)
