"""A start on its way: what was asked for, as it has been checked."""

from dataclasses import dataclass, field
from typing import Any, cast

from fleet.catalog import ComputeSize
from fleet.pools.claim import ClaimCall
from fleet.pools.spec import pool_spec
from fleet.projects.model import PortConfig
from fleet.servers.model import StartRequest
from fleet.store.tables import Build, Server
from fleet.times import now_ms


@dataclass(frozen=True, slots=True)
class Wanted:
    """A start that has been checked. It becomes a claim of a warm server first where there may be one, which is why
    the row is made only when it is needed."""

    instance_id: str
    project_id: str
    region: str
    size: ComputeSize
    build: Build
    request: StartRequest
    environment: dict[str, str] = field(repr=False)
    ports: list[PortConfig]
    ttl: int | None
    once: bool = False  # the project's match may have one server only
    stored: str | None = field(default=None, repr=False)  # the environment, sealed
    secrets_at: int = 0  # when the project's secrets changed last
    repeatable: bool = False  # this very start may be sent again by another replica

    @property
    def auto_restart(self) -> bool:
        return self.request.auto_restart or self.size.persistent

    def claim(self) -> ClaimCall:
        """The claim of a warm server that is what the row would become."""
        return ClaimCall(
            op_id=self.instance_id,
            project_id=self.project_id,
            compute_size=self.size.name,
            build_name=self.build.name,
            spec=pool_spec(
                self.project_id, self.size.name, self.build.build_id, self.environment, self.ports, self.secrets_at
            ),
            name=self.request.name,
            custom_data=self.request.custom_data,
            match_id=self.request.match_id,
            ttl=self.ttl,
            auto_restart=self.auto_restart,
            once=self.once or self.repeatable,
        )

    def row(self) -> Server:
        """The server as it begins."""
        now = now_ms()
        return Server(
            instance_id=self.instance_id,
            project_id=self.project_id,
            region=self.region,
            name=self.request.name,
            status="launching",
            step="queued",
            compute_size=self.size.name,
            build_id=self.build.build_id,
            version_tag=self.build.name,
            version=self.build.version,
            startup_args=self.request.startup_args,
            auto_restart=self.auto_restart,
            ttl=self.ttl,
            custom_data=self.request.custom_data,
            match_id=self.request.match_id,
            environment=self.stored,
            port_configs=cast("list[dict[str, Any]]", self.ports),
            created_at=now,
            updated_at=now,
            launched_at=now,
            step_at=now,
        )
