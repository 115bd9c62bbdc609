"""What customers do meanwhile: several projects start, claim, change, restart and stop servers, change their pools, and
their players meet in lobbies and play matches. Each client remembers what it was told, for the invariants."""

import asyncio
import random
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fleet.builds.service import BuildService
from fleet.catalog import load_catalog
from fleet.errors import FleetError
from fleet.lobbies.calls import Command
from fleet.lobbies.client import KeeperClient
from fleet.lobbies.model import NewLobby
from fleet.operation import operation
from fleet.projects.model import Principal
from fleet.projects.plans import plan_book
from fleet.region.client import RegionClient
from fleet.sealing import Variables
from fleet.servers.model import RestartRequest, StartRequest
from fleet.servers.service import ServerService
from fleet.store.engine import Store
from fleet.store.tables import Build, Project
from fleet.times import now_ms
from tests.simulation.engine import GAMES

if TYPE_CHECKING:
    from tests.simulation.world import World

PROJECTS = ("ants", "bees", "cats")
CONFIG = "duels"
_DUEL = {"teams": 2, "playersPerTeam": 1}
SMALL_MB = 1024
CANARY_S = 120.0  # by then a new server runs, in a region that has been left alone


def _settings(pool: int) -> dict[str, Any]:
    lobby = {
        "name": CONFIG,
        "maxPlayers": 4,
        "timeout": 60,
        "serverSettings": {"serverSize": "small", "gameBuild": "good", "ttl": 600},
        "matchmaking": {
            "modes": {
                "duel": _DUEL,
                "asked": {**_DUEL, "matchConfirmation": {"enabled": True, "timeout": 10}},
                "short": {**_DUEL, "timeout": 20},
            }
        },
    }
    size = {"count": pool, "max": pool + 2, "build": "good"}
    pools = {"enabled": True, "policy": {"mode": "fixed"}, "regions": {"us-east": {"small": size}}} if pool else None
    return {"lobby_configs": [lobby], **({"pool_config": pools} if pools else {})}


class Workload:
    """`started`: ids of servers whose start was acknowledged. `claims`: server -> who got it. `stopped`, `data`: what
    was acknowledged last of each."""

    def __init__(self, world: "World", chance: random.Random) -> None:
        self._world, self._chance = world, chance
        self.started: set[str] = set()
        self.claims: dict[str, str] = {}
        self.stopped: set[str] = set()
        self.data: dict[str, list[Any]] = {}  # the last acknowledged value, and those that were never answered
        self.pools = {"ants": 2, "bees": 1, "cats": 0}
        self.games = dict.fromkeys(GAMES, 1)  # what is started, by shares
        self.done = {"ok": 0, "refused": 0}

    # Before anything goes wrong -------------------------------------------------------------------------------------

    async def prepare(self) -> None:
        self._store = store = Store(self._world.settings.database)
        now = now_ms()
        async with store.write() as session:
            for name in PROJECTS:
                session.add(
                    Project(id=name, name=name, settings=_settings(self.pools[name]), created_at=now, updated_at=now)
                )
            await session.flush()
            for name in PROJECTS:
                for game in GAMES:
                    session.add(
                        Build(
                            build_id=f"{name}-{game}",
                            project_id=name,
                            name=game,
                            version=1,
                            status="ready",
                            build_type="docker_image",
                            image_url="game:1",
                            created_at=now,
                        )
                    )
        settings = self._world.settings
        self.regions = RegionClient(store)
        plans = plan_book(settings.plans_config)
        self.servers = ServerService(
            store,
            self.regions,
            BuildService(store, settings),
            load_catalog(),
            settings.servers,
            plans,
            Variables(settings.home),
        )
        self.keepers = KeeperClient(store, settings.lobbies.shards)

    async def recover(self) -> None:
        """An API replica looks after the writers: once at its start, and whenever this version of it does."""
        for client in (self.regions, self.keepers):
            try:
                await client.recover()
            except Exception as error:
                self._world.note(f"recovery: {error!r}")

    # The span of commands -------------------------------------------------------------------------------------------

    async def run(self, span_s: float) -> None:
        clients = [self._client(name, number, span_s) for name in PROJECTS for number in range(2)]
        players = [self._player(PROJECTS[number % 2], f"p{number}", span_s) for number in range(5)]
        await asyncio.gather(*clients, *players, self._owner(span_s))

    def _caller(self, project: str) -> Principal:
        settings = _settings(self.pools[project])
        return Principal(project, "server", "pro", float("inf"), settings)

    async def _attempt(self, what: str, work: Any) -> Any:
        """The answer; None if it was refused or got lost."""
        try:
            async with asyncio.timeout(65):
                result = await work
        except FleetError as error:
            self.done["refused"] += 1
            self._world.note(f"  {what}: {error.status} {error.detail[:90]}")
        except (TimeoutError, Exception) as error:
            self.done["refused"] += 1
            self._world.note(f"  {what}: {error!r:.120}")
        else:
            self.done["ok"] += 1
            return result
        return None

    def _left(self, until_s: float) -> bool:
        return self._world.clock.now < until_s

    async def _client(self, project: str, number: int, span_s: float) -> None:
        chance = random.Random(f"{self._chance.random()}/{project}/{number}")
        mine: list[str] = []
        while self._left(span_s):
            await asyncio.sleep(chance.expovariate(1 / 12.0))
            what = chance.choices(("start", "stop", "restart", "update", "claim"), (5, 4, 1, 2, 2))[0]
            if what in ("start", "claim") and len(mine) < 4:
                if (name := await self._start(chance, project, claim=what == "claim")) is not None:
                    mine.append(name)
            elif mine and what == "stop":
                name = mine.pop(chance.randrange(len(mine)))
                await self._stop(name)
            elif mine and what == "restart":
                await self._attempt(
                    "restart", self.servers.restart(self._caller(project), chance.choice(mine), RestartRequest())
                )
            elif mine and what == "update":
                await self._update(project, chance.choice(mine), chance.randrange(10**6))

    async def _start(self, chance: random.Random, project: str, *, claim: bool) -> str | None:
        game = "good" if claim else chance.choices(list(self.games), list(self.games.values()))[0]
        region = "us-east" if claim or chance.random() < 0.6 else "eu-west"
        request = StartRequest(
            name="s",
            region=region,
            compute_size=chance.choice(("small", "small", "medium")) if not claim else "small",
            version_tag=game,
            ttl=chance.choice((None, 60, 200)),
            auto_restart=chance.random() < 0.4,
            custom_data={"n": 0},
        )
        op = str(uuid.UUID(int=chance.getrandbits(128)))
        call = self.servers.claim if claim else self.servers.start
        with operation(op):
            row = await self._attempt(f"{'claim' if claim else 'start'} {game}", call(self._caller(project), request))
        if row is None:
            return None
        self.started.add(row.instance_id)
        self.data[row.instance_id] = [{"n": 0}]
        if row.instance_id in self.claims:
            self._world.invariants.broke(f"server {row.instance_id} was given to two starts")
        self.claims[row.instance_id] = op
        return row.instance_id

    async def _stop(self, name: str) -> None:
        region = await self._world.invariants.region_of(name)
        row = await self._attempt(f"stop {name[:8]}", self.regions.stop(region, name, "requested", None))
        if row is not None:
            self.stopped.add(name)

    async def _update(self, project: str, name: str, number: int) -> None:
        value = {"n": number}
        self.data[name].append(value)
        if await self._attempt("update", self.servers.update(self._caller(project), name, value)) is not None:
            unanswered = self.data[name][1:]
            unanswered.remove(value)
            self.data[name] = [value, *unanswered]

    async def _owner(self, span_s: float) -> None:
        """Changes the pools now and then."""
        chance = random.Random(self._chance.random())
        while self._left(span_s):
            await asyncio.sleep(chance.uniform(40, 120))
            project, pool = chance.choice(PROJECTS), chance.choice((0, 1, 2, 3))
            if await self._attempt("pools", self._set_pool(project, pool)) is not None:
                await self._attempt("told", self.regions.pools_changed(["us-east"], project))

    async def _set_pool(self, project: str, pool: int) -> bool:
        self.pools[project] = pool
        async with self._store.write() as session:
            row = await session.get(Project, project)
            assert row is not None
            row.settings, row.updated_at = _settings(pool), max(now_ms(), row.updated_at + 1)
        return True

    # Players --------------------------------------------------------------------------------------------------------

    async def _player(self, project: str, name: str, span_s: float) -> None:
        chance = random.Random(f"{self._chance.random()}/{name}")

        async def do(method: str, *arguments: Any) -> Any:
            return await self._attempt(
                f"{name} {method}", self.keepers.command(Command(method, project, CONFIG, name, arguments))
            )

        while self._left(span_s):
            await asyncio.sleep(chance.uniform(2, 20))
            lobby_id = str(uuid.UUID(int=chance.getrandbits(128)))
            new = NewLobby(name="ours", max_players=2, region="us-east")
            lobby = await do("create", new, lobby_id) or await do("mine")
            if lobby is None:
                continue
            await do("start_matchmaking", chance.choice(("duel", "duel", "asked", "short")))
            for _ in range(chance.randrange(2, 12)):
                await asyncio.sleep(chance.uniform(2, 10))
                lobby = await do("mine")
                if lobby is None or not self._left(span_s):
                    break
                if lobby.status == "match_found":
                    await do(chance.choice(("confirm", "confirm", "confirm", "decline")))
                elif lobby.status == "in_game" and chance.random() < 0.2:
                    await do("end_match", None)
            if chance.random() < 0.8:
                await do("leave")

    # Afterwards -----------------------------------------------------------------------------------------------------

    def _has_room(self, region: str) -> bool:
        """For one small server: customers may have filled the region."""
        machines = self._world.cloud.of(region)
        left = [one.share.memory_mb - sum(run.memory_mb for run in one.engine.running()) for one in machines]
        return len(machines) < self._world.cloud.most or max(left) >= SMALL_MB

    async def canary(self, broke: Callable[[str], None]) -> None:
        """A new start in every region runs soon, so nothing swallows starts."""
        for region in ("us-east", "eu-west"):
            request = StartRequest(name="canary", region=region, version_tag="good", startup_args="--cold")
            began = self._world.clock.now
            row = await self._attempt(f"canary {region}", self.servers.start(self._caller("cats"), request))
            if row is None:
                if self._has_room(region):
                    broke(f"a start in {region} is refused although nothing is wrong any more")
                continue
            while self._world.clock.now - began < CANARY_S:
                found = await self.servers.get(self._caller("cats"), row.instance_id)
                if found.status != "launching":
                    break
                await asyncio.sleep(1.0)
            if found.status != "running":
                broke(f"a start in {region} is {found.status}/{found.step} {found.stop_reason} after {CANARY_S:.0f} s")
