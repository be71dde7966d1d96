"""The command as a whole: exit codes, errors, help and its examples, completion, the manual page."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from converter import errors as converter_errors
from fastpull.cli import COMMANDS, VERSION, cli, run_command
from fastpull.commands.run import RunCommand
from fastpull.exit_codes import MEANINGS, ExitCode
from fastpull.failures import Failure
from fastpull.nerdctl import merge, parse_help
from fastpull.problems import TABLE, explain
from fastpull.runargs import split
from fetcher.registry import errors as registry_errors
from layerformat.errors import FormatError
from tests.unit.command.nerdctl_help import GLOBAL, RUN

ROOT = Path(__file__).resolve().parents[3]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def everything_below(base: type[Exception]) -> list[type[Exception]]:
    """A class and all that derive from it."""
    return [base, *(one for derived in base.__subclasses__() for one in everything_below(derived))]


REGISTRY_ERRORS = everything_below(registry_errors.RegistryError)
CONVERT_ERRORS = everything_below(converter_errors.ConvertError)


def test_every_exit_code_has_a_meaning_and_one_number() -> None:
    assert set(MEANINGS) == set(ExitCode)
    assert len({int(code) for code in ExitCode}) == len(ExitCode)
    assert all(0 <= code <= 255 for code in ExitCode)


@pytest.mark.parametrize("kind", REGISTRY_ERRORS)
def test_every_registry_error_has_its_own_row(kind: type[Exception]) -> None:
    inherited: set[type[Exception]] = {
        registry_errors.RateLimited,
        registry_errors.ShortBody,
        registry_errors.UploadLost,
    }
    assert kind in TABLE or (kind in inherited and registry_errors.Unavailable in TABLE)


@pytest.mark.parametrize("kind", CONVERT_ERRORS)
def test_every_converter_error_has_a_code_of_the_table(kind: type[converter_errors.ConvertError]) -> None:
    known = explain(kind("what went wrong"))
    assert known is not None and ExitCode(known.exit_code) in MEANINGS


@pytest.mark.parametrize(
    ("problem", "code"),
    [
        (FormatError("index: bad"), ExitCode.MALFORMED),
        (registry_errors.Unauthorized("r/x"), ExitCode.DENIED),
        (PermissionError(13, "no"), ExitCode.NOT_PERMITTED),
        (
            ExceptionGroup("tasks", [registry_errors.NotFound("r/x"), registry_errors.NotFound("r/y")]),
            ExitCode.NOT_FOUND,
        ),
        (Failure("said", code=ExitCode.NOT_LAZY), ExitCode.NOT_LAZY),
    ],
)
def test_known_errors_are_explained(problem: Exception, code: ExitCode) -> None:
    known = explain(problem)
    assert known is not None and known.exit_code == code and "\n" not in known.message


@pytest.mark.parametrize("problem", [ValueError("x"), ExceptionGroup("g", [FormatError("a"), KeyError("b")])])
def test_defects_are_not_explained_away(problem: Exception) -> None:
    assert explain(problem) is None


def test_a_failure_is_one_line_and_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["inspect", "not//a reference"]) == ExitCode.USAGE
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"fastpull: .+\n  hint: .+\n", err)


def test_usage_errors(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["no-such-command"]) == ExitCode.USAGE
    assert run_command(["inspect"]) == ExitCode.USAGE
    assert run_command(["status", "--no-such-option"]) == ExitCode.USAGE
    assert "Traceback" not in capsys.readouterr().err


def test_version_and_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["--version"]) == 0
    assert capsys.readouterr().out == f"{VERSION}\n"
    assert run_command(["--exit-codes"]) == 0
    assert capsys.readouterr().out.count("\n") == len(ExitCode)


def test_help_imports_no_command() -> None:
    script = "import sys; from fastpull.cli import run_command; run_command(['--help']);"
    script += "sys.exit(any(m in sys.modules for m in ('grpc', 'aiohttp', 'rich', 'fastpull.commands.run')))"
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL)


def commands() -> dict[str, click.Command]:
    """Every command by the words that name it."""
    found: dict[str, click.Command] = {}
    context = click.Context(cli)
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            found |= {f"{name} {inner}": one for inner, one in command.commands.items()}
        else:
            found[name] = command
    return found


@pytest.mark.parametrize("name", sorted(set(commands()) - {"man"}))
def test_every_command_has_help_with_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command([*name.split(), "--help"]) == 0
    out = capsys.readouterr().out
    assert "Examples:" in out and f"fastpull {name}" in out
    assert commands()[name].help


def example_lines() -> Iterator[tuple[str, str]]:
    """Every `fastpull ...` line of the help texts and of the documents' code blocks, with where it is."""
    for name, command in commands().items():
        yield from ((f"{name} --help", line) for line in lines_of(command.epilog or ""))
    for document in DOCUMENTS:
        for block in re.findall(r"```(?:console|sh|bash)\n(.*?)```", document.read_text(), flags=re.DOTALL):
            yield from ((document.name, line) for line in lines_of(block))


def lines_of(text: str) -> Iterator[str]:
    for line in text.replace("\\\n", " ").splitlines():
        found = re.match(r"\s*(?:\$ |# )?(?:sudo )?(fastpull [a-z].*)", line)
        if found:
            yield found[1]


@pytest.mark.parametrize(("where", "line"), sorted(set(example_lines())))
def test_every_example_is_a_command_line_that_exists(where: str, line: str) -> None:
    """A misspelt flag in an example or in the README fails here."""
    words = shlex.split(line, comments=True)[1:]
    words = words[: next((n for n, word in enumerate(words) if word in ("|", ">", "&&", ";")), len(words))]
    name = " ".join(words[:2]) if words[0] in ("auth", "profile") else words[0]
    assert name in commands(), f"{where}: {line}"
    command, arguments = commands()[name], words[len(name.split()) :]
    if isinstance(command, RunCommand):
        taken = split(arguments, command.own_flags(), merge(parse_help(RUN), parse_help(GLOBAL)))
        assert taken.image is not None, f"{where}: {line}"
        arguments = list(taken.own)
    try:
        command.make_parser(click.Context(command)).parse_args(list(arguments))
    except click.UsageError as problem:
        pytest.fail(f"{where}: {line}: {problem.message}")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_accepted_by_their_shell(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "_FASTPULL_COMPLETE" in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True)


def test_completion_completes_commands_and_our_run_flags() -> None:
    from click.shell_completion import ShellComplete

    complete = ShellComplete(cli, {}, "fastpull", "_FASTPULL_COMPLETE")
    assert "quickstart" in {item.value for item in complete.get_completions([], "qu")}
    assert "--require-lazy" in {item.value for item in complete.get_completions(["run"], "--req")}


def test_the_manual_page_has_every_command_and_no_troff_warning(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["man"]) == 0
    page = capsys.readouterr().out
    for name, entry in COMMANDS.items():
        if not entry.hidden and name in commands():
            assert f".SS fastpull {name}" in page
    if shutil.which("groff"):
        done = subprocess.run(
            ["groff", "-man", "-Tascii", "-ww"], input=page, capture_output=True, text=True, check=True
        )
        assert done.stderr == ""
        assert "EXIT STATUS" in re.sub(".\x08", "", done.stdout)  # bold is struck over


def test_standard_output_is_for_the_result_alone() -> None:
    """The registry client's retries are not for a program that reads it."""
    script = "import sys; from fastpull.cli import main; main()"
    program = [sys.executable, "-c", script, "inspect", "--json", "127.0.0.1:9/nobody/there:1"]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == ExitCode.UNAVAILABLE and done.stdout == ""
    assert re.fullmatch(r"fastpull: .+\n  hint: .+\n", done.stderr)
