"""The region's decisions: plan(desired, observed, now) -> actions. Pure; no clock, no I/O.

The desired side is the rows that are not finished, the observed side what the nodes report. Every event plans the
one server it concerns; the repair timer plans all of them with the same functions, so a missed event is only late.

Times are counted fairly: a deadline begins when somebody could have kept it, so not while there was no manager, and
for what only a node can see not while that node was silent. What agents say of times is taken only between the
beginning of the server's step and now, since their machines' clocks may be off.
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
FRESH_MS = 15_000  # a node that is back for so long may have room that nobody has looked at yet


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
    return actions + plan_runs(owned, runs)


def plan_runs(
    owned: Mapping[str, Server], runs: Mapping[RunKey, RunView], rivals: Iterable[RunView] = ()
) -> list[Action]:
    """The end of the runs that nobody owns: those of no live server, those of a server's other generations, and those
    that a node tells of though the row has them elsewhere."""
    actions: list[Action] = [_release(rival) for rival in rivals]
    for key, run in runs.items():
        server = owned.get(key.instance_id)
        if server is None or key.generation != server.generation:
            actions.append(_release(run))
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
    if run is not None and not run.state.ended and _lost(server, run, nodes, now, policy):
        run = None  # whatever it was told last: nobody can say that it lives
    if server.status == "stopped":
        return _plan_stopped(server, run, nodes, now, policy)
    if server.status == "launching" and (expiry := _launch_expiry(server, policy)) is not None and now >= expiry:
        return _expired(server, run, now)
    if run is None:
        return _plan_without_run(server, nodes, now, policy)
    if run.state.ended:
        return [*_plan_ended(server, run, now, policy), Forget(run.key, run.node_id)]
    return _plan_alive(server, run, nodes.get(run.node_id), now, policy)


def deadline(server: Server, now: int, policy: Policy) -> int | None:
    """When this server needs planning again though nothing happens; None if never."""
    if server.status == "stopped":
        return None
    if server.step == "running":
        return _expiry(server) if server.ttl else None
    if server.step == "queued" and server.retry_at is not None and now < server.retry_at:
        return server.retry_at
    begins = _queued_since(server, policy) if server.step == "queued" else _acting_since(server, None, policy)
    at = begins + _step_limit_ms(server.step, policy)
    expiry = _launch_expiry(server, policy)
    return at if expiry is None else min(at, expiry)


def _step_limit_ms(step: str, policy: Policy) -> int:
    """How long a launching server may be in a step."""
    limits = {
        "preparing": policy.prepare_deadline_ms,
        "creating": policy.create_deadline_ms,
        "booting": policy.ready_deadline_ms,
    }
    return limits.get(step, policy.queue_deadline_ms)


def _acting_since(server: Server, node: NodeView | None, policy: Policy) -> int:
    """Since when this manager has been able to see to the server's present step."""
    heard = node.synced_since if node is not None else None
    return max(server.step_at, policy.watching_since, heard or 0)


def _queued_since(server: Server, policy: Policy) -> int:
    return max(_acting_since(server, None, policy), server.retry_at or 0)


def told_at(server: Server, at: int, now: int) -> int:
    """When something happened, as a node tells: not before the server's step began, not in the future."""
    return max(server.step_at, min(at, now))


def _expiry(server: Server) -> int:
    # A pool server's time begins when somebody has it.
    begins = server.pool_claimed_at or server.started_at or server.updated_at
    return begins + (server.ttl or 0) * 1000


def _launch_expiry(server: Server, policy: Policy) -> int | None:
    """A ttl counts from the start of the game; one that has not started by then is not wanted any more. A launch may
    wait for a node as long as any, however short its ttl."""
    if not server.ttl:
        return None
    return max(server.launched_at, policy.watching_since) + max(server.ttl * 1000, policy.queue_deadline_ms)


def _expired(server: Server, run: RunView | None, now: int) -> list[Action]:
    alive = run is not None and not run.state.ended
    detail = f"Its ttl of {server.ttl} s has passed."
    end = End(server.instance_id, now, "ttl", "TTL_EXPIRED", detail, gone=server.node_id is None and not alive)
    return [end, StopRun(run.key, run.node_id)] if run is not None and alive else [end]


def _release(run: RunView) -> Action:
    return Forget(run.key, run.node_id) if run.state.ended else StopRun(run.key, run.node_id)


def _lost(server: Server, run: RunView, nodes: Mapping[str, NodeView], now: int, policy: Policy) -> bool:
    """Whether a run that was alive when its node was last heard counts as gone with it.

    A silent agent is begun anew first (`leases.py`, which then says `lost`), so only a much longer silence does alone.
    """
    node = nodes.get(run.node_id)
    if node is None:
        return _unseen(server, now, policy)
    silence_ms = 0 if node.synced else now - (node.unsynced_since or now)
    return node.lost or silence_ms >= policy.node_lost_ms + policy.node_unseen_ms


def _unseen(server: Server, now: int, policy: Policy) -> bool:
    """Whether the server's node has been unknown for so long that it is not only late."""
    return now - _acting_since(server, None, policy) >= policy.node_unseen_ms


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
        at = told_at(server, run.at, now) if run else now
        actions.append(Finish(server.instance_id, at, run.exit_code if run else None))
    if run is not None:
        actions.append(Forget(run.key, run.node_id))
    return actions


def _host_answered(server: Server, nodes: Mapping[str, NodeView], now: int, policy: Policy) -> bool:
    """Whether the absence of a run is known: its node has told its list, or is lost for good."""
    node = nodes.get(server.node_id or "")
    if node is None:
        return _unseen(server, now, policy)
    return node.synced or node.lost or now - (node.unsynced_since or now) >= policy.node_lost_ms


def _plan_without_run(server: Server, nodes: Mapping[str, NodeView], now: int, policy: Policy) -> list[Action]:
    if server.step == "queued":
        return _plan_queued(server, nodes, now, policy)
    node = nodes.get(server.node_id or "")
    if node is not None and node.synced and server.step != "running":
        if now - _acting_since(server, node, policy) < policy.queue_deadline_ms:
            return [Launch(server.instance_id)]
        return [_late(server, "Its node could not launch it.", now, policy)]
    if not _host_answered(server, nodes, now, policy):
        return []
    if node is not None and node.synced:
        detail = "Its container vanished from the node."
    else:
        detail = "Its node does not answer any more."
    if server.auto_restart or server.status == "launching":
        crashes = list(server.crashes or [])
        return [Requeue(server.instance_id, now, "node_lost", now, detail, None, crashes, now)]
    return [End(server.instance_id, now, "node_lost", "SHUTDOWN_SIGNAL", detail)]


def _plan_queued(server: Server, nodes: Mapping[str, NodeView], now: int, policy: Policy) -> list[Action]:
    if server.retry_at is not None and now < server.retry_at:
        return []
    late = now - _queued_since(server, policy) >= policy.queue_deadline_ms
    if not late or any(node.synced and now - (node.synced_since or 0) < FRESH_MS for node in nodes.values()):
        return [Place(server.instance_id)]
    detail = "No node had room in time. Stop servers, choose a smaller size, or add nodes."
    return [End(server.instance_id, now, "no_capacity", "STARTUP_FAILURE_CAPACITY", detail)]


def _late(server: Server, detail: str, now: int, policy: Policy, *, gone: bool = True) -> End | Requeue:
    """A launch that has not come on in time."""
    return crash_verdict(
        server, now, "start_failed", detail, None, policy, gone=gone, now=now, shutdown="STARTUP_FAILURE_URL"
    )


def _plan_ended(server: Server, run: RunView, now: int, policy: Policy) -> list[Action]:
    name, at = server.instance_id, told_at(server, run.at, now)
    if run.state is RunState.FAILED:
        shutdown = run.reason or "STARTUP_FAILURE_EXECUTABLE"
        return [End(name, at, "start_failed", shutdown, run.message)]
    if run.exit_code == 0 and not run.oom:
        return [End(name, at, "exited", "PROCESS_EXITED", "", 0)]
    reason = "out_of_memory" if run.oom else "crashed"
    return [crash_verdict(server, at, reason, run.message, run.exit_code, policy, gone=True, now=now)]


def _plan_alive(server: Server, run: RunView, node: NodeView | None, now: int, policy: Policy) -> list[Action]:
    name = server.instance_id
    if run.stop_asked is not None:
        detail = f"The game asked to be stopped. {run.stop_asked}".strip()
        return [End(name, now, "exited", "PROCESS_EXITED", detail, gone=False), StopRun(run.key, run.node_id)]
    if server.status == "launching":
        return _plan_launching(server, run, node, now, policy)
    if run.silent:
        verdict = crash_verdict(server, now, "unhealthy", run.silent, None, policy, gone=False, now=now)
        return [verdict, StopRun(run.key, run.node_id)]
    if server.ttl and now >= _expiry(server):
        return _expired(server, run, now)
    return []


def _plan_launching(server: Server, run: RunView, node: NodeView | None, now: int, policy: Policy) -> list[Action]:
    """On to the step that its run has reached, or the end if it does not come on though its node looks at it."""
    if STEPS.index(run.state.value) > STEPS.index(server.step):
        return [Advance(server.instance_id, run.state.value, told_at(server, run.at, now))]
    if node is None or not node.synced:
        return []
    began = _acting_since(server, node, policy)
    if server.step == run.state.value and server.step != "booting":
        began = max(began, told_at(server, run.at, now))  # a node may tell that a download comes on
    if now - began < _step_limit_ms(server.step, policy):
        return []
    if server.step == "booting":
        detail = run.message or "The declared ports were not opened in time."
        verdict = crash_verdict(server, now, "never_ready", detail, None, policy, gone=False, now=now)
    else:
        detail = run.message or f"It was {server.step} for too long."
        verdict = _late(server, detail, now, policy, gone=False)
    return [verdict, StopRun(run.key, run.node_id)]
