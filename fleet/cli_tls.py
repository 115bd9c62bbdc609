"""`fleet tls …`: certificates."""

import typer

from fleet.settings import get_settings

tls = typer.Typer(no_args_is_help=True, help="TLS certificates.")


@tls.command("ca")
def ca_command() -> None:
    """Print the path of the development CA's certificate: clients that trust it accept ours."""
    from fleet.tls.dev_ca import ensure_ca

    print(ensure_ca(get_settings().home))
