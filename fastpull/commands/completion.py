"""`fastpull completion`: the completion script of a shell."""

import click
from click.shell_completion import get_completion_class

EXAMPLES = """\b
Examples:
  fastpull completion bash > /etc/bash_completion.d/fastpull
  fastpull completion zsh > "${fpath[1]}/_fastpull"
  fastpull completion fish > ~/.config/fish/completions/fastpull.fish
"""


@click.command(epilog=EXAMPLES)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of SHELL."""
    # Imported here, as the group imports this module by its name only.
    from fastpull.cli import cli

    found = get_completion_class(shell)
    assert found is not None  # click knows the three shells above
    # source() runs bash to check its version; the script itself is a template.
    made = found(cli, {}, "fastpull", "_FASTPULL_COMPLETE")
    click.echo(made.source_template % made.source_vars())
