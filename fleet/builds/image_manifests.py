"""What a manifest says of an image: whether it runs here, what it is made of, how large that is. Pure."""

import platform
from typing import Any, cast

from fleet.builds.registry import DIGEST, ImageError

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
MOST_LAYERS = 500


def architecture() -> str:
    """This machine's, as images name it."""
    machine = platform.machine()
    return _ARCHITECTURES.get(machine, machine)


def for_this_machine(manifest: dict[str, Any], architecture: str) -> str | None:
    """Digest of the manifest that is meant for such machines, of one that lists several; None: it is no list."""
    listed = manifest.get("manifests")
    if listed is None:
        return None
    for one in _objects(listed):
        meant = one.get("platform")
        if not isinstance(meant, dict):
            continue
        meant = cast(dict[str, Any], meant)
        if (meant.get("os"), meant.get("architecture")) == ("linux", architecture):
            return _digest(one)
    raise ImageError(f"The image has nothing for linux/{architecture}.")


def blobs_of(manifest: dict[str, Any]) -> dict[str, int]:
    """Digest to size (bytes, packed) of all that an image is made of: its layers and its configuration."""
    layers, config = manifest.get("layers"), manifest.get("config")
    if layers is None or config is None:
        raise ImageError("The image is in a format that is too old, or none at all. Push it again with a newer tool.")
    found: dict[str, int] = {}
    for one in [*_objects(layers), *_objects([config])]:
        size = one.get("size")
        if not isinstance(size, int) or size < 0 or one.get("urls"):
            raise ImageError("The image has layers that are kept elsewhere than in its registry.")
        found[_digest(one)] = size
    if len(found) > MOST_LAYERS:
        raise ImageError(f"The image has more than {MOST_LAYERS} layers.")
    return found


def _objects(listed: Any) -> list[dict[str, Any]]:
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in cast(list[Any], listed)):
        raise ImageError("The registry's answer is no image manifest.")
    return cast(list[dict[str, Any]], listed)


def _digest(one: dict[str, Any]) -> str:
    digest = one.get("digest")
    if not isinstance(digest, str) or not DIGEST.fullmatch(digest):
        raise ImageError("The registry's answer is no image manifest.")
    return digest
