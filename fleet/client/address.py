"""Where a fleet is."""

from urllib.parse import urlsplit

from fleet.errors import BadRequest

_PATHS = ("/api/v3", "/v3", "/api")


def address(url: str) -> str:
    """The fleet's address without a path of its API, which the URLs of other tools end in."""
    url = url.rstrip("/")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise BadRequest(f"'{url}' is no URL of a fleet. Write it as http://host:port or https://host.")
    return next((url.removesuffix(path) for path in _PATHS if url.endswith(path)), url)
