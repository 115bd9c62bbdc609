"""What a project's plan allows: `configs/plans.yaml`, read again when it changes. The one place where it is enforced.

The checks are pure. They are asked at a start, a claim, a restart and a change of settings, so a change of plan applies
to what comes next and touches nothing that runs.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

import structlog
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fleet.catalog import CONFIGS, ComputeSize
from fleet.errors import Conflict, Forbidden, Unavailable
from fleet.pools.config import PoolConfig

log = structlog.get_logger(__name__)

PLANS_FILE = CONFIGS / "plans.yaml"
LIMIT = "Plan limit"


class Plan(BaseModel):
    """A limit that is None does not exist."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    max_servers: int | None = Field(default=None, ge=0)
    ttl: int | None = Field(default=None, ge=60, description="in place of any that is asked for")
    sizes: frozenset[str] | None = None
    pools: bool = True
    reads_per_s: int | None = Field(
        default=None, ge=0, description="of one key; none: as the settings say; 0: no limit"
    )
    writes_per_s: int | None = Field(default=None, ge=0)
    lobby_reads_per_s: int | None = Field(default=None, ge=0, description="of all players of a key together")
    lobby_writes_per_s: int | None = Field(default=None, ge=0)

    def has_size(self, size: str) -> bool:
        return self.sizes is None or size in self.sizes


def check_start(plan: Plan, size: str, *, out_of_budget: bool) -> None:
    """Whether a server of that size may be started or claimed; how many there are already is `check_count`'s matter."""
    if out_of_budget:
        raise Forbidden(
            "The project's budget for this month is used up, and it is set to stop new starts then. Servers that run "
            "go on. Raise the budget, or wait for the next month.",
            error="Budget limit reached",
        )
    if plan.has_size(size):
        return
    allowed = ", ".join(sorted(plan.sizes or ())) or "none"
    raise Forbidden(
        f"The {plan.name} plan does not have compute_size '{size[:64]}'. It has: {allowed}.",
        error=LIMIT,
    )


def check_count(plan: Plan, others: int) -> None:
    """Whether one more server may be, beside so many others."""
    if plan.max_servers is not None and others >= plan.max_servers:
        raise Conflict(
            f"The {plan.name} plan is limited to {plan.max_servers} active server(s) at a time. Stop one, or change "
            "the plan.",
            error="Server limit reached",
        )


def effective_ttl(plan: Plan, size: ComputeSize, asked: int | None) -> int | None:
    """Seconds until the server is stopped, or None: persistent sizes never are, whatever the plan."""
    if size.persistent:
        return None
    return asked if plan.ttl is None else plan.ttl


def check_pools(plan: Plan, config: PoolConfig) -> None:
    """Whether the project may wish for these pools. Switched off they may stay."""
    if not config.enabled:
        return
    if not plan.pools:
        raise Forbidden(f"The {plan.name} plan has no pools. Send enabled false, or change the plan.", error=LIMIT)
    over = sorted({size for sizes in config.regions.values() for size in sizes if not plan.has_size(size)})
    if over:
        raise Forbidden(f"The {plan.name} plan has no pools of {', '.join(over)}.", error=LIMIT)


class PlanBook:
    """The plans of a file, as it is now. While it is broken, what it said before holds."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._plans: dict[str, Plan] = {}

    def names(self) -> list[str]:
        self._look()
        return list(self._plans)

    def get(self, name: str) -> Plan:
        """The plan of that name. Asked at every start: without a change it costs one `stat`."""
        self._look()
        plan = self._plans.get(name)
        if plan is None and not self._plans:
            raise Unavailable("The plans of this fleet cannot be read; its operator finds why in the logs.")
        if plan is None:
            raise Forbidden(f"This fleet has no plan '{name}' any more. Its operator must give another.", error=LIMIT)
        return plan

    def _look(self) -> None:
        try:
            found = self._path.stat()
            seen = (found.st_mtime_ns, found.st_size, found.st_ino)
        except OSError:
            seen = (0, 0, 0)
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._plans = read_plans(self._path)
        except (OSError, ValueError, yaml.YAMLError) as error:  # ValidationError is a ValueError
            log.error("plans_unreadable", file=str(self._path), kept=list(self._plans), error=str(error))


def read_plans(path: Path) -> dict[str, Plan]:
    """ValueError, YAMLError or OSError says what is wrong."""
    content: Any = yaml.safe_load(path.read_text())
    try:
        limits_of = dict[Any, Any](content["plans"])
    except (TypeError, KeyError, ValueError):
        limits_of = {}
    if not limits_of:
        raise ValueError("there are no plans in it")
    found: dict[str, Plan] = {}
    for name, limits in limits_of.items():
        try:
            found[str(name)] = Plan.model_validate({**(limits or {}), "name": str(name)})
        except (ValidationError, TypeError) as error:
            raise ValueError(f"plan '{name}': {error}") from error
    return found


@lru_cache(maxsize=4)
def plan_book(path: Path | None = None) -> PlanBook:
    """One per process and file."""
    return PlanBook(path or PLANS_FILE)
