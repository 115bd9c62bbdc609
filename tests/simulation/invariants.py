"""What never may be (looked at after every commit), and what must become true once nothing goes wrong any more.

`Invariants.problems` lists what is not yet as it should be; after the last fault, none of them may last longer than its
bound.
"""

import asyncio
import json
import sqlite3
from collections import Counter
from typing import TYPE_CHECKING, Any

from fleet.billing.intervals import Facts, Run, step
from fleet.node.runtime import RunKey
from fleet.times import now_ms

if TYPE_CHECKING:
    from tests.simulation.cloud import Machine
    from tests.simulation.world import World

LOOK_S = 5.0
PASSING_S = 40.0  # games that crash, and are begun again, are always on their way
TASKS, TASKS_EACH = 24, 3  # of one process, when all is quiet: its loops, and what follows each server
COST_REASONS = ("pool_surplus", "pool_replaced", "pool_expired", "surplus")
# Seconds after the last fault, by docs/timeouts.md and this world's settings.
UNSEEN_S = 180.0 + 25.0  # a node that the manager has not seen since its start counts as lost then; it starts in 20 s
LOST_S = 60.0 + 13.0 + 5.0  # an agent that falls silent now: noticed, begun anew, lost, planned
BOUNDS = {
    "row": UNSEEN_S,
    "told": 60.0,  # by an agent that is up: two of its passes, 15 s apart, and its calls
    "stop": UNSEEN_S,
    "queued": 120.0 + 15.0 + 10.0,  # its deadline, a node that has just come back, the repair timer
    "placed": 120.0 + LOST_S,
    "preparing": UNSEEN_S,
    "creating": 180.0 + LOST_S,
    "booting": UNSEEN_S,  # its deadline is 60 s once its node is heard
    "ttl": UNSEEN_S,  # seen later by a manager that starts meanwhile
    "leak": UNSEEN_S,
    "pool": UNSEEN_S,
    "match": 240.0,
    "matched": 30.0,  # sweeps come each second; their writer may have to be begun anew
}


class Invariants:
    def __init__(self, world: "World") -> None:
        self._world = world
        self.broken: list[str] = []
        self._connection: sqlite3.Connection | None = None
        self._seen: dict[str, dict[str, Any]] = {}
        self._since: dict[str, float] = {}
        self._newest = 0
        self.settled_s: float | None = None

    def broke(self, text: str) -> None:
        self._world.note(f"BROKEN: {text}")
        if not any(known.endswith(text) for known in self.broken):
            self.broken.append(f"{self._world.clock.now:8.2f} s  {text}")

    def rows(self, query: str, *values: Any) -> list[dict[str, Any]]:
        if self._connection is None:
            self._connection = sqlite3.connect(self._world.database.path)
            self._connection.row_factory = sqlite3.Row
        return [dict(row) for row in self._connection.execute(query, values).fetchall()]

    async def region_of(self, name: str) -> str:
        found = self.rows("SELECT region FROM server WHERE instance_id = ?", name)
        return found[0]["region"] if found else "us-east"

    # Safety ---------------------------------------------------------------------------------------------------------

    def committed(self) -> None:
        """Every row that has changed is looked at with what it was before."""
        changed = self.rows("SELECT * FROM server WHERE updated_at >= ?", self._newest - 2000)
        for row in changed:
            before = self._seen.get(row["instance_id"])
            if before == row:
                continue
            self._seen[row["instance_id"]] = row
            self._newest = max(self._newest, row["updated_at"])
            self._changed(before, row)

    def _changed(self, before: dict[str, Any] | None, row: dict[str, Any]) -> None:
        name = row["instance_id"]
        self._judge_ports(row)
        if before is not None:
            if before["pool_claimed_at"] is not None and before["pool_claimed_at"] != row["pool_claimed_at"]:
                self.broke(f"server {name} was claimed twice")
            if before["status"] == "stopped" and row["status"] != "stopped":
                self.broke(f"server {name} was stopped, and is {row['status']} again")
            if before["generation"] > row["generation"]:
                self.broke(f"server {name} went back to an earlier generation")
        if row["status"] != "stopped" or (before is not None and before["status"] == "stopped"):
            return
        reason = row["stop_reason"]
        owned = not row["is_pool_server"] or row["pool_claimed_at"] is not None
        if owned and reason in COST_REASONS:
            self.broke(f"server {name} is somebody's, and was stopped to save cost ({reason})")
        if reason == "no_capacity":
            self._judge_capacity(row)
        if reason == "never_ready":
            self._judge_never_ready(row)
        if reason == "node_lost" and self._world.calm > 240:
            machine = self._machine_of(row)
            one = machine.engine.containers.get(RunKey(name, row["generation"])) if machine else None
            if one is not None and one.ended_at is None:
                self.broke(f"server {name} is called lost, and runs, and nothing was wrong")

    def _judge_ports(self, row: dict[str, Any]) -> None:
        """No two whose games run on a machine tell players the same port."""
        mine = _ports(row) if self._runs(row) else set[tuple[Any, Any]]()
        for other in self._seen.values() if mine else ():
            if other["instance_id"] != row["instance_id"] and other["node_id"] == row["node_id"]:
                for port in mine & _ports(other) if self._runs(other) else ():
                    self.broke(f"servers {row['instance_id']} and {other['instance_id']} have the same port {port}")

    def _runs(self, row: dict[str, Any]) -> bool:
        machine = self._machine_of(row)
        run = machine.engine.containers.get(RunKey(row["instance_id"], row["generation"])) if machine else None
        return run is not None and run.ended_at is None

    def _judge_capacity(self, row: dict[str, Any]) -> None:
        """Whoever waits for room is given his time by a manager that could have placed him."""
        world = self._world
        manager = world.cloud.actors.get(f"region:{row['region']}")
        up_s = world.clock.now - manager.up_at if manager is not None and manager.state == "up" else 0.0
        size = {"small": 1024, "medium": 2048}[row["compute_size"]]
        room = [
            one.name
            for one in world.cloud.of(row["region"])
            if one.agent is not None
            and one.agent.state == "up"
            and not one.cut
            and not one.agent.process.stopped
            and one.share.memory_mb - sum(c.memory_mb for c in one.engine.running()) >= size
        ]
        deadline_s = world.settings.servers.queue_deadline_s
        if room and up_s < 0.8 * deadline_s:
            kind = "auto_restart " if row["auto_restart"] else ""
            self.broke(
                f"{kind}server {row['instance_id']} was ended for want of room {up_s:.0f} s after its manager came up "
                f"(its time is {deadline_s:.0f} s), while {', '.join(room)} had room (generation {row['generation']})"
            )

    def _judge_never_ready(self, row: dict[str, Any]) -> None:
        machine = self._machine_of(row)
        one = machine.engine.containers.get(RunKey(row["instance_id"], row["generation"])) if machine else None
        if one is not None and one.ready_at is not None and now_ms() - one.ready_at > 60_000:
            ready_s = (now_ms() - one.ready_at) / 1000
            self.broke(f"server {row['instance_id']} was ended as never ready; it was ready {ready_s:.0f} s ago")

    def _machine_of(self, row: dict[str, Any]) -> "Machine | None":
        name = (row["node_id"] or "@").split("@")[1]
        return next((one for one in self._world.cloud.machines if one.name == name), None)

    # Liveness -------------------------------------------------------------------------------------------------------

    def problems(self) -> dict[str, str]:
        """What is not as it should be: by a text that stays the same while it lasts, the bound that it has."""
        live = self.rows("SELECT * FROM server WHERE step != 'stopped'")
        found: dict[str, str] = {}
        owned = {row["instance_id"]: row for row in live}
        now = now_ms()
        for row in live:
            self._look_at_row(row, now, found)
        for machine in self._world.cloud.machines:
            if not machine.gone:
                self._look_at_machine(machine, owned, found)
        self._look_at_pools(live, found)
        self._look_at_matches(owned, found)
        return found

    def _look_at_row(self, row: dict[str, Any], now: int, found: dict[str, str]) -> None:
        name = f"server {row['instance_id']}.{row['generation']} ({row['region']})"
        machine = self._machine_of(row)
        run = machine.engine.containers.get(RunKey(row["instance_id"], row["generation"])) if machine else None
        if row["status"] == "stopped":
            found[f"{name}: its stop is not finished"] = "stop"
        elif row["status"] == "running":
            if machine is None or run is None:
                found[f"{name}: its row says running, it is on no machine"] = "row"
            elif run.ended_at is not None:
                self._look_at_ended(name, machine, found)
            begins = row["pool_claimed_at"] or row["started_at"]
            idle = row["is_pool_server"] and row["pool_claimed_at"] is None
            if row["ttl"] and not idle and begins + row["ttl"] * 1000 < now:
                found[f"{name}: its ttl has passed"] = "ttl"
        elif not (row["step"] == "queued" and row["retry_at"] and row["retry_at"] > now):
            found[f"{name}: it is {row['step']}"] = row["step"]

    def _look_at_ended(self, name: str, machine: "Machine", found: dict[str, str]) -> None:
        agent = machine.agent
        heard = agent is not None and agent.state == "up" and not agent.process.stopped and not machine.cut
        how = f"whose agent {agent.name} is up" if heard and agent else "which has no agent"
        text = f"{name}: its row says running, its game has ended on {machine.name}, {how}"
        found[text] = "told" if heard else "row"

    def _look_at_machine(self, machine: "Machine", owned: dict[str, dict[str, Any]], found: dict[str, str]) -> None:
        for one in machine.engine.containers.values():
            row = owned.get(one.key.instance_id)
            if row is None or row["generation"] != one.key.generation or row["status"] == "stopped":
                how = "runs" if one.ended_at is None else "lies"
                found[f"container {one.key} {how} on {machine.name}, and belongs to nobody"] = "leak"
        used = {one.network for one in machine.engine.running()}
        spare = [name for name in machine.engine.networks if name not in used]
        if len(spare) > self._world.settings.node.warm_networks:
            found[f"networks of nobody on {machine.name}"] = "leak"

    def _look_at_pools(self, live: list[dict[str, Any]], found: dict[str, str]) -> None:
        for project, count in self._wished().items():
            entries = [
                row
                for row in live
                if row["project_id"] == project
                and row["is_pool_server"]
                and row["pool_claimed_at"] is None
                and row["status"] == "running"
            ]
            if len(entries) < count:
                found[f"pool of {project}: it has too few of {count}"] = "pool"

    def _wished(self) -> dict[str, int]:
        """What each project's settings say: a change of them may have failed."""
        found: dict[str, int] = {}
        for row in self.rows("SELECT id, settings FROM project"):
            pools = json.loads(row["settings"]).get("pool_config")
            found[row["id"]] = pools["regions"]["us-east"]["small"]["count"] if pools else 0
        return found

    def _look_at_matches(self, owned: dict[str, dict[str, Any]], found: dict[str, str]) -> None:
        matches = {
            row["match_id"]: row for row in self.rows("SELECT * FROM match WHERE status NOT IN ('ended', 'failed')")
        }
        for row in matches.values():
            if row["status"] != "active":
                found[f"match {row['match_id']} is {row['status']}"] = "match"
            elif row["server_id"] not in owned or owned[row["server_id"]]["status"] == "stopped":
                found[f"match {row['match_id']} is active, its server is not"] = "match"
        queues: dict[tuple[str, str], list[str]] = {}
        for row in self.rows("SELECT * FROM lobby ORDER BY id"):
            if row["status"] not in ("waiting", "in_queue") and row["match_id"] not in matches:
                found[f"lobby {row['id']} is {row['status']}, its match is over"] = "match"
            if row["status"] == "in_queue":
                mode = json.loads(row["state"])["queued"][0]
                queues.setdefault((row["project_id"], mode), []).append(row["id"])
        for (project, mode), waiting in queues.items():
            if len(waiting) > 1:
                found[f"lobbies {waiting[0]} and {waiting[1]} of {project} wait for each other in {mode}"] = "matched"
        for row in owned.values():
            over = row["match_id"] and row["match_id"] not in matches and row["status"] != "stopped"
            if over:
                found[f"server {row['instance_id']} serves match {row['match_id']}, which is over"] = "match"

    async def watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            now, found = self._world.clock.now, self.problems()
            self._since = {text: self._since.get(text, now) for text in found}

    async def settle(self, quiet_s: float) -> None:
        """Until nothing is left to be mended; what lasts longer than its bound is broken."""
        world = self._world
        began = world.clock.now
        while world.clock.now - began < quiet_s:
            await asyncio.sleep(LOOK_S)
            problems = self.problems()
            for text, bound in problems.items():
                lasted = world.clock.now - max(began, self._since.get(text, world.clock.now))
                if lasted > BOUNDS[bound]:
                    self.broke(f"{text}, {lasted:.0f} s after the last fault")
            if self.broken:
                return
            now = world.clock.now
            if not any(now - max(began, self._since.get(text, now)) >= PASSING_S for text in problems):
                if self.settled_s is None:
                    self.settled_s = now - began
                if now - began > 60.0:
                    return
            else:
                self.settled_s = None
        world.note("left at the end: " + "; ".join(self.problems()))

    def at_end(self) -> None:
        """Whatever was acknowledged is there; what runs is billed, and nothing else is; nobody gathers tasks."""
        work = self._world.workload
        known = {row["instance_id"]: row for row in self.rows("SELECT * FROM server")}
        for name in work.started - known.keys():
            self.broke(f"server {name} was acknowledged, and is not there")
        for name in work.stopped & known.keys():
            if known[name]["status"] != "stopped":
                self.broke(f"server {name} was stopped, acknowledged, and is {known[name]['status']}")
        for name in work.data.keys() & known.keys():
            kept = json.loads(known[name]["custom_data"] or "null")
            if kept not in work.data[name]:
                self.broke(f"server {name} has {kept}, and was told {work.data[name][0]}")
        billed = {name for name, run in self._stories().items() if run.since is not None}
        running = {name for name, row in known.items() if row["step"] == "running"}
        for name in billed ^ running:
            what = "is billed, and does not run" if name in billed else "runs, and is not billed"
            self.broke(f"server {name} {what}")
        self._judge_tasks(len(running))

    def _stories(self) -> dict[str, Run]:
        """Where the journal leaves each server, by the rules of the bill."""
        found: dict[str, Run] = {}
        facts = Facts("", "", "", pool=False)
        for row in self.rows("SELECT * FROM serverevent ORDER BY id"):
            found[row["instance_id"]] = step(found.get(row["instance_id"], Run()), facts, row["type"], row["at"])[0]
        return found

    def _judge_tasks(self, running: int) -> None:
        counts = Counter(getattr(task, "process", None) for task in asyncio.all_tasks())
        for process, count in counts.items():
            if process is not None and not process.dead and count > TASKS + TASKS_EACH * running:
                self.broke(f"{process.name} has {count} tasks for {running} servers")


def _ports(row: dict[str, Any]) -> set[tuple[Any, Any]]:
    """(port, protocol) that players are told, of a server that has its place on a machine."""
    if row["step"] == "stopped" or row["node_id"] is None:
        return set()
    told = json.loads(row["network_ports"] or "[]")
    return {(port["external_port"], port["protocol"]) for port in told if port.get("external_port")}
