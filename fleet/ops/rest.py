"""A small client of the fleet's REST API for the command line."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self, cast

import httpx

from fleet.errors import FleetError, Unavailable
from fleet.ops.home import find_home, read_access
from fleet.settings import FleetSettings

CHUNK = 1 << 20
TIMEOUT = httpx.Timeout(75.0, connect=10.0)


class ApiError(FleetError):
    """The API refused; `detail` is what it said."""

    status = 502
    error = "The API refused"


class Rest:
    """Speaks for one key of one fleet. Every failure is a FleetError with one clear text."""

    def __init__(self, url: str, key: str) -> None:
        self.url = url.rstrip("/")
        # Proxies of the environment are for the outside world, the fleet is addressed as it is.
        self._client = httpx.Client(headers={"api-key": key}, timeout=TIMEOUT, trust_env=False)

    @classmethod
    def of(cls, settings: FleetSettings) -> Self:
        """FLEET_URL and FLEET_API_KEY if set, else the fleet of the home folder."""
        url, key = os.environ.get("FLEET_URL"), os.environ.get("FLEET_API_KEY")
        home = find_home(settings.home)
        access = read_access(home) if home else None
        if access is None and not (url and key):
            raise Unavailable(
                f"No fleet is known here ({settings.home} has no fleet.json). "
                "Start one with 'fleet up', or set FLEET_URL and FLEET_API_KEY.",
                error="No fleet",
            )
        return cls(url or (access.url if access else ""), key or (access.server_key if access else ""))

    def call(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        """One request below /api/v3; its JSON object."""
        try:
            response = self._client.request(method, f"{self.url}/api/v3{path}", **options)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        raise_for(response)
        return response.json()

    def upload(self, url: str, archive: Path, progress: Callable[[int], None]) -> None:
        """PUT the file to a signed URL in constant memory; `progress` hears how many bytes went out."""

        def chunks() -> Iterator[bytes]:
            with archive.open("rb") as file:
                while chunk := file.read(CHUNK):
                    yield chunk
                    progress(len(chunk))

        headers = {"content-length": str(archive.stat().st_size), "content-type": "application/zip"}
        try:
            response = httpx.put(url, content=chunks(), headers=headers, timeout=httpx.Timeout(600), trust_env=False)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        raise_for(response)

    def lines(self, path: str, **options: Any) -> Iterator[dict[str, Any]]:
        """The `log` events of a stream, until its end."""
        timeout = httpx.Timeout(60.0, connect=10.0)
        try:
            with self._client.stream("GET", f"{self.url}/api/v3{path}", timeout=timeout, **options) as response:
                if response.is_error:
                    response.read()
                raise_for(response)
                yield from _log_events(response.iter_lines())
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: httpx.HTTPError) -> Unavailable:
        reason = str(error) or type(error).__name__
        return Unavailable(f"{self.url} does not answer ({reason}). Is the fleet up? Try 'fleet status'.")

    def close(self) -> None:
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _log_events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    event = ""
    for line in lines:
        if line.startswith("event: "):
            event = line.removeprefix("event: ")
        elif line.startswith("data: ") and event == "log":
            yield json.loads(line.removeprefix("data: "))
        elif line.startswith("data: ") and event == "error":
            raise ApiError(line.removeprefix("data: "))


def raise_for(response: httpx.Response) -> None:
    """ApiError with the API's own words, on one line."""
    if response.is_success:
        return
    try:
        body: dict[str, Any] = response.json()
        detail, error = body["detail"], body["error"]
    except (ValueError, KeyError, TypeError):
        raise ApiError(response.text[:500] or response.reason_phrase, error=f"HTTP {response.status_code}") from None
    if isinstance(detail, list):
        problems = cast(list[dict[str, Any]], detail)
        detail = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in problems)
    raise ApiError(str(detail), error=f"{error} ({response.status_code})")
