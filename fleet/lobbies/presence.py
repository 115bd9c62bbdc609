"""Signs of life, in the keeper's memory only.

An open stream is presence. A sign is any call of the player, or the end of a stream. After a time in which signs could
not reach the keeper (it restarted, its process stood still, the database was away, so that calls were refused)
everybody is given as long as if just seen: `excuse`.
"""

from collections import Counter, defaultdict

Who = tuple[str, str]  # lobby, player


class Presence:
    def __init__(self, begun: int) -> None:
        self._begun = begun
        self._seen: dict[str, dict[str, int]] = defaultdict(dict)
        self._streams: Counter[Who] = Counter()
        self._dropped: dict[Who, int] = {}

    def excuse(self, now: int) -> None:
        """Signs of life may have been lost until now."""
        self._begun = max(self._begun, now)

    def sign(self, lobby_id: str, player_id: str, now: int) -> None:
        self._seen[lobby_id][player_id] = now
        self._dropped.pop((lobby_id, player_id), None)

    def opened(self, lobby_id: str, player_id: str) -> None:
        self._streams[lobby_id, player_id] += 1
        self._dropped.pop((lobby_id, player_id), None)

    def closed(self, lobby_id: str, player_id: str, now: int) -> bool:
        """True if it was the player's last stream: from now on it is silent."""
        who = (lobby_id, player_id)
        self._streams[who] -= 1
        if self._streams[who] > 0:
            return False
        del self._streams[who]
        self._seen[lobby_id][player_id] = now
        self._dropped[who] = now
        return True

    @property
    def streams(self) -> int:
        """How many are open."""
        return self._streams.total()

    def has_stream(self, lobby_id: str, player_id: str) -> bool:
        return (lobby_id, player_id) in self._streams

    def seen(self, lobby_id: str, player_id: str) -> int:
        return max(self._begun, self._seen[lobby_id].get(player_id, 0) if lobby_id in self._seen else 0)

    def dropped(self, lobby_id: str, player_id: str) -> int | None:
        """Since when a player who had a stream has none and gave no other sign."""
        since = self._dropped.get((lobby_id, player_id))
        return since if since is None else max(self._begun, since)

    def forget(self, lobby_id: str) -> None:
        for player in self._seen.pop(lobby_id, ()):
            self._dropped.pop((lobby_id, player), None)

    def forget_player(self, lobby_id: str, player_id: str) -> None:
        self._seen[lobby_id].pop(player_id, None)
        self._dropped.pop((lobby_id, player_id), None)
