"""What a project wishes: the `pool_config` setting, checked, and as one wish per pool.

`{"enabled": true, "regions": {"us-east": {"small": 3}}}` is the API's form. A number is short for an object with
`count`; the other fields, and `build`, `policy` and `schedule`, are our extensions.
"""

from datetime import datetime
from functools import lru_cache
from typing import Annotated, Any, Literal, Self

import structlog
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_validator,
)

from fleet.catalog import load_catalog

log = structlog.get_logger(__name__)

DEFAULT_BUILD = "default"
MAX_COUNT = 2000
MAX_SCHEDULED = 100
# Without a `max` of its own a pool may grow to this multiple of its count, so that no bill surprises anyone.
GROWTH, SMALLEST_MAX = 4, 8

_STORED = {"read": "from the database"}  # sizes may have been removed since it was set: the other pools stay

Name = Annotated[str, StringConstraints(min_length=1, max_length=256)]


def _number(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("true and false are no numbers")
    return value


Count = Annotated[int, Field(ge=0, le=MAX_COUNT), BeforeValidator(_number)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: object, info: ValidationInfo) -> object:
        return value if cls.model_fields[str(info.field_name)].annotation is bool else _number(value)


class PoolPolicy(_Strict):
    """How pools are sized. `auto`: by demand, between `count` and `max`; `fixed`: `count`; `shadow`: shows what auto
    would do and keeps `count`."""

    mode: Literal["auto", "fixed", "shadow"] = "auto"
    slo: float = Field(default=0.99, ge=0.5, le=0.9999, description="share of starts that find a warm server")
    hold_seconds: int = Field(default=600, ge=0, le=86_400, description="surplus is kept this long")
    max_age_seconds: int = Field(default=21_600, ge=60, le=30 * 86_400, description="older idle servers are replaced")
    miss_cost: float | None = Field(default=None, gt=0, le=1e6, description="what one cold start costs you")
    idle_cost_per_hour: float | None = Field(default=None, gt=0, le=1e6, description="what an idle server costs")

    @model_validator(mode="after")
    def _both_costs(self) -> Self:
        if (self.miss_cost is None) != (self.idle_cost_per_hour is None):
            raise ValueError("miss_cost and idle_cost_per_hour belong together: give both, or neither")
        return self


class PoolSize(_Strict):
    """One pool. `count` is the floor, `max` the ceiling, `hot` how many stay unfrozen (null: all)."""

    count: Count
    max: Count | None = None
    build: Name | None = None
    hot: Count | None = None

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.max is not None and self.max < self.count:
            raise ValueError(f"max is {self.max}, below count {self.count}")
        return self


class Scheduled(_Strict):
    """Demand known ahead: `count` starts expected over `duration_seconds` from `at`."""

    region: Name
    compute_size: Name
    at: datetime
    count: Annotated[int, Field(ge=1, le=1_000_000)]
    duration_seconds: int = Field(default=600, ge=1, le=86_400)
    build: Name | None = None

    @field_validator("at")
    @classmethod
    def _with_zone(cls, value: datetime) -> datetime:
        if value.tzinfo is None:
            raise ValueError("needs a time zone, e.g. 2030-06-01T18:00:00Z")
        return value


class PoolConfig(_Strict):
    """The whole setting. ValidationError names what is wrong in it."""

    enabled: Annotated[bool, Strict()]
    regions: dict[str, dict[str, Count | PoolSize | list[PoolSize]]] = Field(
        default_factory=dict[str, dict[str, Count | PoolSize | list[PoolSize]]]
    )
    build: Name = Field(default=DEFAULT_BUILD, description="build that pools run")
    policy: PoolPolicy = PoolPolicy()
    schedule: list[Scheduled] = Field(default_factory=list[Scheduled], max_length=MAX_SCHEDULED)

    @model_validator(mode="after")
    def _known(self, info: ValidationInfo) -> Self:
        check_size = _check_pooled if info.context is _STORED else _check_size
        for region, sizes in self.regions.items():
            _check_region(region)
            for size, wished in sizes.items():
                check_size(size)
                names = [one.build or self.build for one in _as_list(wished)]
                if len(set(names)) < len(names):
                    raise ValueError(f"{region}/{size}: two pools of the same build")
        for event in self.schedule:
            _check_region(event.region)
            check_size(event.compute_size)
        return self


class PoolWish(_Strict):
    """One pool as wished: what it is, between which bounds, and what is known ahead."""

    project_id: str
    region: str
    compute_size: str
    build_name: str
    floor: int
    ceiling: int
    hot: int | None
    policy: PoolPolicy
    schedule: tuple[Scheduled, ...] = ()

    @property
    def key(self) -> "PoolKey":
        return self.project_id, self.compute_size, self.build_name


PoolKey = tuple[str, str, str]  # project, compute size, build name; inside one region


def wishes(project_id: str, settings: dict[str, Any] | None, region: str) -> list[PoolWish]:
    """The project's pools in one region; none if pools are off. ValidationError if the setting is not valid any more;
    sizes that have been removed since it was set are only left out."""
    stored = (settings or {}).get("pool_config")
    if not stored or not stored.get("enabled"):
        return []
    config = PoolConfig.model_validate(stored, context=_STORED)
    found: list[PoolWish] = []
    for name, sizes in config.regions.items():
        if load_catalog().region(name).id != region:
            continue
        for size, wished in sizes.items():
            if size not in load_catalog().sizes:
                _tell_of_removed(project_id, size)
                continue
            found += [_wish(project_id, region, size, one, config) for one in _as_list(wished)]
    return [wish for wish in found if wish.ceiling > 0]


def pooled_regions(settings: dict[str, Any] | None) -> set[str]:
    """Ids of the regions in which the project wishes pools."""
    stored: dict[str, Any] = (settings or {}).get("pool_config") or {}
    regions: dict[str, Any] = stored.get("regions") or {}
    return {load_catalog().region(name).id for name in regions} if stored.get("enabled") else set()


def is_pooled(settings: dict[str, Any], region: str, size: str) -> bool:
    """Whether a start in that region and size may find a warm server. Cheap: asked at every start."""
    stored = settings.get("pool_config")
    if not stored or not stored.get("enabled"):
        return False
    named = [region, *load_catalog().regions[region].alias]
    return any(size in (stored.get("regions") or {}).get(name, ()) for name in named)


def _wish(project_id: str, region: str, size: str, one: PoolSize, config: PoolConfig) -> PoolWish:
    build = one.build or config.build
    ceiling = one.max if one.max is not None else _default_max(one.count)
    events = tuple(
        event
        for event in config.schedule
        if load_catalog().region(event.region).id == region
        and event.compute_size == size
        and (event.build or config.build) == build
    )
    return PoolWish(
        project_id=project_id,
        region=region,
        compute_size=size,
        build_name=build,
        floor=one.count,
        ceiling=one.count if config.policy.mode == "fixed" else ceiling,
        hot=one.hot,
        policy=config.policy,
        schedule=events,
    )


def _default_max(count: int) -> int:
    return min(MAX_COUNT, max(GROWTH * count, SMALLEST_MAX)) if count else 0


def _as_list(wished: int | PoolSize | list[PoolSize]) -> list[PoolSize]:
    if isinstance(wished, int):
        return [PoolSize(count=wished)]
    return wished if isinstance(wished, list) else [wished]


def _check_region(name: str) -> None:
    catalog = load_catalog()
    if not any(name == region.id or name in region.alias for region in catalog.regions.values()):
        raise ValueError(f"unknown region '{name[:64]}'; known are {', '.join(catalog.regions)}")


def _check_size(name: str) -> None:
    if name not in load_catalog().sizes:
        raise ValueError(f"unknown compute_size '{name[:64]}'; known are {', '.join(load_catalog().sizes)}")
    _check_pooled(name)


def _check_pooled(name: str) -> None:
    size = load_catalog().sizes.get(name)
    if size is not None and size.persistent:
        raise ValueError(f"'{name}' servers run for ever, so they cannot be pooled")


@lru_cache(maxsize=1024)
def _tell_of_removed(project_id: str, size: str) -> None:
    """Once in a process: settings are read every few seconds."""
    log.warning("pool_size_removed", project=project_id, size=size, remedy="put it back into sizes.yaml")
