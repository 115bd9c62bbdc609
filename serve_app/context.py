"""What a replica needs to serve requests, made once when it starts."""

import asyncio
from dataclasses import dataclass

import structlog
from sqlmodel import literal, select

from fleet.billing.budgets import BudgetService
from fleet.billing.prices import price_book
from fleet.billing.service import UsageService
from fleet.builds.service import BuildService
from fleet.catalog import Catalog
from fleet.events.dispatch import Dispatcher
from fleet.events.tail import Tail
from fleet.events.targets import guarded_socket
from fleet.events.webhooks import WebhookService
from fleet.idempotency.service import IdempotencyService
from fleet.lobbies.lobbies import Keepers, Lobbies, NoKeepers
from fleet.lobbies.service import LobbyFeed, LobbyService
from fleet.lobbies.watch import Watch
from fleet.players.service import PlayerService
from fleet.pools.config import pooled_regions
from fleet.pools.service import PoolService
from fleet.projects.admin_keys import AdminKeys
from fleet.projects.admin_service import AdminService
from fleet.projects.ending import ProjectEnding
from fleet.projects.plans import PlanBook, plan_book
from fleet.projects.service import ProjectService
from fleet.sealing import Sealer
from fleet.servers.service import Regions, ServerService
from fleet.settings import FleetSettings
from fleet.store.engine import Store
from fleet.store.tables import Project
from serve_app.player_streams import PlayerStreams
from serve_app.stream_query import Tickets

log = structlog.get_logger(__name__)
HOUSEKEEPING_S = 60.0


@dataclass(slots=True)
class AppContext:
    """The services behind the API."""

    settings: FleetSettings
    store: Store
    catalog: Catalog
    projects: ProjectService
    builds: BuildService
    servers: ServerService
    regions: Regions
    pools: PoolService
    tail: Tail
    idempotency: IdempotencyService
    plans: PlanBook
    ending: ProjectEnding
    admin: AdminService
    admin_keys: AdminKeys
    usage: UsageService
    budgets: BudgetService
    players: PlayerService
    player_streams: PlayerStreams
    tickets: Tickets
    webhooks: WebhookService
    dispatcher: Dispatcher
    keepers: Keepers
    lobbies: LobbyService
    lobby_feed: LobbyFeed

    @classmethod
    def make(
        cls,
        settings: FleetSettings,
        store: Store,
        catalog: Catalog,
        builds: BuildService,
        regions: Regions,
        keepers: Keepers | None = None,
    ) -> "AppContext":
        keepers = keepers or NoKeepers()
        plans = plan_book(settings.plans_config)
        servers = ServerService(store, regions, builds, catalog, settings.servers, plans)
        projects = ProjectService(store, Sealer(settings.home, "auth"))
        pools = PoolService(projects, regions, catalog, settings.servers, plans)
        usage = UsageService(store, price_book(settings.prices_config))
        ending = ProjectEnding(store, regions, settings.exports)

        async def told(project: Project) -> None:
            await regions.pools_changed(sorted(pooled_regions(project.settings)), project.id)

        return cls(
            settings=settings,
            store=store,
            catalog=catalog,
            projects=projects,
            builds=builds,
            servers=servers,
            regions=regions,
            pools=pools,
            tail=Tail(store, queue=settings.events.queue, max_streams=settings.events.max_streams),
            idempotency=IdempotencyService(store, Sealer(settings.home, "idempotency").cipher()),
            players=PlayerService(Sealer(settings.home, "auth"), guarded_socket(settings.webhooks.networks)),
            player_streams=PlayerStreams(settings.events.max_player_streams),
            tickets=Tickets(settings.home),
            webhooks=WebhookService(store, Sealer(settings.home, "webhook"), settings.webhooks),
            dispatcher=Dispatcher(store, Sealer(settings.home, "webhook"), settings.webhooks),
            usage=usage,
            budgets=BudgetService(store, usage),
            plans=plans,
            ending=ending,
            admin=AdminService(store, projects, plans, ending, told),
            admin_keys=AdminKeys(settings.home),
            keepers=keepers,
            lobbies=Lobbies(store, keepers),
            lobby_feed=Watch(keepers.command, keepers.poll, keepers.shard_of),
        )

    async def close(self) -> None:
        """What asks and reads first, then the database."""
        await self.lobby_feed.close()
        await self.players.close()
        await self.tail.close()
        await self.ending.close()
        await self.store.close()

    async def check(self) -> None:
        """Raises if the database cannot be read."""
        async with self.store.read() as session:
            (await session.exec(select(literal(1)))).one()

    async def keep_house(self) -> None:
        """Recover what a crash left behind, then look after expired uploads every minute, until cancelled."""
        first = True
        while True:
            try:
                if first:
                    await self.regions.recover()
                    await self.keepers.recover()
                await self.builds.recover()
                await self.builds.expire_uploads()
                await self.idempotency.expire()
                self.ending.poke()
                first = False
            except Exception:
                # The next round tries again; the replica serves reads meanwhile.
                log.exception("housekeeping_failed")
            await asyncio.sleep(HOUSEKEEPING_S)
