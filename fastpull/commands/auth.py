"""`fastpull auth check`: which credentials does a registry get, and does it like them?"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import click

from fastpull.aio import run_async
from fastpull.exit_codes import ExitCode
from fastpull.problems import explain
from fastpull.registry_access import open_client, registry_options
from fetcher.registry import ProviderAnswer, Reference, RegistryError

EXAMPLES = """\b
Examples:
  fastpull auth check registry.example/team/app:1
  sudo fastpull auth check --json 123456789012.dkr.ecr.us-east-1.amazonaws.com/app:1

Run it as the user that pulls: the daemon is root, so what counts for lazy starts is `sudo fastpull auth check`.
No password or token is ever printed.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What every provider said, and what the registry then answered."""

    reference: str
    providers: tuple[ProviderAnswer, ...]
    allowed: bool
    answer: str
    code: int


@click.group()
def auth() -> None:
    """See which credentials a registry gets, and whether it accepts them."""


@auth.command(epilog=EXAMPLES)
@click.argument("reference", metavar="REF")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@registry_options
def check(reference: str, as_json: bool, plain_http: tuple[str, ...]) -> int:
    """Ask every credential source about REF's registry, then ask the registry for REF."""
    outcome = run_async(_check(reference, plain_http))
    if as_json:
        click.echo(json.dumps(asdict(outcome), indent=2))
    else:
        _print(outcome)
    return outcome.code


async def _check(reference: str, plain_http: Sequence[str]) -> Outcome:
    parsed = Reference.parse(reference)
    async with open_client(plain_http) as client:
        providers = await client.explain_credentials(parsed.origin)
        try:
            found = await client.resolve(parsed)
        except RegistryError as problem:
            failure = explain(problem)
            assert failure is not None
            answer, code = failure.message, failure.exit_code
        else:
            answer, code = f"found: {found.digest}", int(ExitCode.OK)
    return Outcome(reference=str(parsed), providers=providers, allowed=code == 0, answer=answer, code=code)


def _print(outcome: Outcome) -> None:
    click.echo(outcome.reference)
    for one in outcome.providers:
        told = (
            f"answered{f', user {one.username}' if one.username else ''}" if one.answered else one.problem or "nothing"
        )
        click.echo(f"  {one.provider}: {told}")
    if not any(one.answered for one in outcome.providers):
        click.echo("  no credentials: asked anonymously")
    click.echo(f"  registry: {outcome.answer}")
