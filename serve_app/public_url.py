"""The address that this fleet is reached at, for URLs in its answers: never just what a caller wrote into `Host`."""

from urllib.parse import urlsplit

from starlette.requests import Request

from fleet.errors import BadRequest
from fleet.settings import FleetSettings
from fleet.this_machine import is_own_address, is_own_name


def public_base(request: Request, settings: FleetSettings) -> str:
    """As configured, else as this client has just reached the fleet, if that is a host that we serve."""
    if settings.public_url:
        return settings.public_url.rstrip("/")
    host = urlsplit(f"//{request.url.netloc}").hostname or ""
    if not serves(host, settings):
        raise BadRequest(
            f"This fleet does not know that it is called '{host[:100]}'. Start it with FLEET_PUBLIC_URL, the address "
            "that its users reach it at; upload links begin with that.",
            error="Unknown host",
        )
    return f"{request.url.scheme}://{request.url.netloc}"


def serves(host: str, settings: FleetSettings) -> bool:
    """Whether requests for that host come here: it is the configured one, or this machine's name or address."""
    return host == settings.host or is_own_name(host) or is_own_address(host)
