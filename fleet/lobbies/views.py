"""A lobby as it is shown."""

from fleet.lobbies.model import Confirmation, Lobby, LobbyView, Matchmaking, PlayerView, QueueStats


def view_of(lobby: Lobby, stats: QueueStats) -> LobbyView:
    return LobbyView(
        id=lobby.id,
        code=lobby.code,
        config=lobby.config,
        name=lobby.name,
        status=lobby.status,
        host=lobby.host,
        max_players=lobby.max_players,
        region=lobby.region,
        is_private=lobby.is_private,
        allow_late_join=lobby.allow_late_join,
        settings=lobby.settings,
        players=tuple(PlayerView(player.id, player.state, player.id == lobby.host) for player in lobby.players),
        created_at=lobby.created_at,
        updated_at=lobby.updated_at,
        version=lobby.version,
        server=lobby.server,
        matchmaking=_matchmaking(lobby, stats),
        match_id=lobby.match_id,
    )


def _matchmaking(lobby: Lobby, stats: QueueStats) -> Matchmaking | None:
    if lobby.queued is None:
        return None
    asked = lobby.confirm_until is not None
    confirmation = Confirmation(lobby.confirmed, lobby.confirm_until or 0) if asked else None
    return Matchmaking(lobby.queued.mode, lobby.queued.since, stats, confirmation)
