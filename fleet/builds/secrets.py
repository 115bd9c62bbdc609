"""Secrets that builds need: what signs upload links, and what hides registry logins at rest."""

import hashlib
import hmac
import json

from cryptography.fernet import Fernet

from fleet.errors import Forbidden
from fleet.sealing import Sealer
from fleet.settings import FleetSettings
from fleet.store.tables import Build


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
    return Sealer(settings.home, "registry").cipher()


def hide_credentials(credentials: dict[str, str], settings: FleetSettings) -> str:
    return _cipher(settings).encrypt(json.dumps(credentials).encode()).decode()


def registry_credentials(build: Build, settings: FleetSettings) -> dict[str, str] | None:
    """The build's registry login in clear: `{"username", "password"}`, or None."""
    if not build.registry_credentials:
        return None
    return json.loads(_cipher(settings).decrypt(build.registry_credentials.encode()))
