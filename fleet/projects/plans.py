"""What a project's plan allows: `configs/plans.yaml`, read again when it changes. The one place where it is enforced.

The checks are pure. They are asked at a start, a claim, a restart and a change of settings, so a change of plan applies
to what comes next and touches nothing that runs.
"""

from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fleet.catalog import CONFIGS, ComputeSize
from fleet.config_files import BadConfig, ConfigFile, Invalid, KnownDefinitions, kept_file, section, validated
from fleet.errors import Conflict, Forbidden, Unavailable
from fleet.limits.names import ShareName
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
    storage_mb: int | None = Field(default=None, ge=0, description="of builds: archives, unpacked bundles, images")
    reads_per_s: int | None = Field(
        default=None, ge=0, description="of one key; none: as the settings say; 0: no limit"
    )
    writes_per_s: int | None = Field(default=None, ge=0)
    lobby_reads_per_s: int | None = Field(default=None, ge=0, description="of all players of a key together")
    lobby_writes_per_s: int | None = Field(default=None, ge=0)
    shares: dict[ShareName, Annotated[int, Field(ge=1)]] = Field(
        default_factory=dict[ShareName, int], description="how much at once, in place of FLEET_SHARES__…"
    )

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


def check_storage(plan: Plan, used: int, more: int) -> None:
    """Whether a project's builds, which have so many bytes, may have so many more. One more build needs some room."""
    if plan.storage_mb is None or used + max(more, 1) <= plan.storage_mb << 20:
        return
    needed = f" and this one needs {_mb(more)}" if more else ""
    raise Forbidden(
        f"The {plan.name} plan is limited to {plan.storage_mb} MB of builds. Your builds have {_mb(used)}{needed}. "
        "Delete builds that you do not need, or change the plan.",
        error=LIMIT,
    )


def _mb(size: int) -> str:
    return f"{size / 2**20:.1f} MB"


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
    """The plans of a file, as it is now. While it is broken, what it said before holds. A plan that was taken out of it
    goes on as it last was for the projects that have it, and can be given to none."""

    def __init__(self, path: Path, kept: Path | None = None, known: Path | None = None) -> None:
        self._file = ConfigFile(path, plans_of, kept)
        self._known = KnownDefinitions(known)
        self._version = 0
        self._plans: dict[str, Plan] = {}
        self._gone: dict[str, Plan] = {}
        self._named: set[str] = set()

    def names(self) -> list[str]:
        """Of the plans that may be given to a project."""
        self._look()
        return list(self._plans)

    def every(self) -> list[Plan]:
        """Also those that no project can be given any more."""
        self._look()
        return [*self._plans.values(), *self._gone.values()]

    def get(self, name: str) -> Plan:
        """The plan of that name. Asked at every start: without a change it costs one `stat`."""
        self._look()
        plan = self._plans.get(name)
        if plan is not None:
            return plan
        plan = self._gone.get(name)
        if plan is None:
            raise Forbidden(f"This fleet has no plan '{name}' any more. Its operator must give another.", error=LIMIT)
        if name not in self._named:
            self._named.add(name)
            log.warning("plan_removed_in_use", plan=name, file=str(self._file.path))
        return plan

    def _look(self) -> None:
        try:
            plans = self._file.now()
        except BadConfig:
            raise Unavailable("The plans of this fleet cannot be read; its operator finds why in the logs.") from None
        if self._version == self._file.version and self._plans:
            return
        self._version, self._plans = self._file.version, plans
        known = self._known.remember({name: _definition(plan) for name, plan in plans.items()})
        self._gone = _readable({name: one for name, one in known.items() if name not in plans})
        self._named.clear()


def _definition(plan: Plan) -> dict[str, Any]:
    """As JSON; the same text in every process."""
    return plan.model_dump(exclude={"sizes"}) | {"sizes": None if plan.sizes is None else sorted(plan.sizes)}


def _readable(definitions: dict[str, Any]) -> dict[str, Plan]:
    """Those that this version of the fleet understands."""
    found: dict[str, Plan] = {}
    for name, one in definitions.items():
        try:
            found[name] = Plan.model_validate(one)
        except ValidationError as error:
            log.warning("plan_definition_unreadable", plan=name, error=str(error))
    return found


def plans_of(content: Any) -> dict[str, Plan]:
    """The plans of a file's content; `Invalid` tells what is wrong, and where."""
    return {name: _plan_of(name, limits) for name, limits in section(content, "plans").items()}


def _plan_of(name: str, limits: Any) -> Plan:
    if limits is not None and not isinstance(limits, dict):
        raise Invalid(f"plan '{name}' must hold limits, or nothing", "plans", name)
    return validated(Plan.model_validate, {**(limits or {}), "name": name}, "plans", name)


@lru_cache(maxsize=4)
def plan_book(path: Path | None = None) -> PlanBook:
    """One per process and file."""
    return PlanBook(path or PLANS_FILE, kept_file("plans.yaml"), kept_file("plans.json"))
