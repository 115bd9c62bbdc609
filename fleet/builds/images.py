"""docker_image builds: is the image to be had, and which one exactly is it."""

import aiodocker
from aiodocker.exceptions import DockerError

from fleet.errors import FleetError

_TIMEOUT_S = 1800.0


class ImageError(FleetError):
    status = 422
    error = "Image not available"


async def resolve_image(image: str, credentials: dict[str, str] | None) -> str:
    """The id (`sha256:…`) of the image, pulled if this machine has none of that name. ImageError says why not."""
    try:
        docker = aiodocker.Docker()
    except ValueError as error:
        raise ImageError("Image builds need a container engine, and this machine has none.") from error
    async with docker:
        try:
            return (await docker.images.inspect(image))["Id"]
        except DockerError as error:
            if error.status != 404:
                raise ImageError(f"The engine refused: {error.message}") from error
        except OSError as error:
            raise ImageError("Image builds need a container engine, and none answers on this machine.") from error
        try:
            await docker.images.pull(image, auth=dict(credentials) if credentials else None, timeout=_TIMEOUT_S)
            return (await docker.images.inspect(image))["Id"]
        except (DockerError, OSError, TimeoutError) as error:
            raise ImageError(
                f"The image {image} could not be pulled ({error}). Check its name, tag and registry_credentials."
            ) from error
