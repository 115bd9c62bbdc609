"""The region's pools inside its manager: claims, refills, upkeep, and what they learn.

Everything here changes the books in memory, without waiting; the manager commits afterwards and only then answers.
A claim takes an entry off the shelf, marks its row, and at once orders the replacement (one-for-one refill). The timer
asks the policy again, retires what is stale, too old or too much, and writes down each minute's demand.
"""

import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal, NamedTuple, Protocol

import structlog

from fleet.pools.claim import ClaimCall
from fleet.pools.config import PoolKey
from fleet.pools.lead import booted as lead_booted
from fleet.pools.lead import new_lead
from fleet.pools.plan import missing, upkeep
from fleet.pools.pool import MINUTE_MS, Pool, Product
from fleet.pools.season import Season
from fleet.pools.shelf import Entry, State
from fleet.pools.slots import Asks, share_slots, slot_ms
from fleet.pools.spec import pool_spec
from fleet.pools.stock import StockState, new_state
from fleet.region.books import Books
from fleet.region.claimed import mark_claimed
from fleet.region.metrics import BOOT_FAILURES
from fleet.region.pool_store import PoolStore, Wished, minute_statements, old_minutes, state_statements
from fleet.settings import PoolSettings
from fleet.store.commit import Statement
from fleet.store.tables import PoolMemory, Server
from fleet.times import now_ms

log = structlog.get_logger(__name__)

Health = Literal["warm", "ailing", "unsure"]

_REMEMBERED_CLAIMS = 100_000
_REMEMBER_MS = 10 * MINUTE_MS
_FAULTS = BOOT_FAILURES - {"node_lost"} | {"unhealthy"}  # ends that speak against the build
_YOUNG_MS = 60_000  # an idle game that ends sooner than this after it was ready did not want to wait for players


def _new_id() -> str:
    return str(uuid.uuid4())


class Given(NamedTuple):
    """`frozen`: it must be woken before anyone plays."""

    instance_id: str
    frozen: bool = False


class Hands(Protocol):
    """What the keeper needs done (the manager)."""

    def retire(self, server: Server, now: int, reason: str, detail: str) -> None: ...
    def freeze(self, server: Server, frozen: bool) -> None: ...


class PoolKeeper:
    """Single-threaded, like its manager. `enqueue` puts a new row among those that wait for a node."""

    def __init__(
        self,
        region: str,
        store: PoolStore,
        books: Books,
        settings: PoolSettings,
        hands: Hands,
        enqueue: Callable[[Server], None],
        new_id: Callable[[], str] = _new_id,
    ) -> None:
        self._region = region
        self._store = store
        self._books = books
        self._settings = settings
        self._hands = hands
        self._enqueue = enqueue
        self._new_id = new_id
        self._pools: dict[PoolKey, Pool] = {}
        self._where: dict[str, PoolKey] = {}  # unclaimed entries
        self.claims: OrderedDict[str, str] = OrderedDict()  # op id -> instance id, the newest
        self._learned: dict[PoolKey, dict[str, Any]] = {}
        self._minute_at = now_ms() // MINUTE_MS * MINUTE_MS
        self.closed = False  # the region is being emptied: nothing is ordered any more
        self._freed = False  # an entry has left `booting`, so another may boot

    async def load(self) -> None:
        """What earlier managers learned, recent claims, the wishes, and the entries among the live rows."""
        self._learned = await self._store.learned()
        self.claims.update(await self._store.recent_claims(now_ms()))
        await self._read(None)
        for server in list(self._books.live.values()):
            if server.is_pool_server:
                self.watch(server)
                if server.pool_claimed_at is not None and (pool := self._pools.get(key_of(server))):
                    pool.claimed += 1
        self._books.watch = self.watch
        self.plan(now_ms())  # not before all entries are known, or those that boot would be ordered again

    async def refresh(self, project_id: str | None = None) -> None:
        """Read the wishes (of one project) and the newest builds again, and plan."""
        await self._read(project_id)
        self.plan(now_ms(), all_of=project_id)

    async def _read(self, project_id: str | None) -> None:
        wished = await self._store.wished(project_id)
        for key in [k for k in self._pools if k not in wished and project_id in (None, k[0])]:
            self._pools[key].product = None  # the next upkeep retires its entries; the pool goes with the last
            self._pools[key].wish = self._pools[key].wish.model_copy(update={"floor": 0, "ceiling": 0})
        names = {(key[0], key[2]) for key in [*self._pools, *wished]}
        newest = await self._store.newest_builds(names)
        for key, one in wished.items():
            pool = self._pools.get(key) or self._open(key, one)
            pool.wish = one.wish
            pool.product = _product(one, newest.get((key[0], key[2])))

    def _open(self, key: PoolKey, one: Wished) -> Pool:
        learned = self._learned.get(key) or {}
        state = StockState.from_json(learned["stock"]) if "stock" in learned else new_state(now_ms() / 1000)
        lead = new_lead(learned.get("lead"))
        season = Season.from_json(learned.get("season") or {})
        pool = self._pools[key] = Pool(one.wish, state, lead, season)
        log.info("pool opened", region=self._region, pool=_name(key), floor=one.wish.floor, ceiling=one.wish.ceiling)
        return pool

    # Claims -----------------------------------------------------------------------------------------------------

    def claim(self, calls: Iterable[ClaimCall], now: int) -> list[Given | None]:
        """The server that each call has now; None where no warm one fits. One effect per op id."""
        given: list[Given | None] = []
        met: dict[PoolKey, list[bool]] = {}
        for call in calls:
            known = self.claims.get(call.op_id)
            key = (call.project_id, call.compute_size, call.build_name)
            if known is not None or key not in self._pools:
                given.append(Given(known) if known else None)
                continue
            found = self._take(self._pools[key], call, now)
            given.append(found)
            if call.spec == self._pools[key].spec:  # others could not have met a warm one, so they are no demand
                met.setdefault(key, []).append(found is not None)
        for key, hits in met.items():
            pool = self._pools[key]
            pool.came(now, sum(hits), len(hits) - sum(hits))
            pool.decide(now)
        if met:
            self._order(now)
        return given

    def _take(self, pool: Pool, call: ClaimCall, now: int) -> Given | None:
        while (entry := pool.shelf.claim(call.spec)) is not None:
            self._where.pop(entry.instance_id, None)
            server = self._books.live.get(entry.instance_id)
            if server is None or server.status != "running" or server.pool_claimed_at is not None:
                log.error("a shelf held what is not warm", server=entry.instance_id)
                continue
            mark_claimed(self._books, server, call, now)
            pool.claimed += 1
            self.claims[call.op_id] = server.instance_id
            while len(self.claims) > _REMEMBERED_CLAIMS:
                self.claims.popitem(last=False)
            return Given(server.instance_id, entry.frozen)
        return None

    def give_up(self, op_id: str) -> None:
        """What this call was given cannot be used: it may be given another."""
        self.claims.pop(op_id, None)

    # Entries ----------------------------------------------------------------------------------------------------

    def watch(self, server: Server, *, health: Health | None = None, frozen: bool | None = None) -> None:
        """A pool server's row (or what its node says of it) has changed: put it where it belongs.

        None: as it was.
        """
        key = key_of(server)
        known = self._where.get(server.instance_id)
        if server.pool_claimed_at is not None or server.status == "stopped":
            self._leave(server, known)
            return
        pool = self._pools.get(key)
        if pool is None:
            return  # nobody wishes this pool; `strays` tells
        old = pool.shelf.get(server.instance_id)
        entry = _entry(server, old, health, frozen)
        if old == entry:
            return
        self._where[server.instance_id] = key
        pool.shelf.put(entry)
        self._freed |= old is not None and old.state == "booting" != entry.state
        if entry.state == "warm" and (old is None or old.state == "booting") and server.started_at is not None:
            pool.booted()
            pool.lead = lead_booted(pool.lead, max(0.0, (server.started_at - server.created_at) / 1000))

    def doubt(self, node_id: str) -> None:
        """That node does not answer: what stands there is not given out until it does."""
        for name in list(self._where):
            server = self._books.live.get(name)
            if server is not None and server.node_id == node_id and server.status == "running":
                self.watch(server, health="unsure")

    def _leave(self, server: Server, key: PoolKey | None) -> None:
        """Off the shelf, if it was there. An end by a fault counts against the pool."""
        if key is None:
            pool = self._pools.get(key_of(server))
            if pool is not None and server.pool_claimed_at is not None and server.step == "stopped":
                pool.claimed = max(0, pool.claimed - 1)
            return
        self._where.pop(server.instance_id, None)
        pool = self._pools[key]
        pool.shelf.drop(server.instance_id)
        self._freed = True
        if server.pool_claimed_at is None and server.stop_reason in _FAULTS:
            now = now_ms()
            lived = now - (server.started_at or now)
            if server.started_at is None or lived < _YOUNG_MS:
                pool.failed(now, f"{server.stop_reason}: {server.stop_detail or ''}".strip(": "))
                log.warning(
                    "pool server did not live to be claimed",
                    region=self._region,
                    pool=_name(key),
                    reason=server.stop_reason,
                    failures=pool.failures,
                )

    # Refill and upkeep ------------------------------------------------------------------------------------------

    def plan(self, now: int, all_of: str | None = None, draining: Iterable[str] = ()) -> None:
        """Ask the policies, order, and look through the pools (of one project)."""
        nodes = frozenset(draining)
        mine = [(key, pool) for key, pool in self._pools.items() if all_of in (None, key[0])]
        for _, pool in mine:
            pool.decide(now)
        self._order(now)
        for key, pool in mine:
            self._keep_up(pool, now, nodes)
            if pool.wish.ceiling == 0 and not len(pool.shelf):
                del self._pools[key]

    def refill(self, now: int) -> None:
        """After entries have left `booting`: others may boot now."""
        if self._freed:
            self._freed = False
            self._order(now)

    def _order(self, now: int) -> None:
        """Order what is missing, as far as there are boot slots: fairly between projects, the emptiest pools first."""
        if self.closed:
            return
        pools = sorted(self._pools.items(), key=lambda item: _fullness(item[1]))
        asks = [Asks(key, key[0], _holding(pool, now), _wanted(pool, now)) for key, pool in pools]
        for key, number in share_slots(self._settings.refill_at_once, asks).items():
            if (product := self._pools[key].product) is None:
                continue
            for _ in range(number):
                server = self._new_entry(key, product, now)
                self._books.add(server, now)
                self._enqueue(server)

    def _new_entry(self, key: PoolKey, product: Product, now: int) -> Server:
        project_id, size, build_name = key
        name = self._new_id()
        return Server(
            instance_id=name,
            project_id=project_id,
            region=self._region,
            name=f"pool-{name[:8]}",
            status="launching",
            step="queued",
            compute_size=size,
            build_id=product.build_id,
            version_tag=build_name,
            version=product.version,
            environment=product.environment,
            port_configs=product.port_configs,
            is_pool_server=True,
            pool_spec=product.spec,
            created_at=now,
            updated_at=now,
            launched_at=now,
            step_at=now,
        )

    def _keep_up(self, pool: Pool, now: int, draining: frozenset[str]) -> None:
        wish = pool.wish
        max_age = wish.policy.max_age_seconds * 1000
        todo = upkeep(pool.shelf, pool.spec, pool.levels, now, max_age_ms=max_age, hot=wish.hot, draining=draining)
        for entry in list(pool.shelf.entries()):
            if entry.leaving != (entry.instance_id in todo.leaving):
                pool.shelf.put(replace(entry, leaving=not entry.leaving))
        for name in todo.retire:
            if (server := self._books.live.get(name)) is not None:
                reason = "pool_surplus" if server.pool_spec == pool.spec else "pool_replaced"
                self._hands.retire(server, now, reason, "An idle pool server that is not needed any more.")
        for names, frozen in ((todo.freeze, True), (todo.thaw, False)):
            for name in names:
                if (server := self._books.live.get(name)) is not None:
                    self._hands.freeze(server, frozen)

    def strays(self) -> list[Server]:
        """Unclaimed pool servers that belong to no pool any more."""
        return [
            server
            for server in self._books.live.values()
            if server.is_pool_server
            and server.pool_claimed_at is None
            and server.status != "stopped"
            and key_of(server) not in self._pools
        ]

    def announce(self, key: PoolKey, expected: list[tuple[float, float]]) -> None:
        """Starts that are known ahead, such as matches being made: (epoch seconds, number). Replaces the last word."""
        if (pool := self._pools.get(key)) is not None:
            pool.announced = expected
            self.plan(now_ms(), all_of=key[0])

    # What is known ----------------------------------------------------------------------------------------------

    def pools(self) -> Mapping[PoolKey, Pool]:
        return self._pools

    def minute(self, now: int) -> list[Statement]:
        """At the end of a minute: its demand, and what was learned, as statements. Otherwise nothing."""
        at = now // MINUTE_MS * MINUTE_MS
        if at == self._minute_at:
            return []
        ended, self._minute_at = self._minute_at, at
        statements: list[Statement] = []
        for key, pool in self._pools.items():
            active, row = bool(pool.minute), pool.row(self._region, ended)
            if active:
                statements += minute_statements(row)
            if active or at % _REMEMBER_MS == 0:  # that nobody came is worth knowing too
                statements += state_statements(self._memory(key, pool, now))
        if at % (60 * MINUTE_MS) == 0:
            statements.append(old_minutes(self._region, now))
        return statements

    def _memory(self, key: PoolKey, pool: Pool, now: int) -> PoolMemory:
        project_id, size, build_name = key
        return PoolMemory(
            region=self._region,
            project_id=project_id,
            compute_size=size,
            build_name=build_name,
            state={"stock": pool.state.to_json(), "lead": pool.lead.to_json(), "season": pool.season.to_json()},
            updated_at=now,
        )


def key_of(server: Server) -> PoolKey:
    return server.project_id, server.compute_size, server.version_tag


def _name(key: PoolKey) -> str:
    return "/".join(key[1:])


def _product(one: Wished, build: tuple[str, int] | None) -> Product | None:
    if build is None:
        return None
    wish = one.wish
    spec = pool_spec(wish.project_id, wish.compute_size, build[0], one.environment, one.port_configs, one.secrets_at)
    return Product(spec, build[0], build[1], one.stored, one.port_configs)


def _entry(server: Server, old: Entry | None, health: Health | None, frozen: bool | None) -> Entry:
    was: Health = old.state if old is not None and old.state != "booting" else "warm"
    state: State = "booting" if server.status != "running" else health or was
    moved = old is None or old.state != state
    return Entry(
        server.instance_id,
        server.pool_spec or "",
        state,
        now_ms() if moved and old is not None else old.since if old else server.step_at,
        server.node_id,
        (old.frozen if old else False) if frozen is None else frozen,
        old.leaving if old else False,
    )


def _holding(pool: Pool, now: int) -> int:
    """How many boot slots the pool's entries hold."""
    return pool.shelf.younger("booting", slot_ms(pool.lead_s), now)


def _wanted(pool: Pool, now: int) -> int:
    """How many entries it would order now if there were slots enough."""
    if now < pool.blocked_until:
        return 0
    wanted = missing(pool.shelf, pool.spec, pool.levels.target, now)
    # After a failure: with one, until it boots again.
    return min(wanted, max(0, 1 - pool.shelf.total("booting"))) if pool.failures else wanted


def _fullness(pool: Pool) -> float:
    return pool.shelf.staying(pool.spec or "") / max(1, pool.levels.target)
