"""How the API's processes know their own proxy: it sends a secret of this fleet with every request.

Headers that begin with `x-fleet-` tell what the proxy alone can know (who called, and how). It removes those that a
client sends; a process of the API refuses them from anybody who does not know the secret.
"""

import secrets
from pathlib import Path

from fleet.private_file import write_private

PREFIX = "x-fleet-"
SECRET_HEADER = "x-fleet-proxy"
CLIENT_HEADER = "x-fleet-client"  # the address that called
SCHEME_HEADER = "x-fleet-scheme"  # "https", on what came by TLS


def secret_file(home: Path) -> Path:
    return home / "proxy-secret"


def ensure_secret(home: Path) -> str:
    """This fleet's, made if there is none."""
    found = read_secret(home)
    if found is None:
        found = secrets.token_hex(32)
        write_private(secret_file(home), found)
    return found


def read_secret(home: Path) -> str | None:
    """None where no proxy of ours has ever been started."""
    try:
        return secret_file(home).read_text().strip() or None
    except FileNotFoundError:
        return None
