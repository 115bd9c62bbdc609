"""Which certificate is shown to players and API clients, and whether it fits the names by which they come."""

import ipaddress
import ssl
from collections.abc import Collection
from pathlib import Path

from cryptography import x509

from fleet.errors import BadRequest
from fleet.settings import TlsSettings
from fleet.tls.dev_ca import Certificate, issue, nearly_over, write_secret

LOCAL_NAMES = ("127.0.0.1", "::1", "localhost")


def certificate_for(settings: TlsSettings, home: Path, names: Collection[str]) -> Certificate:
    """The configured certificate, else one of the development CA for these names and this machine's own.

    `BadRequest` says what is wrong with the configured files.
    """
    if settings.certificate is None and settings.key is None:
        return issue(home, [*names, *LOCAL_NAMES])
    if settings.certificate is None or settings.key is None:
        raise _bad("FLEET_TLS__CERTIFICATE and FLEET_TLS__KEY belong together: set both, or neither.")
    try:
        return Certificate(settings.certificate.read_bytes(), settings.key.read_bytes())
    except OSError as error:
        raise _bad(f"{error.filename}: {error.strerror}.") from error


def source_of(settings: TlsSettings) -> tuple[tuple[int, int, int], ...]:
    """Changes when the configured files do; empty where there are none."""
    files = [file for file in (settings.certificate, settings.key) if file is not None]
    found = [file.stat() for file in files if file.exists()]
    return tuple((status.st_mtime_ns, status.st_size, status.st_ino) for status in found)


def write_combined(certificate: Certificate, path: Path) -> bytes:
    """One PEM file of certificate, chain and key, once it is known that they belong together; its content."""
    content = certificate.chain.rstrip() + b"\n" + certificate.key.strip() + b"\n"
    draft = path.with_name(f"{path.name}.checked")
    write_secret(draft, content)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(draft)
    except (ssl.SSLError, OSError) as error:
        draft.unlink(missing_ok=True)
        raise _bad(f"Certificate and key do not make a pair: {error}.") from error
    draft.replace(path)
    return content


def is_due(settings: TlsSettings, certificate: Certificate) -> bool:
    """Whether a certificate of the development CA needs a successor. Configured ones are somebody else's care."""
    return settings.certificate is None and nearly_over(certificate.leaf)


def covers(certificate: x509.Certificate, host: str) -> bool:
    """Whether a client that came by `host` accepts the certificate's names."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return False
    try:
        return ipaddress.ip_address(host) in names.get_values_for_type(x509.IPAddress)
    except ValueError:
        return any(_matches(pattern, host.lower()) for pattern in names.get_values_for_type(x509.DNSName))


def _matches(pattern: str, host: str) -> bool:
    pattern = pattern.lower()
    if pattern.startswith("*."):
        return host.partition(".")[2] == pattern[2:]
    return host == pattern


def _bad(detail: str) -> BadRequest:
    return BadRequest(detail, error="Bad certificate")
