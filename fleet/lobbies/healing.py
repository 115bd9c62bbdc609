"""What time alone does to a lobby: silent players go, a vanished host's role passes on, a queue or match times out.

Pure. `Signs` is what is known of the players' lives; `due` says what is to be done now and when to ask again.
"""

from dataclasses import dataclass
from typing import Protocol

from fleet.lobbies.model import Lobby


class Signs(Protocol):
    def has_stream(self, lobby_id: str, player_id: str) -> bool: ...
    def seen(self, lobby_id: str, player_id: str) -> int: ...
    def dropped(self, lobby_id: str, player_id: str) -> int | None: ...


@dataclass(frozen=True, slots=True)
class Terms:
    """Milliseconds. `everywhere`: silent players go from a game too, which else keeps them while its server lives."""

    silence_ms: int
    everywhere: bool
    host_grace_ms: int


@dataclass(frozen=True, slots=True)
class Due:
    """`silent` players go; `host` takes the role; `gave_up`: the queue has had its time. `next_at`: ask again then."""

    silent: tuple[str, ...] = ()
    host: str | None = None
    gave_up: bool = False
    next_at: int | None = None


def due(lobby: Lobby, signs: Signs, terms: Terms, now: int) -> Due:
    silent, next_at = _silent(lobby, signs, terms, now)
    host, host_at = _host(lobby, signs, terms, now, silent)
    gave_up, until = False, None
    if lobby.status == "in_queue" and lobby.queued is not None:
        until = lobby.queued.until
        gave_up = until <= now
    times = [at for at in (next_at, host_at, until) if at is not None and at > now]
    return Due(silent, host, gave_up, min(times, default=None))


def _silent(lobby: Lobby, signs: Signs, terms: Terms, now: int) -> tuple[tuple[str, ...], int | None]:
    if lobby.status not in ("waiting", "in_queue", "match_found") and not terms.everywhere:
        return (), None
    ends = {
        player.id: max(signs.seen(lobby.id, player.id), player.joined_at) + terms.silence_ms
        for player in lobby.players
        if not signs.has_stream(lobby.id, player.id)
    }
    later = [at for at in ends.values() if at > now]
    return tuple(player for player, at in ends.items() if at <= now), min(later, default=None)


def _host(lobby: Lobby, signs: Signs, terms: Terms, now: int, silent: tuple[str, ...]) -> tuple[str | None, int | None]:
    """Who takes over from a host whose stream broke, if somebody is there who can."""
    dropped = signs.dropped(lobby.id, lobby.host)
    if dropped is None or lobby.host in silent:
        return None, None
    heir = next((p.id for p in lobby.players if p.id != lobby.host and signs.has_stream(lobby.id, p.id)), None)
    if heir is None:
        return None, None
    at = dropped + terms.host_grace_ms
    return (heir, None) if at <= now else (None, at)
