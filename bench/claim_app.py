"""The fleet's API with another counter for warm servers, beside the real one: `python -m bench.claim_app up|down N`.

`bench-none`: a warm server is made up in the replica, without any hop. `bench-empty`: likewise, after one call of an
actor's empty method. All else is the API's own code: auth, validation, the build's lookup, ids, metrics, answers. Needs
the environment of the fleet's head; `bench/claim.py` gives it.
"""

import logging
import sys
import uuid
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve

from fleet.builds.service import BuildService
from fleet.catalog import load_catalog
from fleet.pools.claim import ClaimCall
from fleet.projects.model import project_ports
from fleet.region.client import RegionClient
from fleet.settings import get_settings
from fleet.store.commit import row_values
from fleet.store.engine import Store
from fleet.store.tables import Server
from fleet.telemetry.logs import setup_logging
from fleet.telemetry.metrics import HttpMetrics
from fleet.times import now_ms
from serve_app.context import AppContext
from serve_app.http import create_app

KINDS = ("none", "empty")


@ray.remote(num_cpus=0)
class Nothing:
    async def nothing(self) -> None:
        return None


class MadeUp(RegionClient):
    """Claims that cost nothing but their way; `actor`: one call of its empty method for each."""

    def __init__(self, store: Store, actor: Any) -> None:
        super().__init__(store)
        self._actor = actor

    async def recover(self) -> None:
        """The real API does that."""

    async def claim(self, region: str, call: ClaimCall) -> Server | None:
        if self._actor is not None:
            await self._actor.nothing.remote()
        return Server(**warm_row(region, call))


PORTS: list[dict[str, Any]] = [dict(port) for port in project_ports({})]
TEMPLATE = row_values(
    Server(
        instance_id="", project_id="", region="", name="", status="running", step="running", compute_size="",
        build_id="bench", version_tag="", version=1, environment={}, port_configs=PORTS, start_kind="hot",
        is_pool_server=True, network_ports=[port | {"external_port": 20000, "host": "bench.invalid"} for port in PORTS],
        created_at=0, updated_at=0, launched_at=0, step_at=0,
    )
)  # fmt: skip


def warm_row(region: str, call: ClaimCall) -> dict[str, Any]:
    """As a manager's answer: every column, in plain values."""
    now = now_ms()
    times = dict.fromkeys(("pool_claimed_at", "created_at", "updated_at", "launched_at", "started_at", "step_at"), now)
    return TEMPLATE | times | {
        "instance_id": str(uuid.uuid4()), "project_id": call.project_id, "region": region, "name": call.name,
        "compute_size": call.compute_size, "version_tag": call.build_name, "custom_data": call.custom_data,
        "match_id": call.match_id,
    }  # fmt: skip


@serve.deployment(
    name="made-up",
    max_ongoing_requests=2000,
    ray_actor_options={"num_cpus": 0},
    logging_config={"enable_access_log": False},
)
@serve.ingress()
class MadeUpApi:
    def __init__(self, kind: str) -> None:
        self._kind = kind

    async def __serve_build_asgi_app__(self) -> FastAPI:
        settings = get_settings()
        setup_logging(f"bench-{self._kind}", settings.home)
        store = Store(settings.database)
        actor = None
        if self._kind == "empty":
            actor = Nothing.options(name="bench-nothing", get_if_exists=True).remote()
        regions = MadeUp(store, actor)
        context = AppContext.make(settings, store, load_catalog(), BuildService(store, settings), regions)
        return create_app(context, metrics=HttpMetrics(settings.home / "metrics"), echo_request_id=False)


def prefix(kind: str) -> str:
    return f"/bench-{kind}"


if __name__ == "__main__":
    ray.init(namespace="serve", log_to_driver=False, logging_level=logging.WARNING)
    for kind in KINDS:
        if sys.argv[1] == "up":
            app = MadeUpApi.options(num_replicas=int(sys.argv[2])).bind(kind)
            serve.run(app, name=f"bench-{kind}", route_prefix=prefix(kind))
        else:
            serve.delete(f"bench-{kind}")
