"""Regions and compute sizes, read once in a process from `configs/`.

What an operator has taken out of `sizes.yaml` is still known for the servers that have it (`Catalog.known`), and
refused for everything new (`Catalog.size`). A broken edit changes nothing: what the file said before holds.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from fleet.billing.prices import price_book
from fleet.config_files import ConfigFile, KnownDefinitions, kept_file, section, validated
from fleet.errors import BadRequest
from fleet.times import now_ms

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


class ComputeSize(BaseModel):
    """What one server may use. `cpus` is a ceiling, and owned whole when `dedicated`. `disk_mb`: what a server of an
    image may write to the node's disk. `cost_per_hour` is today's price by configs/prices.yaml, for metrics; bills are
    made from that file itself."""

    model_config = ConfigDict(frozen=True)
    name: str
    memory_mb: int
    cpus: float
    disk_mb: int = Field(default=1024, ge=16)
    dedicated: bool = False
    persistent: bool = False
    cost_per_hour: float = 0.0


class Region(BaseModel):
    model_config = ConfigDict(frozen=True)
    id: str
    title: str
    alias: tuple[str, ...] = Field(default=())


class Catalog(BaseModel):
    model_config = ConfigDict(frozen=True)
    regions: dict[str, Region]
    sizes: dict[str, ComputeSize]
    former_sizes: dict[str, ComputeSize] = Field(default_factory=dict[str, ComputeSize])

    def region(self, name: str) -> Region:
        """The region of that id or alias; `BadRequest` names the known ones."""
        found = self.regions.get(name)
        if found:
            return found
        for region in self.regions.values():
            if name in region.alias:
                return region
        raise BadRequest(
            f"Unknown region '{name[:64]}'. Use one of: {', '.join(self.regions)}.",
            error="Unknown region",
        )

    def size(self, name: str) -> ComputeSize:
        """The compute size of that name; `BadRequest` names the known ones."""
        found = self.sizes.get(name)
        if found is None:
            raise BadRequest(
                f"Unknown compute_size '{name[:64]}'. Use one of: {', '.join(self.sizes)}.",
                error="Unknown compute size",
            )
        return found

    def known(self, name: str) -> ComputeSize | None:
        """The size of that name for a server that has it already, though the file may not have it any more."""
        return self.sizes.get(name) or self.former_sizes.get(name)


def regions_of(content: Any) -> dict[str, Region]:
    """What `regions.yaml` says."""
    return {
        key: validated(lambda given, key=key: Region(id=key, **given), value, "regions", key)
        for key, value in section(content, "regions").items()
    }


def sizes_of(content: Any) -> dict[str, ComputeSize]:
    """What `sizes.yaml` says; without prices."""
    return {
        key: validated(lambda given, key=key: ComputeSize(name=key, **given), value, "sizes", key)
        for key, value in section(content, "sizes").items()
    }


@lru_cache(maxsize=4)
def load_catalog(folder: Path = CONFIGS) -> Catalog:
    """`BadConfig` names file, line and reason if a file is broken and never was good in this fleet."""
    fleets = folder == CONFIGS
    regions = ConfigFile(folder / "regions.yaml", regions_of, kept_file("regions.yaml") if fleets else None).now()
    sizes = ConfigFile(folder / "sizes.yaml", sizes_of, kept_file("sizes.yaml") if fleets else None).now()
    prices, now = price_book(folder / "prices.yaml").now(), now_ms()
    costs = {key: prices.per_hour("", key, "used", now) / 1e6 for key in sizes}
    priced = {
        key: size if size.cost_per_hour else size.model_copy(update={"cost_per_hour": costs[key]})
        for key, size in sizes.items()
    }
    definitions = KnownDefinitions(kept_file("known-sizes.json") if fleets else None)
    every = definitions.remember({key: size.model_dump(mode="json") for key, size in priced.items()})
    former = {key: ComputeSize(**value) for key, value in every.items() if key not in priced}
    return Catalog(regions=regions, sizes=priced, former_sizes=former)
