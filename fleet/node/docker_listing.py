"""The engine's rows and descriptions of containers → what was observed. Pure."""

from typing import Any

from fleet.node.docker_spec import NETWORK, ports_of, time_ms
from fleet.node.runtime import Observed, RunKey


def is_running(row: dict[str, Any]) -> bool:
    return row["State"] in ("running", "paused", "restarting")


def of_running(key: RunKey, row: dict[str, Any]) -> Observed:
    """From a row of the engine's list."""
    return _observed(
        key, row["Labels"], running=True, started_at=row["Created"] * 1000, frozen=row["State"] == "paused"
    )


def of_details(key: RunKey, labels: dict[str, str], state: dict[str, Any]) -> Observed:
    """From the engine's description of one that did not run when it was listed."""
    ended = state["Status"] in ("exited", "dead")
    return _observed(
        key,
        labels,
        running=state["Running"],
        started_at=time_ms(state["StartedAt"]),
        ended_at=time_ms(state["FinishedAt"]) if ended else None,
        exit_code=state["ExitCode"] if ended else None,
        oom=bool(state["OOMKilled"]),
    )


def _observed(key: RunKey, labels: dict[str, str], **state: Any) -> Observed:
    return Observed(
        key=key,
        ports=ports_of(labels),
        labels=labels,
        memory_mb=int(labels["fleet.memory"]),
        cpus=float(labels["fleet.cpus"]),
        network=labels.get(NETWORK),
        **state,
    )
