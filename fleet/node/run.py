"""One run as its node knows it, and what a developer is told of a run that does not start."""

import asyncio
import re

from fleet.node.duty import Duty
from fleet.node.model import RunView
from fleet.node.runtime import Exited, Readiness, RunKey

_INIT_REFUSED = re.compile(r"\[FATAL tini \(\d+\)\] exec (.+) failed: (.+)")


class Run:
    """`task` is the launch, then the wait for its ports. `temperature` is held while it is frozen or thawed.

    `network`: the warm one that it has joined, to be dropped after its end. `said_ready`: nobody waits for its word.
    `stopping`: it has been asked to end. `forgetting`: the region knows its end.
    """

    def __init__(self, view: RunView, *, ready_by_game: bool = False) -> None:
        self.view = view
        self.said_ready = asyncio.Event()
        if not ready_by_game:
            self.said_ready.set()
        self.task: asyncio.Task[None] | None = None
        self.ended = asyncio.Event()
        self.temperature = asyncio.Lock()
        self.network: str | None = None
        self.stopping = False
        self.forgetting = False
        self.stop = Duty("stop_run", run=str(view.key))
        self.forget = Duty("forget_run", run=str(view.key))

    @property
    def key(self) -> RunKey:
        return self.view.key


def start_refused(exited: Exited) -> str | None:
    """What a developer should know if the container's init could not execute the game at all."""
    found = _INIT_REFUSED.search(exited.tail) if exited.exit_code in (126, 127) else None
    if found is None:
        return None
    program, why = found.groups()
    return f"{program} could not be executed ({why}). If it is a script, its '#!' line names a program that is missing."


def waiting_for(seen: Readiness, *, said_ready: bool = True) -> str:
    """What a booting run waits for, in a developer's words."""
    parts = [f"{p.name} ({p.internal}/{p.protocol}) is not open" for p in seen.missing]
    parts += [
        f"{p.name} ({p.internal}/{p.protocol}) is bound to the container's loopback, so players cannot reach it: "
        "bind 0.0.0.0"
        for p in seen.loopback
    ]
    if not said_ready:
        parts.append(
            "the game has not said that it is ready (POST $PLAYFLOW_AGENT_URL/ready), which its build asks for"
        )
    return "; ".join(parts)
