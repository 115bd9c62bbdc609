"""`fleet secrets`: what the project's games are told and nobody is shown."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from fleet.cli_api import connect, console, show_table
from fleet.errors import BadRequest

secrets = typer.Typer(no_args_is_help=True, help="Secrets of the project: given to games, never shown.")


@secrets.command("list")
def list_secrets() -> None:
    """Names, and when each was last used."""
    with connect() as fleet:
        found = fleet.secrets.list().secrets
    rows = [[one.name, one.given_as, one.updated_at, one.last_used_at or "never"] for one in found]
    show_table(["name", "given as", "changed", "last used"], rows)


@secrets.command("set")
def set_secret(
    name: Annotated[str, typer.Argument(help="Letters, digits and _")],
    file: Annotated[
        Path | None, typer.Option(help="Read the value from this file", exists=True, dir_okay=False)
    ] = None,
    given_as: Annotated[
        Literal["file", "variable"], typer.Option("--as", help="A file in /run/secrets, or a variable")
    ] = "file",
) -> None:
    """Set a secret. Its value comes from --file, else from the standard input: it is not typed into a command, which a
    shell would remember."""
    value = file.read_text() if file else _asked(name)
    if not value:
        raise BadRequest("The secret is empty. Give it by --file, or write it to the standard input.")
    with connect() as fleet:
        fleet.secrets.put(name, value, given_as=given_as)
    console.print(f"{name} is set. Servers that start from now on have it.")


def _asked(name: str) -> str:
    """From a person, who does not see it; else all that is piped in, without the newline at its end."""
    if sys.stdin.isatty():
        return str(typer.prompt(f"Value of {name}", hide_input=True, confirmation_prompt=True))
    return sys.stdin.read().removesuffix("\n")


@secrets.command("delete")
def delete_secret(name: Annotated[str, typer.Argument()]) -> None:
    """Delete a secret. Servers that run keep it."""
    with connect() as fleet:
        fleet.secrets.delete(name)
    console.print(f"{name} is deleted.")
