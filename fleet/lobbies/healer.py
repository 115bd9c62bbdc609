"""One timer per lobby and per match that has a deadline. What is due is decided purely (`healing.py`); nothing scans.

A timer that comes early, because somebody gave a sign of life since, just asks when to come again.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog

from fleet.background import Background
from fleet.errors import FleetError
from fleet.lobbies import rules
from fleet.lobbies.healing import Terms, due
from fleet.lobbies.model import Lobby
from fleet.times import now_ms

if TYPE_CHECKING:
    from fleet.lobbies.core import Core

Work = Callable[[], Coroutine[Any, Any, None]]
log = structlog.get_logger(__name__)


class Healer:
    def __init__(self, core: "Core", host_grace_ms: int) -> None:
        self._core = core
        self._host_grace_ms = host_grace_ms
        self._timers: dict[str, tuple[int, asyncio.TimerHandle]] = {}
        self._background = Background("healer")

    def after_restart(self, now: int) -> None:
        """Lobbies in a queue are put there again; one whose match is not there waits."""
        core = self._core
        for lobby in list(core.books.lobbies.values()):
            if lobby.status == "in_queue":
                self._requeue(lobby, now)
            elif lobby.status != "waiting" and lobby.match_id not in core.books.matches:
                core.books.note(lobby.project_id, lobby.id, "match_lost", now, match=lobby.match_id)
                core.books.put(rules.free(lobby, now))

        for match in core.books.matches.values():
            core.matches.reopen(match)

    def _requeue(self, lobby: Lobby, now: int) -> None:
        try:
            self._core.matches.requeue(lobby)
        except FleetError as error:
            self._core.books.note(lobby.project_id, lobby.id, "queue_left", now, why=error.detail)
            self._core.books.put(rules.free(lobby, now))

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
        self._set(lobby.id, at, partial(self._heal, lobby.id))

    def arm_matches(self, match_ids: Iterable[str]) -> None:
        for match_id in match_ids:
            match = self._core.books.matches.get(match_id)
            waits = match is not None and match.status == "found"
            at = match.confirm_until if match is not None and waits else None
            self._set(match_id, at, partial(self._unconfirmed, match_id))

    def _set(self, name: str, at: int | None, work: Work) -> None:
        before = self._timers.get(name)
        if before is not None and before[0] == at:
            return
        self._clear(name)
        if at is None:
            return
        delay = max(0.0, (at - now_ms()) / 1000) + 0.001
        self._timers[name] = (at, asyncio.get_running_loop().call_later(delay, self._fire, name, work))

    def _fire(self, name: str, work: Work) -> None:
        self._timers.pop(name, None)
        self._background.spawn(work())

    def _clear(self, name: str) -> None:
        if (timer := self._timers.pop(name, None)) is not None:
            timer[1].cancel()

    async def close(self) -> None:
        for name in list(self._timers):
            self._clear(name)
        await self._background.close()

    # What is due ----------------------------------------------------------------------------------------------------

    def _terms(self, lobby: Lobby) -> Terms:
        config = self._core.projects.config(lobby.project_id, lobby.config)
        return Terms(config.silence_ms, config.heartbeat, self._host_grace_ms)

    async def _heal(self, lobby_id: str) -> None:
        core = self._core
        lobby = core.books.lobbies.get(lobby_id)
        if lobby is None:
            return
        await core.projects.refresh([lobby.project_id])
        self._do_due(lobby_id, now_ms())
        await core.commit()
        self.arm([lobby_id])

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
        core, now = self._core, now_ms()
        match = core.books.matches.get(match_id)
        if match is not None and match.status == "found" and match.confirm_until is not None:
            if match.confirm_until <= now:
                core.matches.unconfirmed(match, now)
                core.matches.try_fresh(now)
                await core.commit()
            else:
                self.arm_matches([match_id])
