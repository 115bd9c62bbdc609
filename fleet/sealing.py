"""Secrets of projects at rest: sealed with a key of this fleet, which is beside the database, not in it."""

import base64
import hashlib
import os
import secrets
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import cast

import orjson
from cryptography.fernet import Fernet, InvalidToken

from fleet.errors import FleetError

_MARK = "sealed:"


@lru_cache(maxsize=8)
def fleet_secret(home: Path) -> bytes:
    """32 random bytes of this fleet, made once; many processes may ask at the same time."""
    path = home / "secret.key"
    if not path.exists():
        beside = home / f".secret.{secrets.token_hex(8)}"
        with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_bytes(32))
            file.flush()
            os.fsync(file.fileno())  # a key lost in a power cut would turn every stored login into noise
        try:
            os.link(beside, path)  # fails if another process was first
        except FileExistsError:
            pass
        finally:
            beside.unlink()
    return path.read_bytes()


class Sealer:
    """Seals texts for one purpose: what is sealed for another cannot be opened."""

    def __init__(self, home: Path, purpose: str) -> None:
        self._home = home
        self._purpose = purpose

    def seal(self, text: str) -> str:
        return _MARK + self.cipher().encrypt(text.encode("utf-8", "surrogatepass")).decode()

    def open(self, sealed: str) -> str:
        """The text; one that was stored before there were seals is given as it is."""
        if not sealed.startswith(_MARK):
            return sealed
        try:
            return self.cipher().decrypt(sealed.removeprefix(_MARK)).decode("utf-8", "surrogatepass")
        except InvalidToken:
            raise FleetError(
                "A secret cannot be opened: it was sealed with the secret.key of another home.",
                error="Secret unreadable",
            ) from None

    def cipher(self) -> Fernet:
        return _cipher(self._home, self._purpose)


@lru_cache(maxsize=32)
def _cipher(home: Path, purpose: str) -> Fernet:
    key = hashlib.sha256(f"{purpose}:".encode() + fleet_secret(home)).digest()
    return Fernet(base64.urlsafe_b64encode(key))


class Variables:
    """Environment variables as they are stored: one sealed text for all of a map."""

    def __init__(self, home: Path) -> None:
        self._sealer = Sealer(home, "environment")

    def seal(self, variables: Mapping[str, str] | None) -> str | None:
        return self._sealer.seal(orjson.dumps(dict(variables)).decode()) if variables else None

    def open(self, stored: object) -> dict[str, str]:
        """The variables; those that were stored before there were seals are given as they are."""
        if isinstance(stored, str):
            return orjson.loads(self._sealer.open(stored))
        return dict(cast("dict[str, str]", stored)) if isinstance(stored, dict) else {}
