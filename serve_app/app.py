"""The Ray Serve application of configs/serve.yaml: `import_path: serve_app.app:app`."""

from fastapi import FastAPI
from ray import serve

from fleet.builds.service import BuildService
from fleet.catalog import load_catalog
from fleet.limits.door import windows_of_this_node
from fleet.limits.limiter import open_limiter
from fleet.limits.shares import open_shares
from fleet.limits.windows import counts_folder
from fleet.lobbies.client import KeeperClient
from fleet.lobbies.names import keeper_name
from fleet.region.client import RegionClient
from fleet.region.names import HEAD, manager_name
from fleet.region.scrape import ActorScrape, ray_targets
from fleet.settings import FleetSettings, get_settings
from fleet.store.engine import Store
from fleet.telemetry.logs import setup_logging
from fleet.telemetry.metrics import HttpMetrics
from serve_app.context import AppContext
from serve_app.health import ReplicaHealth
from serve_app.http import create_app
from serve_app.replica_port import keep_off_other_interfaces

MAX_ONGOING = 4000  # a project has about 2,000 streams and waits at once at most (docs/limits.md)


def open_context(settings: FleetSettings) -> AppContext:
    """The services of a real replica: the database of the settings, the region managers of this Ray cluster."""
    store = Store(settings.database)
    keepers = KeeperClient(store, settings.lobbies.shards)
    builds, shares = BuildService(store, settings), open_shares(settings, counts_folder(settings.home))
    return AppContext.make(settings, store, load_catalog(), builds, RegionClient(store), keepers, shares)


@serve.deployment(
    name="api",
    num_replicas=get_settings().replicas,
    max_ongoing_requests=MAX_ONGOING,
    health_check_period_s=5,
    health_check_timeout_s=15,
    graceful_shutdown_timeout_s=5,
    # On the head: uploads are received there, and SQLite is there.
    ray_actor_options={"num_cpus": 0, "resources": {HEAD: 0.001}},
    # Requests are logged by `Edge`, with ids and routes; Serve's own access log costs a tenth of the throughput.
    logging_config={"enable_access_log": False},
)
@serve.ingress()  # pyright: ignore[reportUntypedClassDecorator]
class Api:
    """One replica. Stateless: whatever it keeps can be thrown away at any time."""

    def __init__(self) -> None:
        keep_off_other_interfaces()
        self._context: AppContext | None = None
        self._health = ReplicaHealth()

    async def __serve_build_asgi_app__(self) -> FastAPI:
        settings = get_settings()
        setup_logging("api", settings.home)
        self._context = open_context(settings)
        # Serve puts x-request-id on the answer itself.
        return create_app(
            self._context,
            metrics=HttpMetrics(settings.home / "metrics"),
            managers=ActorScrape({region: manager_name(region) for region in load_catalog().regions}),
            keepers=ActorScrape({str(shard): keeper_name(shard) for shard in range(settings.lobbies.shards)}),
            ray_targets=ray_targets,
            limiter=open_limiter(settings, windows_of_this_node(settings), counts_folder(settings.home)),
            echo_request_id=False,
        )

    async def check_health(self) -> None:
        """Called by Serve; a replica that a new one would be better than is replaced (`serve_app/health.py`)."""
        if self._context is not None:
            await self._health.check(self._context)


app = Api.bind()
