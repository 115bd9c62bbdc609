"""What a match's server is told (custom_data, section 4 of the API page), and what players are told of the server."""

from collections.abc import Mapping
from typing import Any

import orjson

from fleet.lobbies.config import LobbyConfig
from fleet.lobbies.match import Match
from fleet.lobbies.model import Lobby, State
from fleet.store.tables import Server

_SHOWN = (
    "instance_id",
    "name",
    "status",
    "region",
    "network_ports",
    "compute_size",
    "version_tag",
    "version",
    "match_id",
    "ttl",
    "auto_restart",
    "startup_args",
    "created_at",
    "updated_at",
    "started_at",
)
ROOM = 240 * 1024  # of the 256 KB that a server's custom_data may take


def server_view(row: Server) -> State:
    """Without environment, build and data, which are the studio's."""
    return {name: getattr(row, name) for name in _SHOWN}


def custom_data(match: Match, lobbies: Mapping[str, Lobby], config: LobbyConfig) -> dict[str, Any]:
    """The first lobby's settings spread out, then our names, which win. Where the whole would be too large, players'
    states are left out and `player_states_omitted` says so."""
    data = _data(match, lobbies, config, states=True)
    if len(orjson.dumps(data)) > ROOM:
        data = _data(match, lobbies, config, states=False) | {"player_states_omitted": True}
    return data


def _data(match: Match, lobbies: Mapping[str, Lobby], config: LobbyConfig, *, states: bool) -> dict[str, Any]:
    present = [lobbies[name] for name in match.lobbies if name in lobbies]
    first = present[0]
    players = [player.id for lobby in present for player in lobby.players]
    data: dict[str, Any] = {
        **first.settings,
        "match_id": match.id,
        "lobby_id": first.id,
        "lobby_ids": [lobby.id for lobby in present],
        "lobby_settings": first.settings,
        "host": first.host,
        "players": players,
        "all_players": players,
        "player_states": _states(present) if states else {},
        "teams": [
            {
                "team_id": number,
                "name": side.name,
                "roles": side.roles,
                "lobbies": [_lobby(lobbies[name], states) for name in side.lobbies if name in lobbies],
            }
            for number, side in enumerate(match.sides)
        ],
    }
    if match.matchmade:
        data["matchmaking_mode"] = match.mode
        data["match_configuration"] = _configuration(match, config)
    return data


def _states(lobbies: list[Lobby]) -> dict[str, State]:
    return {player.id: player.state or {} for lobby in lobbies for player in lobby.players}


def _lobby(lobby: Lobby, states: bool) -> dict[str, Any]:
    return {
        "lobby_id": lobby.id,
        "lobby_name": lobby.name,
        "players": [player.id for player in lobby.players],
        "player_count": len(lobby.players),
        "host": lobby.host,
        "lobby_settings": lobby.settings,
        "player_states": _states([lobby]) if states else {},
    }


def _configuration(match: Match, config: LobbyConfig) -> dict[str, Any]:
    mode = config.modes.get(match.mode)
    if mode is None:  # it was taken out of the config meanwhile
        return {}
    return {
        "teams_count": mode.teams,
        "players_per_team": mode.players_per_team,
        "min_players_per_team": mode.min_players_per_team or mode.players_per_team,
        "timeout": mode.timeout,
    }
