"""docker_image builds: is the image to be had, and which one exactly is it.

What may pass (an engine that is away, a registry that does not answer or makes no progress) is `Unavailable`, and tried
again; what a registry refuses is the build's failure.
"""

import asyncio
import json
from contextlib import aclosing
from pathlib import Path
from typing import Any

import aiodocker
from aiodocker.exceptions import DockerError

from fleet.errors import FleetError, Unavailable
from fleet.settings import FleetSettings

ENGINE_CALL_S = 30.0  # one question to the engine
NO_PROGRESS_S = 120.0  # between two words of the engine about a pull; how long it takes in all is its size's matter
_NO_CONNECTION = 900  # aiodocker's own

# What engines and registries say when asking again cannot help.
_FINAL_STATUSES = frozenset({400, 401, 403, 404, 405, 406})
_FINAL_WORDS = (
    "denied",
    "forbidden",
    "invalid reference",
    "manifest for",
    "manifest unknown",
    "no basic auth",
    "no matching manifest",
    "not found",
    "repository name",
    "unauthorized",
)


class ImageError(FleetError):
    status = 422
    error = "Image not available"


def is_final(status: int, message: str) -> bool:
    """Whether the engine's answer to a pull is the registry's verdict, not trouble on the way there."""
    text = message.lower()
    return status in _FINAL_STATUSES or any(word in text for word in _FINAL_WORDS)


async def resolve_image(image: str, credentials: dict[str, str] | None, *, engine_expected: bool = True) -> str:
    """The id (`sha256:…`) of the image, pulled if this machine has none of that name.

    `ImageError` says why it never can be had, `Unavailable` why not now. Without an `engine_expected` on this machine,
    its absence is final.
    """
    try:
        docker = aiodocker.Docker()
    except (ValueError, AssertionError) as error:  # there is no socket, which one that restarts has neither
        raise _no_engine(engine_expected) from error
    async with docker:
        try:
            return await _inspect(docker, image)
        except DockerError as error:
            if error.status == _NO_CONNECTION:
                raise _no_engine(engine_expected) from error
            if error.status != 404:
                raise Unavailable(f"The engine refused: {error.message}") from error
        except (OSError, TimeoutError) as error:
            raise _no_engine(engine_expected) from error
        try:
            await _pull(docker, image, credentials)
            return await _inspect(docker, image)
        except TimeoutError as error:
            raise Unavailable(f"Pulling {image} made no progress for {NO_PROGRESS_S:.0f} s.") from error
        except (DockerError, OSError, ValueError) as error:
            text = f"The image {image} could not be pulled ({error}). Check its name, tag and registry_credentials."
            final = is_final(error.status, error.message) if isinstance(error, DockerError) else _is_ours(error)
            raise (ImageError if final else Unavailable)(text) from error


def has_engine(settings: FleetSettings) -> bool:
    """Whether this fleet runs games in an engine, or may: then one that does not answer is away, not missing."""
    if settings.runtime in ("process", "simulated"):
        return False
    try:
        pinned: Any = json.loads((Path(settings.home) / "runtime.json").read_text())
    except (OSError, ValueError):
        return True
    return pinned != {"runtime": "process"}


async def _inspect(docker: aiodocker.Docker, image: str) -> str:
    async with asyncio.timeout(ENGINE_CALL_S):
        return str((await docker.images.inspect(image))["Id"])


async def _pull(docker: aiodocker.Docker, image: str, credentials: dict[str, str] | None) -> None:
    login = dict(credentials) if credentials else None
    told: Any = docker.images.pull(image, auth=login, stream=True)
    async with aclosing(told) as words:
        while True:
            try:
                async with asyncio.timeout(NO_PROGRESS_S):
                    await anext(words)
            except StopAsyncIteration:
                return


def _is_ours(error: Exception) -> bool:
    """A request that the engine's client refuses to send."""
    return isinstance(error, ValueError)


def _no_engine(expected: bool) -> FleetError:
    if expected:
        return Unavailable("Image builds need the container engine, and it does not answer now.")
    return ImageError("Image builds need a container engine, and this machine has none.")
