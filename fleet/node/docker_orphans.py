"""What is left of runs that the engine does not have any more, found by comparing disk and engine.

The folder of all runs is shared by all regions of the home, so a folder is an orphan only if no container of the whole
fleet has its name. Nothing is removed that one look only has found: looks are minutes apart, and a launch makes its
folder a moment before its container.
"""

import asyncio
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import structlog

from fleet.node.as_root import NotAllowed
from fleet.node.docker_networks import ROLE, DockerNetworks
from fleet.node.docker_spec import key_of
from fleet.node.engine import Engine, EngineError
from fleet.node.runtime import EngineUnavailable
from fleet.node.server_disks import ServerDisks

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Orphans:
    """`folders`, `disks` and `networks` (files) by name; `builders`: ids of containers in which an image was being
    derived."""

    folders: frozenset[str] = frozenset()
    networks: frozenset[str] = frozenset()
    builders: frozenset[str] = frozenset()
    disks: frozenset[str] = frozenset()

    def also_in(self, other: "Orphans") -> "Orphans":
        return Orphans(
            self.folders & other.folders,
            self.networks & other.networks,
            self.builders & other.builders,
            self.disks & other.disks,
        )


def orphans(
    folders: Iterable[str],
    files: Iterable[str],
    ours: list[dict[str, Any]],
    builders: list[dict[str, Any]],
    fleet: str,
    disks: Iterable[str] = (),
) -> Orphans:
    """Pure. `ours`: all containers of the fleet as the engine lists them; `builders`: those with a build's label."""
    keys = {str(key_of(row["Labels"], (row["Names"] or [""])[0], fleet)) for row in ours}
    networks = {row["Labels"].get(ROLE, "") for row in ours}
    made = {row["Id"] for row in builders if row["State"] == "created" and "fleet.server" not in row["Labels"]}
    return Orphans(frozenset(folders) - keys, frozenset(files) - networks, frozenset(made), frozenset(disks) - keys)


def is_run_folder(path: Path) -> bool:
    """Whether a folder is one of this runtime: named like a run, and not a plain process's."""
    _, dot, generation = path.name.rpartition(".")
    named = bool(dot) and generation.isdigit() and not path.name.startswith(".")
    return named and path.is_dir() and not (path / "run.json").exists()


class OrphanHunt:
    """Of one agent; it remembers what its last look found."""

    def __init__(
        self, engine: Engine, fleet_id: str, servers_dir: Path, networks: DockerNetworks, disks: ServerDisks
    ) -> None:
        self._engine, self._fleet_id, self._servers, self._networks = engine, fleet_id, servers_dir, networks
        self._disks = disks
        self._before = Orphans()

    async def remove(self) -> int:
        """Remove what this look and the last one found; how many. EngineUnavailable: nothing is removed."""
        try:
            # The disk first: what appears there later cannot be missed in the list.
            folders, files, disks = await asyncio.to_thread(self._on_disk)
            ours = await self._list(f"fleet.id={self._fleet_id}")
            found = orphans(folders, files, ours, await self._list("fleet.build"), self._fleet_id, disks)
            gone, self._before = found.also_in(self._before), found
            for builder in gone.builders:
                await self._engine.call("DELETE", f"/containers/{builder}", params={"v": "1"})
        except EngineError as error:
            raise EngineUnavailable(error.message) from error
        await asyncio.to_thread(self._remove_files, gone)
        number = len(gone.folders) + len(gone.networks) + len(gone.builders) + len(gone.disks)
        if number:
            log.warning("orphans_removed", folders=sorted(gone.folders), networks=len(gone.networks), number=number)
        return number

    async def _list(self, label: str) -> list[dict[str, Any]]:
        params = {"all": "1", "filters": orjson.dumps({"label": [label]}).decode()}
        return await self._engine.call("GET", "/containers/json", params=params)

    def _on_disk(self) -> tuple[set[str], set[str], set[str]]:
        folders = {path.name for path in self._servers.glob("*") if is_run_folder(path)}
        return folders, self._networks.files(), self._disks.runs()

    def _remove_files(self, gone: Orphans) -> None:
        for name in gone.folders:
            shutil.rmtree(self._servers / name, ignore_errors=True)
        for name in gone.disks:
            try:
                self._disks.remove(name)
            except NotAllowed as error:  # the next look finds it again
                log.warning("disk_not_removed", run=name, error=str(error))
        self._networks.forget_left(set(gone.networks))
