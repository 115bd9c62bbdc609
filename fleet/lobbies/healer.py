"""One timer per lobby and per match that has a deadline. What is due is decided purely (`healing.py`).

A timer that comes early, because somebody gave a sign of life since, just asks when to come again. What falls due is
done under supervision: it is tried again until it is done. While the database is away nothing is decided, and the timer
comes again until it is back. `repair` arms what has no timer, whatever the reason may be.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog

from fleet.actors.tasks import SupervisedTasks
from fleet.errors import FleetError
from fleet.lobbies import rules
from fleet.lobbies.healing import Terms, due
from fleet.lobbies.model import Lobby
from fleet.times import now_ms

if TYPE_CHECKING:
    from fleet.lobbies.core import Core

Work = Callable[[], Coroutine[Any, Any, None]]
log = structlog.get_logger(__name__)

AWAY_MS = 1_000  # while the database is away, what is due is looked at again so often
RETRY_MOST_S = 5.0
_AT_ONCE = 500  # lobbies looked at in one turn of the loop


class Healer:
    def __init__(self, core: "Core", host_grace_ms: int) -> None:
        self._core = core
        self._host_grace_ms = host_grace_ms
        self._timers: dict[str, tuple[int, asyncio.TimerHandle]] = {}
        self._acting: set[str] = set()
        self._closed = False
        self._tasks = SupervisedTasks("lobby_deadlines", shard=core.shard)

    def after_restart(self, now: int) -> None:
        """Lobbies in a queue are put there again; one whose match is not there waits."""
        self._mend(now)
        for match in self._core.books.matches.values():
            self._core.matches.reopen(match)

    def _mend(self, now: int) -> None:
        core = self._core
        for lobby in list(core.books.lobbies.values()):
            if lobby.status == "in_queue":
                if not core.queues.has(lobby):
                    self._requeue(lobby, now)
            elif lobby.status != "waiting" and lobby.match_id not in core.books.matches:
                core.books.note(lobby.project_id, lobby.id, "match_lost", now, match=lobby.match_id)
                core.books.put(rules.free(lobby, now))

    def _requeue(self, lobby: Lobby, now: int) -> None:
        try:
            self._core.matches.requeue(lobby)
        except FleetError as error:
            self._core.books.note(lobby.project_id, lobby.id, "queue_left", now, why=error.detail)
            self._core.books.put(rules.free(lobby, now))

    async def repair(self) -> None:
        """What has a deadline and no timer gets one; a lobby whose queue or match is not there is put right."""
        core = self._core
        self._mend(now_ms())
        self.arm_matches([match for match in core.books.matches if not self._watched(match)])
        lobbies = [lobby for lobby in core.books.lobbies if not self._watched(lobby)]
        for first in range(0, len(lobbies), _AT_ONCE):
            self.arm(lobbies[first : first + _AT_ONCE])
            await asyncio.sleep(0)

    def _watched(self, name: str) -> bool:
        return name in self._timers or name in self._acting

    # Timers ---------------------------------------------------------------------------------------------------------

    def arm(self, lobby_ids: Iterable[str]) -> None:
        """These lobbies have changed."""
        for lobby_id in lobby_ids:
            lobby = self._core.books.lobbies.get(lobby_id)
            if lobby is None:
                self._clear(lobby_id)
                self._core.presence.forget(lobby_id)
            else:
                self._arm_lobby(lobby)

    def _arm_lobby(self, lobby: Lobby) -> None:
        now = now_ms()
        found = due(lobby, self._core.presence, self._terms(lobby), now)
        at = now if found.silent or found.host or found.gave_up else found.next_at
        self._set(lobby.id, at, partial(self._heal, lobby.id), partial(self.arm, [lobby.id]))

    def arm_matches(self, match_ids: Iterable[str]) -> None:
        for match_id in match_ids:
            match = self._core.books.matches.get(match_id)
            waits = match is not None and match.status == "found"
            at = match.confirm_until if match is not None and waits else None
            self._set(match_id, at, partial(self._unconfirmed, match_id), partial(self.arm_matches, [match_id]))

    def _set(self, name: str, at: int | None, work: Work, again: Callable[[], None]) -> None:
        if self._closed or name in self._acting:  # it is armed when what is being done is done
            return
        now = now_ms()
        if at is not None and at <= now and self._core.away:
            at = now + AWAY_MS
        before = self._timers.get(name)
        if before is not None and before[0] == at:
            return
        self._clear(name)
        if at is None:
            return
        delay = max(0.0, (at - now) / 1000) + 0.001
        timer = asyncio.get_running_loop().call_later(delay, self._fire, name, work, again)
        self._timers[name] = (at, timer)

    def _fire(self, name: str, work: Work, again: Callable[[], None]) -> None:
        self._timers.pop(name, None)
        self._acting.add(name)
        task = self._tasks.keep("act", work, most_s=RETRY_MOST_S, subject=name)
        task.add_done_callback(lambda _: self._acted(name, again))

    def _acted(self, name: str, again: Callable[[], None]) -> None:
        self._acting.discard(name)
        again()

    def _clear(self, name: str) -> None:
        if (timer := self._timers.pop(name, None)) is not None:
            timer[1].cancel()

    async def close(self) -> None:
        self._closed = True
        for name in list(self._timers):
            self._clear(name)
        await self._tasks.close()

    # What is due ----------------------------------------------------------------------------------------------------

    def _terms(self, lobby: Lobby) -> Terms:
        config = self._core.projects.config(lobby.project_id, lobby.config)
        return Terms(config.silence_ms, config.heartbeat, self._host_grace_ms)

    async def _heal(self, lobby_id: str) -> None:
        core = self._core
        lobby = core.books.lobbies.get(lobby_id)
        if lobby is None or core.away:
            return
        await core.refresh([lobby.project_id])
        core.awake(now_ms())
        self._do_due(lobby_id, now_ms())
        await core.commit()

    def _do_due(self, lobby_id: str, now: int) -> None:
        """Lobbies are looked up anew at each step: what is done to one player may end it."""
        core = self._core
        lobby = core.books.lobbies.get(lobby_id)
        if lobby is None:
            return
        found = due(lobby, core.presence, self._terms(lobby), now)
        for player in found.silent:
            if (lobby := core.books.lobbies.get(lobby_id)) is not None and lobby.player(player) is not None:
                core.presence.forget_player(lobby_id, player)
                core.desk.take_out(lobby, player, now, "gave no sign of life")
        lobby = core.books.lobbies.get(lobby_id)
        if lobby is not None and found.host is not None and lobby.player(found.host) is not None:
            core.desk.new_host(lobby, found.host, now, "the host's connection broke")
        lobby = core.books.lobbies.get(lobby_id)
        if lobby is not None and found.gave_up and lobby.status == "in_queue":
            core.matches.give_up(lobby, now, "no match in time")
        core.matches.try_fresh(now)

    async def _unconfirmed(self, match_id: str) -> None:
        core = self._core
        if core.away:
            return
        core.awake(now_ms())
        match, now = core.books.matches.get(match_id), now_ms()
        if match is None or match.status != "found" or match.confirm_until is None or match.confirm_until > now:
            return
        core.matches.unconfirmed(match, now)
        core.matches.try_fresh(now)
        await core.commit()
