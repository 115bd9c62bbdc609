"""Kinds of faults: how often, how long, and within how many seconds docs promise that all is well again.

A bound counts from the moment at which the fault is over: for what is killed that is the kill.
"""

from dataclasses import dataclass

BOTH = ("sqlite", "postgres")


@dataclass(frozen=True, slots=True)
class Kind:
    """`weight`: how often in a deck. `once_a_wave`: a second one would find the first under way. `head`: all that
    the API and the managers are made of ends with it, so it comes late in a wave as a rule. `says`: the page."""

    bound_s: float
    weight: int = 1
    lasts_s: tuple[float, ...] = (0.0,)
    once_a_wave: bool = True
    databases: tuple[str, ...] = BOTH
    machines: int = 1
    clock: bool = False
    head: bool = False
    says: str = "region.md"


SHORT = (1.0, 2.0, 4.0)
LONG = (2.0, 3.0, 3.0, 5.0, 5.0, 8.0, 8.0, 12.0, 12.0, 30.0)

KINDS: dict[str, Kind] = {
    # Killed with SIGKILL.
    "kill-manager": Kind(60, 5, once_a_wave=False),
    "kill-lobby-manager": Kind(60, 4, once_a_wave=False, says="lobbies.md"),
    "kill-agent": Kind(60, 5, once_a_wave=False, says="nodes.md"),
    "kill-replica": Kind(60, 4, once_a_wave=False, says="operations.md"),
    "kill-proxy": Kind(60, 2, says="operations.md"),
    "kill-gcs": Kind(120, head=True, says="operations.md"),
    "kill-raylet": Kind(120, head=True, says="operations.md"),
    "kill-node-raylet": Kind(120, 2, machines=2, says="nodes.md"),
    "kill-node-runner": Kind(120, lasts_s=SHORT, machines=2, says="nodes.md"),
    "kill-head": Kind(120, head=True, says="operations.md"),
    "kill-supervisor": Kind(60, lasts_s=SHORT, says="operations.md"),
    # Stopped, and left to be noticed; or frozen for a while.
    "hang-agent": Kind(90, 2, says="nodes.md"),
    "hang-manager": Kind(90, 1),
    "freeze-manager": Kind(60, 2, LONG, once_a_wave=False),
    "freeze-agent": Kind(60, 2, LONG, once_a_wave=False, says="nodes.md"),
    "freeze-machine": Kind(60, 1, (3.0, 5.0, 8.0, 15.0), says="nodes.md"),
    # What all stand on.
    "engine-hangs": Kind(60, 2, LONG, says="nodes.md"),
    "engine-restarts": Kind(60, 2, SHORT, says="nodes.md"),
    "database-locked": Kind(60, 2, (5.0, 8.0, 15.0, 30.0), databases=("sqlite",), says="store.md"),
    "database-hangs": Kind(60, 2, (3.0, 5.0, 15.0, 30.0), databases=("postgres",), says="store.md"),
    "database-restarts": Kind(60, 2, databases=("postgres",), says="store.md"),
    "disk-full": Kind(60, 2, (3.0, 5.0, 15.0), says="store.md"),
    "store-away": Kind(60, 2, LONG, says="builds.md"),
    "network-cut": Kind(120, 2, (3.0, 5.0, 15.0, 45.0), machines=2, says="nodes.md"),
    "clock-step": Kind(120, 2, (2.0, 5.0, 10.0), clock=True, head=True, says="operations.md"),
    # Games.
    "kill-game": Kind(60, 4, once_a_wave=False),
    "remove-game": Kind(60, 3, once_a_wave=False),
    "pause-game": Kind(60, 3, (2.0, 5.0, 8.0), once_a_wave=False),
}
