"""Players of a fleet's lobbies, as a replica would serve them: a process of its own that joins the fleet.

It arms a crash point, plays on through it, and prints what was acknowledged and what came of it.
"""

import asyncio
import json
import secrets
import sys
from pathlib import Path
from typing import Any

from sqlmodel import col, select

from fleet.lobbies.client import KeeperClient
from fleet.lobbies.lobbies import Lobbies
from fleet.lobbies.model import LobbyView, NewLobby
from fleet.ops.head import read_head
from fleet.ops.home import find_home
from fleet.ops.join import join_head
from fleet.region.names import NAMESPACE
from fleet.settings import FleetSettings
from fleet.store.engine import Store
from fleet.store.lobby_tables import Match
from fleet.store.tables import Server

PLAYERS = 6
WAIT_S = 90


class Play:
    def __init__(self, store: Store, shards: int, project_id: str, config: str, point: Path) -> None:
        self.store = store
        self.lobbies = Lobbies(store, KeeperClient(store, shards))
        self.where = (project_id, config)
        self.point = point
        tag = secrets.token_hex(3)
        self.players = [f"{tag}-{n}" for n in range(PLAYERS)]

    async def run(self) -> dict[str, Any]:
        made = await self.all("create", NewLobby("chaos", region="ap-southeast"))
        guests = await asyncio.gather(
            *(self.lobbies.join(*self.where, f"{view.host}-guest", code=view.code) for view in made)
        )
        self.point.touch()
        await self.all("set_state", {"ready": True})
        await self.all("start_matchmaking", "pairs")
        playing = [await self.until(player, "in_game", "running") for player in self.players]
        kept = [self.kept(before, after) for before, after in zip(guests, playing, strict=True)]
        servers = await self.servers(playing)
        await self.all("end_match")
        waiting = [await self.until(player, "waiting") for player in self.players]
        await self.all("leave")
        await asyncio.gather(*(self.lobbies.leave(*self.where, f"{player}-guest") for player in self.players))
        return {
            "fired": not self.point.exists(),
            "kept": kept,
            "matches": len({view.match_id for view in playing}),
            "servers": servers,
            "stopped": await self.stopped(playing),
            "free": all(view.match_id is None for view in waiting),
        }

    async def all(self, method: str, *arguments: Any) -> list[LobbyView]:
        calls = (getattr(self.lobbies, method)(*self.where, player, *arguments) for player in self.players)
        return list(await asyncio.gather(*calls))

    async def until(self, player: str, status: str, server: str | None = None) -> LobbyView:
        async with asyncio.timeout(WAIT_S):
            while True:
                seen = await self.lobbies.mine(*self.where, player)
                if seen.status == status and (server is None or (seen.server or {}).get("status") == server):
                    return seen
                await asyncio.sleep(0.1)

    def kept(self, before: LobbyView, after: LobbyView) -> bool:
        """Everything that was acknowledged is there."""
        same = (before.id, before.code, before.host) == (after.id, after.code, after.host)
        states = {player.id: player.state for player in after.players}
        return same and states == {before.host: {"ready": True}, f"{before.host}-guest": None}

    async def servers(self, playing: list[LobbyView]) -> int:
        """How many servers these matches have ever had."""
        matches = {view.match_id for view in playing}
        async with self.store.read() as session:
            rows = await session.exec(select(Server.instance_id).where(col(Server.match_id).in_(matches)))
            return len(rows.all())

    async def stopped(self, playing: list[LobbyView]) -> bool:
        matches = {view.match_id for view in playing}
        query = select(Server.status).where(col(Server.match_id).in_(matches))
        over = select(Match.status).where(col(Match.match_id).in_(matches))
        async with asyncio.timeout(WAIT_S):
            while True:
                async with self.store.read() as session:
                    statuses = set((await session.exec(query)).all()) | set((await session.exec(over)).all())
                if statuses == {"stopped", "ended"}:
                    return True
                await asyncio.sleep(0.1)


async def play(settings: FleetSettings, project_id: str, config: str, point: str) -> dict[str, Any]:
    store = Store(settings.database)
    try:
        return await Play(store, settings.lobbies.shards, project_id, config, Path(point)).run()
    finally:
        await store.close()


def main() -> None:
    folder, project_id, config, point = sys.argv[1:]
    home = find_home(Path(folder))
    assert home is not None
    head = read_head(home)
    assert head is not None
    join_head(head, NAMESPACE)
    print(json.dumps(asyncio.run(play(FleetSettings(home=Path(folder)), project_id, config, point))))


if __name__ == "__main__":
    main()
