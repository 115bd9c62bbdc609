"""References of images (`registry.example.com/game:1.4`) and which registries may be asked. Pure."""

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from fleet.events.targets import may_connect

HUB, HUB_HOST = "docker.io", "registry-1.docker.io"


@dataclass(frozen=True, slots=True)
class ImageName:
    """`host` may have a port. `reference`: the tag, or the digest (`sha256:…`)."""

    host: str
    repository: str
    reference: str

    @classmethod
    def parse(cls, text: str) -> "ImageName":
        """As engines read it: the first part names a registry if it looks like a host."""
        path, at, digest = text.partition("@")
        head, slash, tail = path.partition("/")
        named = slash and ("." in head or ":" in head or head == "localhost")
        host, rest = (head, tail) if named else (HUB, path)
        name, colon, tag = rest.rpartition(":")
        if not colon or "/" in tag:
            name, tag = rest, "latest"
        if host in (HUB, f"index.{HUB}"):
            host = HUB_HOST
            name = name if "/" in name else f"library/{name}"
        return cls(host, name, digest if at else tag)


class Registries:
    """Those of the public internet, and those that the operator names: `host`, `host:port`, or `http://host:port` for
    one that speaks no TLS. Only a named one may have an address that is not public."""

    def __init__(self, named: Iterable[str] = ()) -> None:
        entries = [entry.strip().lower().rstrip("/") for entry in named]
        self._plain = {entry.removeprefix("http://") for entry in entries if entry.startswith("http://")}
        self._named = self._plain | {entry.removeprefix("https://") for entry in entries}

    def url(self, name: ImageName) -> str:
        """Of the image's repository."""
        scheme = "http" if name.host.lower() in self._plain else "https"
        return f"{scheme}://{name.host}/v2/{name.repository}"

    def is_named(self, url: str) -> bool:
        """Whether the operator lets it have any address."""
        return authority(url) in self._named

    def may_ask(self, url: str) -> bool:
        """Whether a request may be made at all; where its name really leads is looked at when it is connected."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError:
            return False
        if not host or port == 0 or parts.username is not None or parts.password is not None:
            return False
        if self.is_named(url):
            return parts.scheme == "https" or (parts.scheme == "http" and authority(url) in self._plain)
        return parts.scheme == "https" and (not _is_address(host) or may_connect(host, ()))


def authority(url: str) -> str:
    """Host, and port unless it is the scheme's own."""
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname or ""
    usual = {"https": 443, "http": 80}.get(parts.scheme)
    return host if parts.port in (None, usual) else f"{host}:{parts.port}"


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
