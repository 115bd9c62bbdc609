"""Certificates: the development CA's are accepted by clients that trust it, the operator's by name; nothing leaks."""

import multiprocessing
import ssl
from pathlib import Path

import pytest

from fleet.errors import BadRequest
from fleet.settings import TlsSettings
from fleet.tls.certificates import certificate_for, covers, source_of, write_combined
from fleet.tls.dev_ca import ca_file, ensure_ca, issue


def handshake(ca: Path, pem: Path, host: str) -> None:
    """A TLS handshake in memory: SSLError unless the client trusts and accepts what the server shows."""
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(pem)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    client = ssl.create_default_context(cafile=str(ca)).wrap_bio(to_client, to_server, server_hostname=host)
    for side in (client, server, client, server):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    client.do_handshake()


def test_a_client_that_trusts_the_ca_accepts_its_certificates_by_every_name(tmp_path: Path) -> None:
    made = certificate_for(TlsSettings(), tmp_path, ["games.example.com", "10.1.2.3"])
    write_combined(made, tmp_path / "site.pem")
    for host in ("games.example.com", "10.1.2.3", "127.0.0.1", "::1", "localhost"):
        handshake(ca_file(tmp_path), tmp_path / "site.pem", host)
        assert covers(made.leaf, host)
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        handshake(ca_file(tmp_path), tmp_path / "site.pem", "other.example.com")
    stranger = ensure_ca(tmp_path / "elsewhere")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(stranger, tmp_path / "site.pem", "localhost")


def test_keys_are_private_and_the_ca_stays_the_same(tmp_path: Path) -> None:
    first = ensure_ca(tmp_path).read_bytes()
    write_combined(issue(tmp_path, ["localhost"]), tmp_path / "site.pem")
    assert ensure_ca(tmp_path).read_bytes() == first
    for path in (tmp_path / "tls" / "ca.key", tmp_path / "site.pem"):
        assert path.stat().st_mode & 0o077 == 0, path
    assert "PRIVATE" not in repr(issue(tmp_path, ["localhost"]))


def test_several_processes_make_one_ca(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        pool.map(ensure_ca, [tmp_path] * 8)
    write_combined(issue(tmp_path, ["localhost"]), tmp_path / "site.pem")
    handshake(ca_file(tmp_path), tmp_path / "site.pem", "localhost")


def test_the_operators_certificate_is_taken_as_it_is_or_refused_with_a_word(tmp_path: Path) -> None:
    mine, other = issue(tmp_path, ["a.example"]), issue(tmp_path, ["a.example"])
    settings = TlsSettings(certificate=tmp_path / "cert.pem", key=tmp_path / "key.pem")
    with pytest.raises(BadRequest, match="No such file"):
        certificate_for(settings, tmp_path, ["a.example"])
    (tmp_path / "cert.pem").write_bytes(mine.chain)
    (tmp_path / "key.pem").write_bytes(mine.key)
    assert certificate_for(settings, tmp_path, ["a.example"]) == mine
    before = source_of(settings)
    (tmp_path / "key.pem").write_bytes(other.key)
    assert source_of(settings) != before
    write_combined(mine, tmp_path / "site.pem")
    with pytest.raises(BadRequest, match="pair"):
        write_combined(certificate_for(settings, tmp_path, ["a.example"]), tmp_path / "site.pem")
    assert (tmp_path / "site.pem").read_bytes().startswith(mine.chain.rstrip())
    with pytest.raises(BadRequest, match="belong together"):
        certificate_for(TlsSettings(certificate=tmp_path / "cert.pem"), tmp_path, ["a"])


def test_a_wildcard_covers_exactly_one_label(tmp_path: Path) -> None:
    wildcard = issue(tmp_path, ["*.games.io", "10.0.0.1"]).leaf
    hosts = ("a.games.io", "A.GAMES.IO", "games.io", "b.a.games.io", "127.0.0.1", "a.games.com")
    assert [covers(wildcard, host) for host in hosts] == [True, True, False, False, False, False]
