"""The keepers as a replica sees them: commands that gather go out together, and are sent again if a keeper dies.

A keeper that is killed is back in seconds; callers wait so long. A command that may have had its effect is marked, and
the keeper then answers what it would have answered.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import structlog
from ray.exceptions import RayActorError, RayError, RayTaskError
from sqlmodel import col, select

from fleet.actors.lanes import CALLS
from fleet.errors import FleetError, Unavailable
from fleet.lobbies.calls import Answer, Command, Poll, Polled
from fleet.lobbies.keeper import LobbyKeeper
from fleet.lobbies.names import keeper_name, shard_of
from fleet.region.coalesce import Coalescer
from fleet.region.head_actor import on_head
from fleet.store.engine import Store
from fleet.store.lobby_tables import MATCH_NOT_OVER, Lobby, Match

log = structlog.get_logger(__name__)

_CALL_S = 30.0
_AGAIN_S = 0.2
RECOVER_S = 60.0


def keeper(shard: int) -> Any:
    """The shard's actor, made if there is none."""
    return on_head(LobbyKeeper, keeper_name(shard), shard, repeats=False, max_concurrency=CALLS)


class KeeperClient:
    """One per process. Raises `FleetError` subclasses only."""

    def __init__(self, store: Store, shards: int) -> None:
        self._store = store
        self._shards = shards
        self._handles: dict[int, Any] = {}
        self._queues: dict[int, Coalescer[Command, Answer]] = {}

    def shard_of(self, project_id: str) -> int:
        return shard_of(project_id, self._shards)

    async def recover(self) -> None:
        await self.recover_shards()

    async def recover_shards(self) -> None:
        """Make the keepers that have lobbies or matches under way and are not there: deadlines and servers do not wait
        for a call. To be done again and again; raises what the database or Ray raise, or TimeoutError."""
        async with asyncio.timeout(RECOVER_S):
            for shard in await self._shards_in_use():
                # By name, not by the handle that is kept: an actor that is dead for good is made anew.
                self._handles[shard] = await asyncio.to_thread(keeper, shard)

    async def _shards_in_use(self) -> list[int]:
        running = select(Match.project_id).where(col(Match.status).in_(MATCH_NOT_OVER)).distinct()
        async with self._store.read() as session:
            projects = set((await session.exec(select(Lobby.project_id).distinct())).all())
            projects |= set((await session.exec(running)).all())
        return sorted({self.shard_of(project_id) for project_id in projects})

    async def command(self, command: Command) -> Answer:
        """What the keeper answers; an answer that is an error is raised."""
        shard = self.shard_of(command.project_id)
        queue = self._queues.get(shard)
        if queue is None:
            queue = self._queues[shard] = Coalescer(partial(self._send, shard), _project_of)
        answer = await queue.ask(command)
        if isinstance(answer, FleetError):
            raise answer
        return answer

    async def _send(self, shard: int, commands: list[Command]) -> Sequence[Answer]:
        until = asyncio.get_running_loop().time() + _CALL_S
        while True:
            try:
                return await self._call(shard, "commands", commands)
            except _Died:
                if asyncio.get_running_loop().time() > until:
                    raise
                commands = [replace(command, again=True) for command in commands]
                await asyncio.sleep(_AGAIN_S)

    async def poll(self, shard: int, poll: Poll) -> Polled:
        return await self._call(shard, "poll", poll)

    def _handle(self, shard: int) -> Any:
        handle = self._handles.get(shard)
        if handle is None:
            handle = self._handles[shard] = keeper(shard)
        return handle

    async def _call(self, shard: int, method: str, argument: Any) -> Any:
        try:
            async with asyncio.timeout(_CALL_S):
                handle = self._handles.get(shard) or await asyncio.to_thread(self._handle, shard)
                return await getattr(handle, method).remote(argument)
        except RayTaskError as error:
            if isinstance(error.cause, FleetError):
                raise error.cause from None
            raise
        except (RayError, TimeoutError) as error:
            log.warning("keeper_does_not_answer", shard=shard, method=method, error=repr(error))
            text = "Lobbies do not answer now. Whether the call took effect is unknown: look before you repeat it."
            if isinstance(error, RayActorError):
                self._handles.pop(shard, None)
                raise _Died(text) from error
            raise Unavailable(text, error="Lobbies unavailable") from error


def _project_of(command: Command) -> str:
    return command.project_id


class _Died(Unavailable):
    error = "Lobbies unavailable"
