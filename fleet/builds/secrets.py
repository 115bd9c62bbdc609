"""Secrets that builds need: the key that signs upload links, and the one that hides registry logins at rest."""

import base64
import hashlib
import hmac
import json
import os
import secrets
from functools import lru_cache
from pathlib import Path

from cryptography.fernet import Fernet

from fleet.errors import Forbidden
from fleet.settings import FleetSettings
from fleet.store.tables import Build


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


def sign_upload(secret: bytes, build_id: str, expires: int) -> str:
    """Signature of the right to upload one build until `expires` (seconds since the epoch)."""
    return hmac.new(secret, f"upload:{build_id}:{expires}".encode(), hashlib.sha256).hexdigest()


def verify_upload(secret: bytes, build_id: str, expires: int, signature: str, now_s: float) -> None:
    """Forbidden if the link is forged or too old."""
    expected = sign_upload(secret, build_id, expires)
    if not hmac.compare_digest(expected.encode(), signature.encode(errors="replace")):
        raise Forbidden("The upload link is not valid. Use the upload_url exactly as it was given.")
    if now_s > expires:
        raise Forbidden("The upload link has expired. Ask for a new one: POST /api/v3/builds/upload-url.")


def _cipher(settings: FleetSettings) -> Fernet:
    key = hashlib.sha256(b"registry:" + fleet_secret(settings.home)).digest()
    return Fernet(base64.urlsafe_b64encode(key))


def hide_credentials(credentials: dict[str, str], settings: FleetSettings) -> str:
    return _cipher(settings).encrypt(json.dumps(credentials).encode()).decode()


def registry_credentials(build: Build, settings: FleetSettings) -> dict[str, str] | None:
    """The build's registry login in clear: `{"username", "password"}`, or None."""
    if not build.registry_credentials:
        return None
    return json.loads(_cipher(settings).decrypt(build.registry_credentials.encode()))
