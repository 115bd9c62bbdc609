"""What a replica needs to serve requests, made once when it starts."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from sqlmodel import literal, select

from fleet.actors.tasks import SupervisedTasks
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
from fleet.limits.shares import Shares, open_shares
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
from fleet.projects.secrets import SecretService
from fleet.projects.service import ProjectService
from fleet.sealing import Sealer, Variables
from fleet.servers.service import Regions, ServerService
from fleet.settings import FleetSettings
from fleet.store.engine import Store
from fleet.store.tables import Project
from serve_app.player_streams import PlayerStreams
from serve_app.stream_query import Tickets

RECOVER_EVERY_S = 20.0
HOUSE_EVERY_S = 60.0
HOUSE_LIMIT_S = 60.0  # one pass of a part of the housekeeping
CHECK_S = 10.0


@dataclass(slots=True)
class AppContext:
    """The services behind the API."""

    settings: FleetSettings
    store: Store
    catalog: Catalog
    projects: ProjectService
    secrets: SecretService
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
    shares: Shares
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
        shares: Shares | None = None,
    ) -> "AppContext":
        keepers = keepers or NoKeepers()
        plans = plan_book(settings.plans_config)
        servers = ServerService(store, regions, builds, catalog, settings.servers, plans, Variables(settings.home))
        projects = ProjectService(store, settings.home)
        pools = PoolService(projects, regions, catalog, settings.servers, plans, settings.webhooks.networks)
        usage = UsageService(store, price_book(settings.prices_config))
        ending = ProjectEnding(store, regions, settings.exports)

        async def told(project: Project) -> None:
            await regions.pools_changed(sorted(pooled_regions(project.settings)), project.id)

        return cls(
            settings=settings,
            store=store,
            catalog=catalog,
            projects=projects,
            secrets=SecretService(store, settings.home, projects, told),
            builds=builds,
            servers=servers,
            regions=regions,
            pools=pools,
            tail=Tail(store, queue=settings.events.queue),
            idempotency=IdempotencyService(store, Sealer(settings.home, "idempotency").cipher()),
            players=PlayerService(Sealer(settings.home, "auth"), guarded_socket(settings.webhooks.networks)),
            player_streams=PlayerStreams(),
            tickets=Tickets(settings.home),
            webhooks=WebhookService(store, Sealer(settings.home, "webhook"), settings.webhooks),
            dispatcher=Dispatcher(store, Sealer(settings.home, "webhook"), settings.webhooks),
            usage=usage,
            budgets=BudgetService(store, usage),
            plans=plans,
            ending=ending,
            admin=AdminService(store, projects, plans, ending, told),
            admin_keys=AdminKeys(settings.home),
            shares=shares or open_shares(settings),
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
        """Raises if the database cannot be read within `CHECK_S`."""
        async with asyncio.timeout(CHECK_S), self.store.read() as session:
            (await session.exec(select(literal(1)))).one()

    def keep_house(self, tasks: SupervisedTasks) -> None:
        """What every replica looks after, until `tasks` are closed. Each part fails and goes on by itself."""

        def look_after(name: str, work: Callable[[], Awaitable[object]], every_s: float) -> None:
            tasks.every(name, work, every_s, limit_s=HOUSE_LIMIT_S, at_once=True)

        # Regions and shards whose actor is gone have one again without anybody sending a command.
        look_after("recover_regions", self.regions.recover, RECOVER_EVERY_S)
        look_after("recover_keepers", self.keepers.recover, RECOVER_EVERY_S)
        look_after("recover_builds", self.builds.recover, RECOVER_EVERY_S)
        look_after("expire_uploads", self.builds.expire_uploads, HOUSE_EVERY_S)
        look_after("expire_idempotency", self.idempotency.expire, HOUSE_EVERY_S)
        look_after("end_projects", self._look_at_endings, HOUSE_EVERY_S)

    async def _look_at_endings(self) -> None:
        self.ending.poke()
