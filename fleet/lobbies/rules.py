"""What may become of one lobby: each function takes a lobby and gives the changed one, or raises what the API answers.

Nothing here knows other lobbies, time that is not passed in, or where anything is stored. `books.py` keeps what holds
between lobbies (a player in one at most, codes unique).
"""

from dataclasses import replace

from fleet.errors import BadRequest, Conflict, Forbidden, NotFound
from fleet.json_size import check_json
from fleet.lobbies.model import Lobby, LobbyChange, NewLobby, Player, Queued, State, Status

DEFAULT_REGION = "us-east"
MAX_PLAYERS = 100
MAX_STATE = 16 * 1024  # bytes as JSON, of each player
MAX_SETTINGS = 64 * 1024


def created(
    new: NewLobby, *, lobby_id: str, project_id: str, config: str, code: str, player_id: str, max_players: int, now: int
) -> Lobby:
    """A new lobby with its maker as host. `max_players`: the config's, if the maker gives none."""
    return Lobby(
        id=lobby_id,
        project_id=project_id,
        config=config,
        code=code,
        name=new.name,
        status="waiting",
        region=new.region or DEFAULT_REGION,
        host=player_id,
        is_private=new.is_private,
        allow_late_join=new.allow_late_join,
        max_players=new.max_players or max_players,
        players=(Player(player_id, new.state, now),),
        settings=dict(new.settings),
        created_at=now,
        updated_at=now,
    )


def joined(lobby: Lobby, player_id: str, state: State | None, now: int) -> Lobby:
    """With one more player, at the end of the line for the host's role."""
    if lobby.status not in ("waiting", "in_game"):
        raise BadRequest(
            f"The lobby is {lobby.status}, so nobody can join now. Try again when it waits.",
            error="Lobby is not accepting players",
        )
    if lobby.status == "in_game" and not lobby.allow_late_join:
        raise BadRequest(
            "Its match has begun and the lobby allows no late join.", error="Lobby is not accepting players"
        )
    if len(lobby.players) >= lobby.max_players:
        raise BadRequest(f"The lobby has {len(lobby.players)} of {lobby.max_players} players.", error="Lobby is full")
    return replace(lobby, players=(*lobby.players, Player(player_id, state, now)), updated_at=now)


def left(lobby: Lobby, player_id: str, now: int) -> Lobby | None:
    """Without the player; the host's role goes to who is longest there. None: nobody is left."""
    players = tuple(player for player in lobby.players if player.id != player_id)
    if not players:
        return None
    host = players[0].id if lobby.host == player_id else lobby.host
    return replace(lobby, players=players, host=host, updated_at=now)


def hosted_by(lobby: Lobby, player_id: str, now: int) -> Lobby:
    """Another member takes the host's role."""
    if lobby.player(player_id) is None:
        raise NotFound(f"Player '{player_id[:64]}' is not in this lobby.", error="Player not found")
    return replace(lobby, host=player_id, updated_at=now)


def check_host(lobby: Lobby, player_id: str) -> None:
    if lobby.host != player_id:
        raise Forbidden(f"Only the host ({lobby.host[:64]}) may do this.", error="Not host")


def check_kick(lobby: Lobby, player_id: str, victim: str) -> None:
    check_host(lobby, player_id)
    if victim == player_id:
        raise BadRequest("The host cannot kick itself. Leave the lobby instead.", error="Cannot kick yourself")
    if lobby.player(victim) is None:
        raise NotFound(f"Player '{victim[:64]}' is not in this lobby.", error="Player not found")


def with_state(lobby: Lobby, player_id: str, state: State, now: int) -> Lobby:
    """The player's own state, merged one level deep."""
    players = tuple(
        replace(player, state=_bounded({**(player.state or {}), **state}, "state", MAX_STATE))
        if player.id == player_id
        else player
        for player in lobby.players
    )
    return replace(lobby, players=players, updated_at=now)


def _bounded(merged: State, what: str, most: int) -> State:
    """What is merged again and again must not grow for ever."""
    check_json(merged, f"'{what}' with what is there already", most)
    return merged


def changed(lobby: Lobby, player_id: str, change: LobbyChange, now: int) -> Lobby:
    """What the host may change, while no game runs."""
    check_host(lobby, player_id)
    if lobby.status != "waiting" and lobby.status != "in_queue":
        raise Conflict(f"The lobby is {lobby.status}; its settings change when it waits again.", error="Lobby is busy")
    if change.max_players is not None and change.max_players < len(lobby.players):
        raise BadRequest(
            f"maxPlayers {change.max_players} is below the {len(lobby.players)} players who are here.",
            error="maxPlayers too small",
        )
    if change.host is not None:
        lobby = hosted_by(lobby, change.host, now)
    new = {
        "name": change.name,
        "max_players": change.max_players,
        "is_private": change.is_private,
        "allow_late_join": change.allow_late_join,
        "region": change.region,
        "settings": _bounded({**lobby.settings, **change.settings}, "settings", MAX_SETTINGS)
        if change.settings is not None
        else None,
    }
    return replace(lobby, **{name: value for name, value in new.items() if value is not None}, updated_at=now)


def check_queue(lobby: Lobby, player_id: str, mode: str, max_party: int) -> None:
    """Whether the lobby may enter the queue of this mode."""
    check_host(lobby, player_id)
    if lobby.status != "waiting":
        raise Conflict(f"The lobby is {lobby.status}; matchmaking begins while it waits.", error="Lobby is not waiting")
    if len(lobby.players) > max_party:
        raise BadRequest(
            f"The lobby has {len(lobby.players)} players; matchmaking mode '{mode[:64]}' takes parties of at most "
            f"{max_party}.",
            error="Party too large for this matchmaking mode",
        )


def queued(lobby: Lobby, place: Queued, now: int) -> Lobby:
    return replace(free(lobby, now), status="in_queue", queued=place)


def check_cancel(lobby: Lobby, player_id: str) -> None:
    check_host(lobby, player_id)
    if lobby.status != "in_queue":
        raise Conflict(
            f"The lobby is {lobby.status}, not in the matchmaking queue. A match that was found can be declined.",
            error="Lobby is not in the matchmaking queue",
        )


def check_start(lobby: Lobby, player_id: str) -> None:
    check_host(lobby, player_id)
    if lobby.status != "waiting":
        raise Conflict(f"The lobby is {lobby.status}; a start needs it to wait.", error="Lobby is not waiting")


def check_found(lobby: Lobby) -> None:
    if lobby.status != "match_found":
        raise Conflict(
            f"The lobby is {lobby.status}: there is no match to confirm or decline. Matchmaking modes with "
            "matchConfirmation ask for it.",
            error="No match to confirm",
        )


def check_end(lobby: Lobby, player_id: str) -> None:
    check_host(lobby, player_id)
    if lobby.status != "in_game":
        raise Conflict(f"The lobby is {lobby.status}; there is no match to end.", error="Not in a match")


def in_match(lobby: Lobby, status: Status, match_id: str, now: int, *, confirm_until: int | None = None) -> Lobby:
    """`match_found`, `matched` or `starting`: it has a match and no server yet."""
    return replace(
        lobby,
        status=status,
        match_id=match_id,
        confirmed=lobby.confirmed and status == "match_found",
        confirm_until=confirm_until,
        updated_at=now,
    )


def confirmed(lobby: Lobby, now: int) -> Lobby:
    return replace(lobby, confirmed=True, updated_at=now)


def in_game(lobby: Lobby, match_id: str, server: State, now: int) -> Lobby:
    return replace(
        lobby,
        status="in_game",
        match_id=match_id,
        server=server,
        confirmed=False,
        confirm_until=None,
        updated_at=now,
    )


def free(lobby: Lobby, now: int) -> Lobby:
    """Waiting, with no match, no server and no place in a queue; players, code and settings stay."""
    return replace(
        lobby,
        status="waiting",
        queued=None,
        match_id=None,
        server=None,
        confirmed=False,
        confirm_until=None,
        updated_at=now,
    )
