"""The region's decisions: plan(desired, observed, now) -> actions. Pure; no clock, no I/O.

The desired side is the rows that are not finished, the observed side what the nodes report. Every event plans the
one server it concerns; the repair timer plans all of them with the same functions, so a missed event is only late.
"""

from collections.abc import Iterable, Mapping

from fleet.node.model import RunState, RunView
from fleet.node.runtime import RunKey
from fleet.region.crash import crash_verdict
from fleet.region.model import (
    Action,
    Advance,
    End,
    Finish,
    Forget,
    Launch,
    NodeView,
    Place,
    Policy,
    Requeue,
    StopRun,
)
from fleet.store.tables import Server

STEPS = ("queued", "placed", "preparing", "creating", "booting", "running")


def plan(
    servers: Iterable[Server],
    runs: Mapping[RunKey, RunView],
    nodes: Mapping[str, NodeView],
    now: int,
    policy: Policy,
) -> list[Action]:
    """Everything to do in a region: each server's own plan, and the runs that nobody owns."""
    actions: list[Action] = []
    owned: dict[str, Server] = {}
    for server in servers:
        owned[server.instance_id] = server
        actions += plan_server(server, runs.get(current(server)), nodes, now, policy)
    for key, run in runs.items():
        server = owned.get(key.instance_id)
        if server is None or key.generation != server.generation:
            actions += [_release(run)]
    return actions


def current(server: Server) -> RunKey:
    """The key of the run that the row speaks of."""
    return RunKey(server.instance_id, server.generation)


def plan_server(
    server: Server,
    run: RunView | None,
    nodes: Mapping[str, NodeView],
    now: int,
    policy: Policy,
) -> list[Action]:
    """What one server needs now, given its present generation's run (None: no node reports one)."""
    if server.status == "stopped":
        return _plan_stopped(server, run, nodes, now, policy)
    if run is None:
        return _plan_without_run(server, nodes, now, policy)
    if run.state.ended:
        return [*_plan_ended(server, run, now, policy), Forget(run.key, run.node_id)]
    return _plan_alive(server, run, now, policy)


def deadline(server: Server, now: int, policy: Policy) -> int | None:
    """When this server needs planning again though nothing happens; None if never."""
    if server.step == "queued":
        waiting = server.retry_at is not None and now < server.retry_at
        return server.retry_at if waiting else _queued_since(server) + policy.queue_deadline_ms
    if server.step == "booting":
        return server.step_at + policy.ready_deadline_ms
    if server.step == "running" and server.ttl:
        return _expiry(server)
    return None


def _queued_since(server: Server) -> int:
    return max(server.step_at, server.retry_at or 0)


def _expiry(server: Server) -> int:
    # A pool server's time begins when somebody has it.
    begins = server.pool_claimed_at or server.started_at or server.updated_at
    return begins + (server.ttl or 0) * 1000


def _release(run: RunView) -> Action:
    return Forget(run.key, run.node_id) if run.state.ended else StopRun(run.key, run.node_id)


def _plan_stopped(
    server: Server,
    run: RunView | None,
    nodes: Mapping[str, NodeView],
    now: int,
    policy: Policy,
) -> list[Action]:
    if run is not None and not run.state.ended:
        return [StopRun(run.key, run.node_id)]
    actions: list[Action] = []
    gone = run is not None or server.node_id is None or _host_answered(server, nodes, now, policy)
    if server.step != "stopped" and gone:
        actions.append(
            Finish(
                server.instance_id,
                run.at if run else now,
                run.exit_code if run else None,
            )
        )
    if run is not None:
        actions.append(Forget(run.key, run.node_id))
    return actions


def _host_answered(server: Server, nodes: Mapping[str, NodeView], now: int, policy: Policy) -> bool:
    """Whether the absence of a run is known: its node has told its list, or is lost for good."""
    node = nodes.get(server.node_id or "")
    if node is None:
        return now - max(server.step_at, policy.watching_since) >= policy.node_unseen_ms
    return node.synced or node.lost or now - (node.unsynced_since or now) >= policy.node_lost_ms


def _plan_without_run(server: Server, nodes: Mapping[str, NodeView], now: int, policy: Policy) -> list[Action]:
    if server.step == "queued":
        if server.retry_at is not None and now < server.retry_at:
            return []
        if now - _queued_since(server) >= policy.queue_deadline_ms:
            detail = "No node had room in time. Stop servers, choose a smaller size, or add nodes."
            return [
                End(
                    server.instance_id,
                    now,
                    "no_capacity",
                    "STARTUP_FAILURE_CAPACITY",
                    detail,
                )
            ]
        return [Place(server.instance_id)]
    node = nodes.get(server.node_id or "")
    if node is not None and node.synced and server.step != "running":
        if now - server.step_at < policy.queue_deadline_ms:
            return [Launch(server.instance_id)]
        return [
            End(
                server.instance_id,
                now,
                "start_failed",
                "STARTUP_FAILURE_URL",
                "Its node could not launch it.",
            )
        ]
    if not _host_answered(server, nodes, now, policy):
        return []
    if node is not None and node.synced:
        detail = "Its container vanished from the node."
    else:
        detail = "Its node does not answer any more."
    if server.auto_restart or server.status == "launching":
        return [
            Requeue(
                server.instance_id,
                now,
                "node_lost",
                now,
                detail,
                None,
                list(server.crashes or []),
            )
        ]
    return [End(server.instance_id, now, "node_lost", "SHUTDOWN_SIGNAL", detail)]


def _plan_ended(server: Server, run: RunView, now: int, policy: Policy) -> list[Action]:
    name = server.instance_id
    if run.state is RunState.FAILED:
        return [
            End(
                name,
                run.at,
                "start_failed",
                run.reason or "STARTUP_FAILURE_EXECUTABLE",
                run.message,
            )
        ]
    if run.exit_code == 0 and not run.oom:
        return [End(name, run.at, "exited", "PROCESS_EXITED", "", 0)]
    reason = "out_of_memory" if run.oom else "crashed"
    return [crash_verdict(server, run.at, reason, run.message, run.exit_code, policy, gone=True)]


def _plan_alive(server: Server, run: RunView, now: int, policy: Policy) -> list[Action]:
    name = server.instance_id
    if run.stop_asked is not None:
        detail = f"The game asked to be stopped. {run.stop_asked}".strip()
        return [End(name, now, "exited", "PROCESS_EXITED", detail, gone=False), StopRun(run.key, run.node_id)]
    if server.status == "launching":
        if STEPS.index(run.state.value) > STEPS.index(server.step):
            return [Advance(name, run.state.value, run.at)]
        if server.step == "booting" and now - server.step_at >= policy.ready_deadline_ms:
            detail = run.message or "The declared ports were not opened in time."
            verdict = crash_verdict(server, now, "never_ready", detail, None, policy, gone=False)
            return [verdict, StopRun(run.key, run.node_id)]
        return []
    if run.silent:
        return [
            crash_verdict(server, now, "unhealthy", run.silent, None, policy, gone=False),
            StopRun(run.key, run.node_id),
        ]
    if server.ttl and now >= _expiry(server):
        end = End(
            name,
            now,
            "ttl",
            "TTL_EXPIRED",
            f"Its ttl of {server.ttl} s has passed.",
            gone=False,
        )
        return [end, StopRun(run.key, run.node_id)]
    return []
