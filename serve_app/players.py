"""The `x-player-id` of a call, and whether the caller is that player."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Header
from starlette.requests import Request

from fleet.players.model import ID_PATTERN, MAX_ID, MAX_TOKEN
from fleet.projects.model import Principal
from serve_app.auth import AnyKey, Context
from serve_app.stream_query import PROVEN

PlayerId = Annotated[
    str,
    Header(
        alias="x-player-id",
        min_length=1,
        max_length=MAX_ID,
        pattern=ID_PATTERN,
        description="Who plays: printable ASCII, no space at the ends",
    ),
]
PlayerToken = Annotated[
    str | None,
    Header(
        alias="x-player-token",
        max_length=MAX_TOKEN,
        description="Proof of that, as the project's `auth_config` wants it. Not needed with the server key",
    ),
]


@dataclass(frozen=True, slots=True)
class Player:
    """A player of the caller's project, who is who they say."""

    caller: Principal
    id: str

    @property
    def project_id(self) -> str:
        return self.caller.project_id


async def _player(
    request: Request, caller: AnyKey, context: Context, player_id: PlayerId, token: PlayerToken = None
) -> Player:
    if request.scope.get(PROVEN) != player_id:
        await context.players.check(caller, player_id, token)
    return Player(caller, player_id)


ThePlayer = Annotated[Player, Depends(_player)]
