"""Artefacts in object storage (S3 and what speaks like it, Google, Azure), and the choice of a store by URL.

Files are streamed in parts, so memory is bounded whatever their size. Logins come from where the cloud's own tools
find them: the environment, or the machine's role.
"""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import from_url

from fleet.builds.artefacts import ArtefactStore, DiskStore
from fleet.errors import NotFound, Unavailable
from fleet.settings import FleetSettings

_PART = 8 << 20
_PARTS_AT_ONCE = 4
# The library's limit of 30 s is for a whole answer; a large build over a slow line takes longer.
# What stands still ends by `read_timeout`; the store then tries again, for `patience_s` in all.
_CLIENT: Any = {"timeout": "24h", "connect_timeout": "10s", "read_timeout": "60s"}


class ObjectStore:
    """One bucket, or a folder of it: `s3://bucket/folder?endpoint=https://…&region=…`; also `gs://` and `az://`."""

    def __init__(self, url: str, *, patience_s: float = 60.0) -> None:
        parts = urlsplit(url)
        config: dict[str, Any] = dict(parse_qsl(parts.query))
        client = _CLIENT
        if config.get("endpoint", "").startswith("http://"):
            client = client | {"allow_http": True}
        open_url: Any = from_url  # typed per cloud, while which one it is stands in the URL
        self._store: Any = open_url(
            parts._replace(query="").geturl(),
            config=config or None,
            client_options=client,
            retry_config={"retry_timeout": timedelta(seconds=patience_s)},
        )

    def put_file(self, key: str, path: Path) -> None:
        with _told(key):
            obstore.put(self._store, _checked(key), path, chunk_size=_PART, max_concurrency=_PARTS_AT_ONCE)
        path.unlink()

    def get_to(self, key: str, path: Path) -> None:
        with _told(key):
            found = obstore.get(self._store, _checked(key))
            try:
                with path.open("wb") as file:
                    for part in found.stream(min_chunk_size=1 << 20):
                        file.write(part)
            except BaseException:
                path.unlink(missing_ok=True)
                raise

    def exists(self, key: str) -> bool:
        try:
            self.size(key)
        except NotFound:
            return False
        return True

    def size(self, key: str) -> int:
        with _told(key):
            return obstore.head(self._store, _checked(key))["size"]

    def delete(self, key: str) -> None:
        try:
            with _told(key):
                obstore.delete(self._store, _checked(key))
        except NotFound:
            return

    def list(self, prefix: str) -> Iterator[str]:
        with _told(prefix):
            for page in obstore.list(self._store, prefix):
                yield from (found["path"] for found in page)


def _checked(key: str) -> str:
    parts = PurePosixPath(key).parts
    if not parts or key.startswith("/") or any(part in ("..", ".") for part in parts):
        raise NotFound(f"There is no object '{key[:100]}'.")
    return key


@contextmanager
def _told(key: str) -> Generator[None]:
    """The library's errors as ours: missing is NotFound, anything else may pass."""
    try:
        yield
    except FileNotFoundError:
        raise NotFound(f"There is no object '{key[:100]}'.") from None
    except BaseError as error:
        raise Unavailable(f"The artefact store does not serve '{key[:100]}': {str(error)[:300]}") from error


def open_artefacts(settings: FleetSettings) -> ArtefactStore:
    """The store of the settings: `FLEET_ARTEFACTS_URL`, by default a folder in the home."""
    url = settings.artefacts_url
    if url is None:
        return DiskStore(settings.artefacts)
    if url.startswith("file://"):
        return DiskStore(Path(urlsplit(url).path))
    return ObjectStore(url)
