"""Carries out plans: actions become changes in the books and commands for nodes.

Commands are collected and sent only after the changes that led to them are on disk.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from typing import Any, Protocol

import structlog

from fleet.actors.tasks import SupervisedTasks
from fleet.catalog import Catalog, ComputeSize
from fleet.errors import FleetError
from fleet.node.agent import Order
from fleet.node.model import Hello, RunView
from fleet.node.runtime import BuildRef, GameSecrets, RunKey
from fleet.region.books import Books
from fleet.region.model import (
    Action,
    Advance,
    End,
    Finish,
    Forget,
    Launch,
    NodeView,
    Place,
    Requeue,
    StopRun,
)
from fleet.region.placement import Demand
from fleet.region.plan import current, told_at
from fleet.region.queue import Queue
from fleet.region.rooms import Rooms
from fleet.region.runs import Runs
from fleet.region.secrets import no_secrets
from fleet.region.sizes import RegionSizes
from fleet.region.spec import game_config, launch_spec, network_ports
from fleet.sealing import Variables
from fleet.settings import FleetSettings
from fleet.store.tables import Server
from fleet.times import now_ms

log = structlog.get_logger(__name__)

TOLD_MS = 15_000  # by then a node that was ordered something has told of it, or is silent
Command = tuple[str, str, tuple[Any, ...]]  # node id, method, arguments


class Nodes(Protocol):
    """What the executor needs of the region's leases (`fleet.region.leases.Leases`)."""

    def views(self) -> Mapping[str, NodeView]: ...
    def hello(self, node_id: str) -> Hello | None: ...
    async def call(self, node_id: str, method: str, *arguments: Any) -> Any: ...


class Executor:
    """Works on the manager's own books and runs; `settle` commits and sends what came of background work.

    What does not arrive at a node is told again by the next repair pass: launches, stops and forgetting by the plan,
    which says them until the node tells that it is done; changed configs by `tell_again`.
    """

    def __init__(
        self,
        epoch: int,
        settings: FleetSettings,
        catalog: Catalog,
        books: Books,
        runs: Runs,
        leases: Nodes,
        *,
        settle: Callable[[], Coroutine[Any, Any, None]],
        builds: Callable[[str], Awaitable[BuildRef]],
        secrets: Callable[[str], Awaitable[GameSecrets]] = no_secrets,
    ) -> None:
        self._epoch = epoch
        self._settings = settings
        self.sizes = RegionSizes(catalog)
        self._books = books
        self._runs = runs
        self._leases = leases
        self._settle = settle
        self._builds = builds
        self._secrets, self._variables = secrets, Variables(settings.home)
        self._commands: list[Command] = []
        self._outgoing: dict[str, list[Order]] = {}
        self.tasks = SupervisedTasks("executor")
        self._launches: dict[RunKey, int | None] = {}  # not told of yet: when its order ended; None: under way
        self._untold: set[RunKey] = set()  # runs whose config has changed and that have not been told
        self.on_short: Callable[[], None] = lambda: None  # told when somebody waits in vain
        self.may_place: Callable[[], bool] = lambda: True
        self.queued = Queue(self.demand, self._waits)
        self.rooms = Rooms(lambda: books.live, runs, leases.views, self.demand)
        books.moved = runs.on_change = self.rooms.moved
        runs.place_of = self._place_of
        for instance_id in books.live:
            self.rooms.moved(instance_id)

    def _place_of(self, key: RunKey) -> str | None:
        server = self._books.live.get(key.instance_id)
        return server.node_id if server is not None and current(server) == key else None

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        """Begin a part of a pass; what fails of it is planned again by the repair timer."""
        self.tasks.once("pass", work)

    # Room -------------------------------------------------------------------------------------------------------

    def demand(self, server: Server) -> Demand:
        size = self._size(server)
        idle = server.is_pool_server and server.pool_claimed_at is None
        ports = server.port_configs or ()
        tls = sum(bool(port.get("tls_enabled")) for port in ports)
        return Demand(
            server.instance_id,
            size.memory_mb,
            size.cpus if size.dedicated else 0.0,
            0.0 if size.dedicated else size.cpus,
            len(ports) - tls,
            server.pool_spec if idle else None,
            server.build_id,
            tls,
        )

    def _size(self, server: Server) -> ComputeSize:
        return self.sizes.size(server.compute_size, lambda: self._runs.get(current(server)))

    def find_node(self, server: Server) -> str | None:
        return self.rooms.find(self.demand(server))

    # Actions ----------------------------------------------------------------------------------------------------

    def carry_out(self, actions: Iterable[Action]) -> None:
        """Changes the books at once; node commands wait for `take_commands` and `command`."""
        for action in actions:
            match action:
                case StopRun(key, node_id):
                    self._commands.append((node_id, "stop", (key, self._settings.servers.stop_grace_s)))
                case Forget(key, node_id):
                    self._commands.append((node_id, "forget", (key,)))
                case _:
                    server = self._books.live.get(action.instance_id)
                    if server is not None:
                        self._change(server, action)

    def _change(self, server: Server, action: Place | Launch | Advance | End | Requeue | Finish) -> None:
        match action:
            case Place():
                self.queued.append(server)
            case Launch():
                if self._launches.get(current(server), 0) is not None:
                    self.tasks.once("launch", self._launch_and_settle(server))  # the plan says it again
            case Advance(_, step, at):
                if step == "running":  # who follows the journal sees what is paid for
                    size = {"size": server.compute_size}
                    self._books.step(server, at, step, size, status="running", started_at=at)
                else:
                    self._books.step(server, at, step)
            case End(_, _, "no_capacity") if self.find_node(server) is not None:
                self.queued.append(server)  # room came free in this very pass; who does not get it is planned again
            case End(_, at, reason, shutdown, detail, exit_code, gone):
                self.end(server, at, reason, shutdown, detail, exit_code, gone=gone)
            case Requeue(_, at, reason, retry_at, detail, exit_code, crashes, queued_at):
                data = {
                    "reason": reason,
                    "exit_code": exit_code,
                    "detail": detail,
                    "retry_at": retry_at,
                }
                self.new_generation(server, at, "restarting", data, queued_at, retry_at=retry_at, crashes=crashes)
            case Finish(_, at, exit_code):
                if self._may_come(current(server)):
                    return  # its room is not free yet; the repair timer plans it again
                self._launches.pop(current(server), None)
                known = server.exit_code if exit_code is None else exit_code
                self._books.step(server, at, "stopped", {"exit_code": known}, exit_code=known)

    def end(
        self,
        server: Server,
        at: int,
        reason: str,
        shutdown: str,
        detail: str,
        exit_code: int | None,
        *,
        gone: bool,
    ) -> None:
        """The server is stopped for everybody; `stopping` until its container is gone."""
        self._books.change(
            server,
            at,
            status="stopped",
            stopped_at=at,
            network_ports=[],
            stop_reason=reason,
            shutdown_reason=shutdown,
            stop_detail=detail or None,
            exit_code=exit_code,
            retry_at=None,
        )
        data = {
            "reason": reason,
            "shutdown_reason": shutdown,
            "detail": detail,
            "exit_code": exit_code,
        }
        self._books.step(server, at, "stopped" if gone else "stopping", data)

    def new_generation(
        self, server: Server, at: int, event: str, data: dict[str, Any], queued_at: int = 0, **values: Any
    ) -> None:
        """Back to `queued` as another run: new container, new ports, the same id. `at`: when the last one ended, which
        may be long before it waits for a node (`queued_at`, unless it is the same)."""
        queued_at = max(at, queued_at)
        self._leave(server)
        self._books.note(server, at, event, data)
        values = {"retry_at": None, **values}
        self._books.change(
            server,
            at,
            generation=server.generation + 1,
            status="launching",
            started_at=None,
            launched_at=queued_at,
            node_id=None,
            exit_code=None,
            **values,
        )
        self.clear_ports(server)
        self._books.step(server, queued_at, "queued", network_ports=server.network_ports)

    def _leave(self, server: Server) -> None:
        """The present generation is given up. What was ordered for it may yet come, and needs its room then."""
        key = current(server)
        if server.node_id and self._may_come(key):
            self.rooms.keep(key, server.node_id, self.demand(server))
            self.tasks.once("leave", self._let_go(key))  # a new manager knows of no order, and hears of the run
        else:
            self._launches.pop(key, None)

    async def _let_go(self, key: RunKey) -> None:
        while self._may_come(key):  # noqa: ASYNC110  the node's word, or time, ends it
            await asyncio.sleep(1.0)
        self._launches.pop(key, None)
        self.rooms.let_go(key)

    def clear_ports(self, server: Server) -> None:
        server.network_ports = network_ports(server, (), None)

    def adopt_ports(self, views: Iterable[RunView]) -> None:
        """Take over what a node says of a live run's place and ports, where the row says otherwise."""
        for view in views:
            server = self._books.live.get(view.key.instance_id)
            if server is None or server.status == "stopped" or current(server) != view.key or view.state.ended:
                continue
            if not self._runs.counts(view):
                continue
            node = self._leases.views().get(view.node_id)
            ports = network_ports(server, view.ports, node.host if node else None)
            if ports != server.network_ports or server.node_id != view.node_id:
                at = told_at(server, view.at, now_ms())
                self._books.change(server, at, network_ports=ports, node_id=view.node_id)
                self._books.note(server, at, "ports", {"ports": ports})

    def note_full_disk(self, view: RunView) -> None:
        """A game has written all that it may: the project's events say so."""
        server = self._books.live.get(view.key.instance_id)
        if server is not None and current(server) == view.key:
            self._books.note(
                server, max(server.step_at, now_ms()), "disk_full", {"disk_mb": self._size(server).disk_mb}
            )

    # Launching --------------------------------------------------------------------------------------------------

    async def launch_queued(self) -> None:
        """Place what waits, as far as there is room, and launch it; the rest waits for room or its deadline."""
        if not self.may_place():
            return
        placed: list[Server] = []
        while (server := self.queued.take(self.rooms.find)) is not None:
            if self._place(server):
                placed.append(server)
        if self.queued:
            self.on_short()
        await asyncio.gather(*(self.launch(server) for server in placed))

    def _waits(self, server: Server) -> bool:
        return self._books.live.get(server.instance_id) is server and server.step == "queued"

    async def place_and_launch(self, server: Server) -> None:
        """Put a queued server on the node that fits and tell the node. The caller commits."""
        if self._place(server):
            await self.launch(server)

    def _place(self, server: Server) -> bool:
        node_id = self.find_node(server)
        if node_id is not None:
            at = max(server.step_at, now_ms())
            self._books.step(server, at, "placed", {"node": node_id}, node_id=node_id)
        return node_id is not None

    async def launch(self, server: Server) -> None:
        """Tell the server's node to launch it. If that does not come to be, the plan tells again. Never raises."""
        key, node_id = current(server), server.node_id or ""
        hello = self._leases.hello(node_id)
        if hello is None:
            return
        self._launches[key] = None
        try:
            build = await self._builds(server.build_id)
            own = self._variables.open(server.environment), await self._secrets(server.project_id)
            spec = launch_spec(server, build, self._size(server), hello.share, self._settings, *own)
            ports = await self._leases.call(node_id, "launch", self._epoch, spec)
        except Exception as error:  # whatever it is, others are placed in the same pass
            known = isinstance(error, FleetError)
            reason = error.detail if isinstance(error, FleetError) else repr(error)
            log.warning(
                "launch_not_delivered",
                server=server.instance_id,
                node=node_id,
                error=reason,
                exc_info=None if known else error,
            )
            return
        finally:
            self._ordered(server, key)
        if current(server) == key and server.status == "launching":
            shown = network_ports(server, ports, hello.host)
            self._books.change(server, now_ms(), network_ports=shown)

    def _ordered(self, server: Server, key: RunKey) -> None:
        """An order to launch has ended, with whatever outcome."""
        live = self._books.live.get(key.instance_id) is server and current(server) == key
        if live or self.rooms.keeps(key):
            self._launches[key] = now_ms()
        else:
            self._launches.pop(key, None)

    def _may_come(self, key: RunKey) -> bool:
        """Whether a node may yet tell of a run that it was ordered to launch, though the order may have failed."""
        ended = self._launches.get(key, 0)
        return key not in self._runs and (ended is None or now_ms() - ended < TOLD_MS)

    async def _launch_and_settle(self, server: Server) -> None:
        await self.launch(server)
        await self._settle()

    # Commands ---------------------------------------------------------------------------------------------------

    def tell_game(self, server: Server) -> None:
        """Have the running game's playflow.json rewritten."""
        if server.node_id:
            self.command([(server.node_id, "rewrite_config", (current(server), game_config(server)))])

    def tell_again(self) -> None:
        """The games whose config could not be rewritten, as far as their nodes answer now."""
        views = self._leases.views()
        for key in list(self._untold):
            server = self._books.live.get(key.instance_id)
            if server is None or server.status == "stopped" or current(server) != key:
                self._untold.discard(key)
            elif (view := views.get(server.node_id or "")) is not None and view.synced:
                self.tell_game(server)

    async def ask(self, node_id: str, method: str, *arguments: Any) -> Any:
        """Command a node and wait for its answer. `Unavailable` if there is none."""
        return await self._leases.call(node_id, method, self._epoch, *arguments)

    def take_commands(self) -> list[Command]:
        commands, self._commands = self._commands, []
        return commands

    def command(self, commands: list[Command]) -> None:
        """Send, without waiting: what does not arrive is planned again when the node syncs.

        What a node is told in one turn of the loop goes in one call, since a call costs more than most commands.
        """
        if commands and not self._outgoing:
            asyncio.get_running_loop().call_soon(self._flush)
        for node_id, method, arguments in commands:
            self._outgoing.setdefault(node_id, []).append((method, arguments))

    def _flush(self) -> None:
        outgoing, self._outgoing = self._outgoing, {}
        for node_id, orders in outgoing.items():
            self.tasks.once("send", self._send(node_id, orders), node=node_id)  # what it does not do is told again

    async def _send(self, node_id: str, orders: list[Order]) -> None:
        done = [False] * len(orders)
        try:
            if len(orders) > 1:
                done = await self._leases.call(node_id, "do", self._epoch, orders)
            else:
                await self._leases.call(node_id, orders[0][0], self._epoch, *orders[0][1])
                done = [True]
            failed = [f"{method} {given[0]}" for (method, given), well in zip(orders, done, strict=True) if not well]
            if failed:
                log.warning("commands_not_carried_out", node=node_id, commands=failed)
        except FleetError as error:
            log.warning("commands_not_delivered", node=node_id, number=len(orders), error=error.detail)
        finally:
            for (method, arguments), well in zip(orders, done, strict=False):
                self._answered(node_id, method, arguments[0], well=well)

    def _answered(self, node_id: str, method: str, key: RunKey, *, well: bool) -> None:
        if method == "rewrite_config":
            (self._untold.discard if well else self._untold.add)(key)
        elif method == "forget" and well:
            run = self._runs.get(key)
            if run is None or run.node_id != node_id:
                self._runs.forget_rival(key, node_id)
            elif run.state.ended:
                del self._runs[key]
