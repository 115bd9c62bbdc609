"""Where webhooks may go. Their URLs are strangers' words, and the fleet stands inside a network.

What counts is the address that is really connected to, looked at when the socket is made: a name may say another
address at each question. By default only addresses of the public internet are let through.
"""

import ipaddress
import socket
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

from fleet.errors import BadRequest
from fleet.this_machine import is_own_name, plain_address

MAX_URL = 2048
LOOPBACK = ("127.0.0.1", "::1")
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class ForbiddenTarget(OSError):
    """The address is not one that webhooks may go to."""


def may_connect(address: str, allowed: Sequence[Network]) -> bool:
    """Whether a webhook may go to this address: a public one, or one that the operator allows."""
    try:
        found = ipaddress.ip_address(address.split("%")[0])
    except ValueError:
        return False
    if any(found.version == network.version and found in network for network in allowed):
        return True
    return all(one.is_global and not one.is_multicast for one in (found, *_inner(found)))


def _inner(address: Address) -> list[Address]:
    """IPv4 addresses that an IPv6 address stands for."""
    if not isinstance(address, ipaddress.IPv6Address):
        return []
    inner: list[Address | None] = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if address in _NAT64:
        inner.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return [one for one in inner if one is not None]


def guarded_socket(allowed: Sequence[Network]) -> Callable[[Any], socket.socket]:
    """For aiohttp's `socket_factory`: refuses before anything is sent."""

    def make(info: Any) -> socket.socket:
        family, kind, protocol, _, address = info
        if not may_connect(str(address[0]), allowed):
            raise ForbiddenTarget("The URL leads to an address that is not public.")
        return socket.socket(family, kind, protocol)

    return make


def check_url(url: str, allowed: Sequence[Network], *, http: bool) -> None:
    """`BadRequest` for a URL that can never be delivered to. What a name leads to is looked at when it is used."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise _bad("it is malformed") from None
    schemes = ("https", "http") if http else ("https",)
    if len(url) > MAX_URL or not url.isascii() or not url.isprintable() or " " in url:
        raise _bad("it must be plain ASCII without spaces, of at most 2048 characters")
    if parts.scheme not in schemes:
        raise _bad(f"it must begin with {' or '.join(f'{scheme}://' for scheme in schemes)}")
    if not parts.hostname or port == 0 or parts.username is not None or parts.password is not None or parts.fragment:
        raise _bad("it needs a host, and may have neither login nor fragment")
    host = plain_address(parts.hostname)
    if _is_address(host) and not may_connect(host, allowed):
        raise _bad("its address is not public")
    if is_own_name(host) and not any(may_connect(one, allowed) for one in LOOPBACK):
        raise _bad("its host is this machine")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _bad(why: str) -> BadRequest:
    return BadRequest(f"This URL cannot be used: {why}.", error="Bad URL")
