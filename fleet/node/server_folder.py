"""The folder of one run on the host, and the files a runtime writes there."""

import os
from pathlib import Path
from typing import Any

import orjson

from fleet.errors import NotFound
from fleet.node.runtime import RunKey

CONFIG_FILE = "playflow.json"


def server_folder(servers_dir: Path, key: RunKey) -> Path:
    return servers_dir / str(key)


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """Put playflow.json into `folder`, replacing an older one atomically: a reader sees the old or the new.

    NotFound if the folder is gone, so the run is too.
    """
    draft = folder / f".{CONFIG_FILE}.{os.getpid()}"
    try:
        draft.write_bytes(orjson.dumps(config, option=orjson.OPT_INDENT_2))
    except FileNotFoundError:
        raise NotFound("The server's run is gone from its node.", error="Server gone") from None
    draft.chmod(0o644)  # the game runs as another user
    draft.replace(folder / CONFIG_FILE)


def make_private(servers_dir: Path) -> None:
    """The folder of all runs. Closed to other users of the host, since configs hold keys."""
    servers_dir.mkdir(parents=True, exist_ok=True)
    servers_dir.chmod(0o700)
