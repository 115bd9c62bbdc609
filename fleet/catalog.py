"""Regions and compute sizes, read once from `configs/`."""

from functools import lru_cache
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field

from fleet.billing.prices import price_book
from fleet.errors import BadRequest
from fleet.times import now_ms

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


class ComputeSize(BaseModel):
    """What one server may use. `cpus` is a ceiling, and owned whole when `dedicated`. `cost_per_hour` is today's price
    by configs/prices.yaml, for metrics; bills are made from that file itself."""

    model_config = ConfigDict(frozen=True)
    name: str
    memory_mb: int
    cpus: float
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


@lru_cache(maxsize=4)
def load_catalog(folder: Path = CONFIGS) -> Catalog:
    regions = yaml.safe_load((folder / "regions.yaml").read_text())["regions"]
    sizes = yaml.safe_load((folder / "sizes.yaml").read_text())["sizes"]
    prices, now = price_book(folder / "prices.yaml").now(), now_ms()
    costs = {key: prices.per_hour("", key, "used", now) / 1e6 for key in sizes}
    return Catalog(
        regions={key: Region(id=key, **value) for key, value in regions.items()},
        sizes={key: ComputeSize(name=key, **({"cost_per_hour": costs[key]} | value)) for key, value in sizes.items()},
    )
