"""What this machine is called, and which addresses are its own. Nobody else is asked: no DNS."""

import ipaddress
import socket
from functools import lru_cache
from pathlib import Path

HOSTS = Path("/etc/hosts")
_LOOPBACK_NAMES = frozenset({"localhost", "localhost.localdomain", "localhost6", "ip6-localhost", "ip6-loopback"})


def is_own_address(text: str) -> bool:
    """Whether it is an address of one of this machine's interfaces, the loopback's included."""
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return False
    if found.is_loopback:
        return True
    if found.is_unspecified or found.is_multicast:
        return False
    family = socket.AF_INET if found.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((text, 0))  # nothing is sent
        except OSError:
            return False
    return True


def is_own_name(host: str) -> bool:
    """Whether a host name means this machine, by itself or by the machine's own files."""
    name = host.lower().rstrip(".")
    return name in _LOOPBACK_NAMES or name.endswith(".localhost") or name in own_names()


@lru_cache(maxsize=1)
def own_names() -> frozenset[str]:
    """Its host name, and what its list of hosts has for its own addresses."""
    found = {socket.gethostname().lower()}
    try:
        lines = HOSTS.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        address, *names = line.partition("#")[0].split() or [""]
        if is_own_address(address):
            found.update(name.lower() for name in names)
    return frozenset(found)


def plain_address(host: str) -> str:
    """`host` as resolvers read it: `127.1`, `0x7f000001` and `2130706433` are an address, too."""
    try:
        return socket.inet_ntoa(socket.inet_aton(host)) if host[:1].isdigit() else host
    except (OSError, ValueError):
        return host
