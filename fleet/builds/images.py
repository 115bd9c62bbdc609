"""docker_image builds: may this build read the image, and which one exactly is it.

The registry is asked with the build's own login, whatever images this fleet's machines have already: that somebody
else may read one is no reason. What is found is a digest, and nodes run that (`fleet/node/images.py`). What may pass (a
registry or engine that does not answer) is `Unavailable`, and tried again; what a registry refuses is the build's
failure.

Images that no registry has are for those whom the operator lets use them, by name (`FLEET_LOCAL_IMAGES`).
"""

import asyncio
import json
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import aiodocker
from aiodocker.exceptions import DockerError

from fleet.builds.image_manifests import architecture, blobs_of, for_this_machine
from fleet.builds.image_names import ImageName, Registries
from fleet.builds.registry import ImageError, Registry
from fleet.errors import FleetError, Unavailable
from fleet.settings import FleetSettings

ENGINE_CALL_S = 30.0  # one question to the engine
REGISTRY_S = 120.0  # for all questions to a registry


@dataclass(frozen=True, slots=True)
class FoundImage:
    """`digest`: of its manifest; of a local image, its id. `packed_bytes`: what nodes download."""

    digest: str
    packed_bytes: int = 0


async def resolve_image(image: str, credentials: dict[str, str] | None, settings: FleetSettings) -> FoundImage:
    """The image that the name means now. `ImageError` says why it never can be had, `Unavailable` why not now."""
    engine_expected = has_engine(settings)
    if is_local(image, settings.local_images):
        return FoundImage(await _local(image, engine_expected=engine_expected))
    if not engine_expected:
        raise _no_engine(engine_expected)
    try:
        async with asyncio.timeout(REGISTRY_S):
            return await _ask_registry(image, credentials, settings)
    except TimeoutError as error:
        raise Unavailable(f"The registry took longer than {REGISTRY_S:.0f} s.") from error


async def _ask_registry(image: str, credentials: dict[str, str] | None, settings: FleetSettings) -> FoundImage:
    name = ImageName.parse(image)
    async with Registry(name, credentials, Registries(settings.registries)) as registry:
        found = await registry.manifest(name.reference)
        content = found.read()
        if (meant := for_this_machine(content, architecture())) is not None:
            content = (await registry.manifest(meant)).read()
    size = sum(blobs_of(content).values())
    if not size:
        raise ImageError("The registry's answer is no image manifest.")
    most = int(settings.image_limits.max_image_gb * 2**30)
    if size > most:
        raise ImageError(f"The image has {size >> 20} MB packed; {most >> 20} MB unpacked are allowed.")
    return FoundImage(found.digest, size)


def is_local(image: str, patterns: list[str]) -> bool:
    """Whether the operator lets all projects use an image of that name which the nodes' engines have."""
    return any(fnmatchcase(image, pattern) for pattern in patterns)


async def _local(image: str, *, engine_expected: bool) -> str:
    try:
        docker = aiodocker.Docker()
    except (ValueError, AssertionError) as error:  # there is no socket, which one that restarts has neither
        raise _no_engine(engine_expected) from error
    async with docker:
        try:
            async with asyncio.timeout(ENGINE_CALL_S):
                return str((await docker.images.inspect(image))["Id"])
        except DockerError as error:
            if error.status == 404:
                raise ImageError(f"This fleet's engine has no image {image}.") from error
            raise _no_engine(engine_expected) from error
        except (OSError, TimeoutError) as error:
            raise _no_engine(engine_expected) from error


def has_engine(settings: FleetSettings) -> bool:
    """Whether this fleet runs games in an engine, or may: then one that does not answer is away, not missing."""
    if settings.runtime in ("process", "simulated"):
        return False
    try:
        pinned: Any = json.loads((Path(settings.home) / "runtime.json").read_text())
    except (OSError, ValueError):
        return True
    return pinned != {"runtime": "process"}


def _no_engine(expected: bool) -> FleetError:
    if expected:
        return Unavailable("Image builds need the container engine, and it does not answer now.")
    return ImageError("Image builds need a container engine, and this machine has none.")
