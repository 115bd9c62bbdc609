"""A certificate authority of this home, so that TLS works before there is a real certificate.

Nobody trusts it but those who are told to: `fleet tls ca` prints the file to give to a client. Its key never leaves
the home folder. Of no use on a public address: browsers of strangers will refuse what it signs.
"""

import fcntl
import ipaddress
import os
from collections.abc import Collection, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CA_DAYS, LEAF_DAYS, RENEW_DAYS = 3650, 397, 30
_LATE = timedelta(hours=1)  # clocks of clients may be behind


@dataclass(frozen=True, slots=True)
class Certificate:
    """PEM: the certificate with its chain, and its key."""

    chain: bytes
    key: bytes = field(repr=False)

    @property
    def leaf(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate(self.chain)


def ca_file(home: Path) -> Path:
    """Where the CA's certificate is, whether or not it has been made."""
    return home / "tls" / "ca.pem"


def ensure_ca(home: Path) -> Path:
    """The CA's certificate, made if there is none or its time is nearly over. Safe to call from several processes."""
    file = ca_file(home)
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(file.parent):
        if not _key_file(file).exists() or not file.exists() or nearly_over(_read(file)):
            made = _make_ca()
            write_secret(_key_file(file), made.key)
            _write(file, made.chain)
    return file


def issue(home: Path, names: Collection[str]) -> Certificate:
    """A server certificate for these names and addresses, the first one also its subject."""
    file = ensure_ca(home)
    ca = _read(file)
    ca_key = serialization.load_pem_private_key(_key_file(file).read_bytes(), None)
    assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    alternatives = x509.SubjectAlternativeName([_general_name(name) for name in dict.fromkeys(names)])
    until = min(datetime.now(UTC) + timedelta(days=LEAF_DAYS), ca.not_valid_after_utc)
    made = (
        _builder(_name(next(iter(names))[:64]), ca.subject, key, until)
        .add_extension(alternatives, critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    return Certificate(_pem(made), _pem_key(key))


def nearly_over(certificate: x509.Certificate) -> bool:
    return certificate.not_valid_after_utc < datetime.now(UTC) + timedelta(days=RENEW_DAYS)


def write_secret(path: Path, content: bytes) -> None:
    """Only its owner may read it, at no moment anybody else; a reader sees the old content or the new."""
    draft = path.with_name(f"{path.name}.part")
    draft.unlink(missing_ok=True)
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
    draft.replace(path)


def _make_ca() -> Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    # A name of its own each time: clients that have trusted an older one must not take them for the same.
    name = _name(f"Fleet development CA {os.urandom(4).hex()}")
    usage = x509.KeyUsage(
        digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    made = (
        _builder(name, name, key, datetime.now(UTC) + timedelta(days=CA_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Certificate(_pem(made), _pem_key(key))


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, until: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - _LATE)
        .not_valid_after(until)
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _key_file(ca: Path) -> Path:
    return ca.with_suffix(".key")


def _read(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def _write(path: Path, content: bytes) -> None:
    draft = path.with_name(f"{path.name}.part")
    draft.write_bytes(content)
    draft.replace(path)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _pem_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    encoding, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    return key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain)


@contextmanager
def _locked(folder: Path) -> Generator[None]:
    with (folder / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
