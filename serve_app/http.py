"""The FastAPI app over the fleet's services; knows nothing of what serves it."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from fastapi import APIRouter, FastAPI

from fleet.actors.health import process_health
from fleet.actors.tasks import SupervisedTasks
from fleet.limits.limiter import Limiter, open_limiter
from fleet.proxy_secret import read_secret
from fleet.telemetry.metrics import HttpMetrics
from fleet.telemetry.scrape import Actors, Scrape
from serve_app import metrics as metrics_routes
from serve_app import play, reference
from serve_app.admin import routes as admin
from serve_app.context import AppContext
from serve_app.edge import Edge
from serve_app.errors import install_error_handlers
from serve_app.jobs import start_jobs
from serve_app.limits import Gatekeeper
from serve_app.metrics import Targets
from serve_app.read_cache import ReadCache
from serve_app.trusted_proxy import TrustedProxy
from serve_app.v2 import document as v2_document
from serve_app.v2.face import LegacyFace
from serve_app.v3 import (
    budget,
    builds,
    events,
    health,
    lobbies,
    lobby_events,
    projects,
    secrets,
    servers,
    uploads,
    usage,
    webhooks,
)
from serve_app.v3.common import operation_id

# Made once: FastAPI prepares the routes of an included router at their first use, which takes a tenth of a second.
_api = APIRouter(generate_unique_id_function=operation_id)
for _router in (
    health.router,
    metrics_routes.router,
    servers.router,
    projects.router,
    builds.router,
    events.router,
    usage.router,
    budget.router,
    secrets.router,
    webhooks.router,
    lobby_events.router,
    lobbies.router,
    uploads.router,
    admin.router,
    reference.router,
    play.router,
):
    _api.include_router(_router)
_api.include_router(v2_document.all_routes, include_in_schema=False)


_VERSION = "3.0.0"
TELL_S = 10.0  # how often a replica tells the metrics which of its background tasks fail without end


def document() -> dict[str, Any]:
    """The OpenAPI document of all routes, without services behind them."""
    app = FastAPI(routes=_api.routes, version=_VERSION, separate_input_output_schemas=False)
    reference.describe(app)
    return app.openapi()


def create_app(
    context: AppContext,
    *,
    metrics: HttpMetrics | None = None,
    managers: Actors | None = None,
    keepers: Actors | None = None,
    ray_targets: Targets = list,
    limiter: Limiter | None = None,
    echo_request_id: bool = True,
) -> FastAPI:
    """The ASGI app over the services of `context`, which it closes when it ends.

    `managers`, `keepers` and `ray_targets` are what `/metrics` tells besides requests and the database.
    """
    app = FastAPI(
        routes=_api.routes,
        version=_VERSION,
        openapi_url="/api/doc",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=_lifespan,
        separate_input_output_schemas=False,
    )
    reference.describe(app)
    app.state.context = context
    metrics = metrics or HttpMetrics()
    home = context.settings.home
    app.state.metrics = metrics
    app.state.scrape = Scrape(metrics, context.store, context.catalog, home, managers=managers, keepers=keepers)
    app.state.ray_targets = ray_targets
    cache = ReadCache(context.store.data_version)
    gatekeeper = Gatekeeper(limiter or open_limiter(context.settings), context.projects, context.admin_keys)
    app.add_middleware(
        Edge,
        cache=cache,
        metrics=metrics,
        gatekeeper=gatekeeper,
        idempotency=context.idempotency,
        players=context.players,
        tickets=context.tickets,
        proxy=TrustedProxy(read_secret(home)),
        echo_id=echo_request_id,
    )
    install_error_handlers(app)
    app.add_middleware(LegacyFace)  # the last one added is outermost
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncGenerator[None]:
    context: AppContext = app.state.context
    metrics: HttpMetrics = app.state.metrics
    tasks = SupervisedTasks("api")
    process_health.on_failure = metrics.background_failed
    context.keep_house(tasks)
    start_jobs(context, tasks)
    tasks.every("tell_failing", partial(_tell_failing, metrics), TELL_S, limit_s=TELL_S)
    try:
        yield
    finally:
        process_health.on_failure = lambda _label: None
        await tasks.close()
        await context.close()


async def _tell_failing(metrics: HttpMetrics) -> None:
    await asyncio.to_thread(metrics.tell_failing, [one.task for one in process_health.failing()])
