"""Who has a stream open in this process: a few per player. How many a project's players have: `fleet/limits/shares.py`.

A player who comes again is let in, and the oldest stream of theirs ends: it is most likely a connection that broke
without a word, and would count as a sign of life.
"""

import asyncio
from collections import defaultdict

PER_PLAYER = 3
_Player = tuple[str, str, str]  # project, config, player


class OpenStream:
    """One stream's time: until it has been open so long, or `end` is called."""

    def __init__(self, most_s: float) -> None:
        self._until = asyncio.get_running_loop().time() + most_s
        self._waiting: asyncio.Timeout | None = None

    def end(self) -> None:
        self._until = 0.0
        if self._waiting is not None:
            self._waiting.reschedule(0.0)

    def time_left(self) -> asyncio.Timeout:
        """For `async with`, around each wait: `TimeoutError` when the stream has to end."""
        self._waiting = asyncio.timeout_at(self._until)
        return self._waiting


class PlayerStreams:
    def __init__(self) -> None:
        self._open: defaultdict[_Player, list[OpenStream]] = defaultdict(list)

    def enter(self, player: _Player, most_s: float) -> OpenStream:
        streams = self._open[player]
        if len(streams) >= PER_PLAYER:
            streams[0].end()
        one = OpenStream(most_s)
        streams.append(one)
        return one

    def leave(self, player: _Player, one: OpenStream) -> None:
        streams = self._open[player]
        streams.remove(one)
        if not streams:
            del self._open[player]
