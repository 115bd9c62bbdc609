"""Is every server what its row says? A pure judgement over what was seen of database, engines, games and processes."""

import json
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from fleet.store.lobby_tables import Lobby, Match
from fleet.store.tables import Server
from tests.chaos.storm.ledger import Ledger, Started
from tests.chaos.storm.load import POOL, TTL_S
from tests.chaos.storm.world import PER_REGION, REGIONS

# What nobody's command and no fault of ours explains is a loss.
ENDS_OF_OTHERS = ("requested", "project_deleted")
TTL_SLACK_S = 3.0
# docs/timeouts.md, node: containers that were created and not started, the log of an ended one that is copied; folders.
GRACES = {"created": 150.0, "exited": 130.0}
FOLDER_S = 1300.0


@dataclass(frozen=True, slots=True)
class Finding:
    """`lost`, `twice`: never mends. `leaked`, `unsettled`: wrong only if it stays beyond the bound.

    `grace_s`: what docs/timeouts.md gives this very thing beyond that, since nobody is worse off for it. `about`: whose
    promise was broken, an instance id or a player; told once, nothing more is expected of it.
    """

    kind: str
    what: str
    grace_s: float = 0.0
    about: str = ""

    @property
    def for_good(self) -> bool:
        return self.kind in ("lost", "twice")


@dataclass
class Seen:
    """Everything at about one moment. `answers`: of games by instance id, None where there was none in time."""

    at: float
    rows: dict[str, Server]
    containers: list[dict[str, str]]
    folders: set[str]  # "<instance id>.<generation>"
    answers: dict[str, dict[str, Any] | None]
    lobbies: list[Lobby]
    matches: list[Match]
    claims: dict[str, int]  # of servers with more than one
    per_match: dict[str, int]  # servers of matches with more than one
    programs: Counter[str]
    stopped: list[str] = field(default_factory=list[str])  # programs that stand still
    listening: bool = True
    problems: list[str] = field(default_factory=list[str])  # what could not be looked at


def judge(seen: Seen, ledger: Ledger) -> list[Finding]:
    found = [Finding("unsettled", f"cannot be looked at: {problem}") for problem in seen.problems]
    if seen.problems:
        return found
    found += [Finding("twice", what) for what in ledger.twice]
    found += [Finding("twice", f"{name} was claimed {times} times") for name, times in seen.claims.items()]
    found += [Finding("twice", f"match {name} has {times} servers") for name, times in seen.per_match.items()]
    found += _programs(seen)
    found += _runs(seen)
    for one in ledger.open:
        found += _promised(one, seen, ledger)
    found += _pools(seen)
    found += _matches(seen)
    found += _lobbies(seen, ledger)
    return found


def _programs(seen: Seen) -> list[Finding]:
    """Everybody is there who should be, though nobody has asked for anything."""
    wanted = {"agent": PER_REGION * len(REGIONS), "manager": len(REGIONS), "replica": 2, "proxy": 1, "supervisor": 1}
    if seen.lobbies or any(match.status not in ("ended", "failed") for match in seen.matches):
        wanted["lobby manager"] = 1
    found = [
        Finding("unsettled", f"{seen.programs[name]} of {number} processes: {name}")
        for name, number in wanted.items()
        if seen.programs[name] < number
    ]
    found += [Finding("unsettled", f"stands still: {name}") for name in seen.stopped]
    return found if seen.listening else [*found, Finding("unsettled", "the API's port is shut")]


def _runs(seen: Seen) -> list[Finding]:
    """Each live row has its one run, and each run and folder its live row."""
    found: list[Finding] = []
    runs: dict[str, list[dict[str, str]]] = {}
    for container in seen.containers:
        if container["server"]:
            runs.setdefault(container["server"], []).append(container)
    for name, row in seen.rows.items():
        if row.status == "stopped" and row.step == "stopped":
            continue
        short = f"{name[:8]}.{row.generation} of {row.region}"
        if row.step != "running":
            found.append(Finding("unsettled", f"{short} is {row.step}, {row.stop_reason or 'on its way'}"))
            continue
        mine = [run for run in runs.get(name, ()) if run["generation"] == str(row.generation)]
        if [run["state"] for run in mine] not in (["running"], ["paused"]):
            places = ", ".join(f"{run['state']} on {run['machine']}" for run in mine)
            found.append(Finding("unsettled", f"{short} runs, but its container is {places or 'gone'}"))
        elif name in seen.answers and seen.answers[name] is None:
            found.append(Finding("unsettled", f"{short} runs, but its game does not answer"))
    for name, ones in runs.items():
        row = seen.rows.get(name)
        for run in ones:
            if (
                row is None
                or (row.status, row.step) == ("stopped", "stopped")
                or run["generation"] != str(row.generation)
            ):
                grace_s = GRACES.get(run["state"], 0.0)
                found.append(Finding("leaked", f"container {name[:8]}.{run['generation']} ({run['state']})", grace_s))
    for folder in seen.folders:
        name, _, generation = folder.rpartition(".")
        row = seen.rows.get(name)
        if row is None or row.step == "stopped" or generation != str(row.generation):
            found.append(Finding("leaked", f"folder {folder}", FOLDER_S))
    used = {run["network"] for run in seen.containers if run["network"]}
    warm = [box for box in seen.containers if box["sandbox"] and box["sandbox"] not in used]
    if len(warm) > 4 * PER_REGION * len(REGIONS):
        found.append(Finding("leaked", f"{len(warm)} networks that no game uses"))
    return found


def _promised(one: Started, seen: Seen, ledger: Ledger) -> list[Finding]:
    """What was acknowledged for this server holds."""
    row = seen.rows.get(one.instance_id)
    short = f"{one.how} {one.instance_id[:8]}"

    def lost(how: str) -> Finding:
        return Finding("lost", f"{short} {how}", about=one.instance_id)

    if row is None:
        return [lost("was acknowledged and has no row")]
    gone = row.status == "stopped"
    if one.stop == "acknowledged":
        return [] if gone else [lost(f"was stopped and is {row.step}")]
    if gone:
        return [] if _explained(one, row, ledger) else [lost(f"ended: {_end(row)}")]
    if _overdue(one, seen):
        return [Finding("unsettled", f"{short} outlives its ttl")]
    found: list[Finding] = []
    if one.data is not None and row.custom_data not in (one.data, *one.maybe):
        found.append(lost(f"has custom_data {row.custom_data}, acknowledged was {one.data}"))
    answer = seen.answers.get(one.instance_id)
    if one.player and answer and not one.hit and one.player not in answer["players"]:
        found.append(lost(f"is another process now, generation {row.generation}"))
    return found


def _explained(one: Started, row: Server, ledger: Ledger) -> bool:
    if one.stop or one.hit or one.how == "match":
        return True
    if one.ttl and row.stop_reason == "ttl":
        return ledger.clock_stepped or time.monotonic() - one.at > one.ttl - TTL_SLACK_S
    return False


def _end(row: Server) -> str:
    return f"{row.stop_reason}, exit code {row.exit_code}, {(row.stop_detail or '')[:200]!r}"


def _overdue(one: Started, seen: Seen) -> bool:
    return bool(one.ttl and one.running_at and seen.at - one.running_at > TTL_S + TTL_SLACK_S)


def _pools(seen: Seen) -> list[Finding]:
    warm = Counter(
        row.region
        for row in seen.rows.values()
        if row.is_pool_server and row.pool_claimed_at is None and row.status == "running"
    )
    return [
        Finding("unsettled", f"{warm[region]} warm servers in {region}, wanted are {POOL}")
        for region in REGIONS
        if warm[region] != POOL
    ]


def _matches(seen: Seen) -> list[Finding]:
    """Each match has ended, or it runs on a server that does."""
    found: list[Finding] = []
    for match in seen.matches:
        if match.status in ("ended", "failed"):
            continue
        row = seen.rows.get(match.server_id or "")
        if match.status != "active" or row is None or row.status != "running":
            state = row.step if row else "none"
            found.append(Finding("unsettled", f"match {match.match_id[:8]} is {match.status}, its server {state}"))
    return found


def _lobbies(seen: Seen, ledger: Ledger) -> list[Finding]:
    found: list[Finding] = []
    playing = {match.match_id for match in seen.matches if match.status not in ("ended", "failed")}
    lobbies = {lobby.host: lobby for lobby in seen.lobbies}
    for lobby in seen.lobbies:
        if lobby.status not in ("waiting", "in_queue", "in_game"):
            found.append(Finding("unsettled", f"lobby {lobby.id[:8]} is {lobby.status}"))
        elif lobby.status == "in_game" and lobby.match_id not in playing:
            found.append(Finding("unsettled", f"lobby {lobby.id[:8]} plays a match that is over"))
    for player, promised in ledger.lobbies.items():
        lobby = lobbies.get(player)
        if lobby is None or lobby.id != promised["id"]:
            found.append(Finding("lost", f"the lobby of {player} is gone", about=player))
        elif promised["mark"] not in json.dumps(lobby.state):
            found.append(Finding("lost", f"the state of {player} is gone", about=player))
    return found
