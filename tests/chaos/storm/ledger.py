"""What was acknowledged to the clients, and what was done to games behind everybody's back: the storm's own memory."""

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.storm.sandbox import NODE_B

# A cut of this length or more lets the games of the far node count as lost (`node_lost_s` is 30).
LOST_AFTER_S = 20.0


@dataclass
class Started:
    """A server that a client was given. `player`: a name that only its process knows. Times are monotonic seconds."""

    key: str
    instance_id: str
    region: str
    how: str  # cold | claim | anchor | ttl | auto | match | canary
    at: float
    ttl: int | None = None
    host: str = ""
    player: str | None = None
    running_at: float | None = None
    data: dict[str, Any] | None = None
    maybe: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    stop: str = ""  # "" | asked | acknowledged
    hit: bool = False  # its game was killed or removed by the storm
    settled: bool = False  # seen to its end: nothing more is expected of it


@dataclass
class Ledger:
    started: dict[str, Started] = field(default_factory=dict[str, Started])
    acknowledged: Counter[str] = field(default_factory=Counter[str])
    twice: list[str] = field(default_factory=list[str])
    lobbies: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])  # player: acknowledged state
    refused: Counter[str] = field(default_factory=Counter[str])
    cut_since: float | None = None
    clock_stepped: bool = False
    _hits: set[str] = field(default_factory=set[str])
    _keys: dict[str, str] = field(default_factory=dict[str, str])

    def start(self, key: str, server: dict[str, Any], how: str, ttl: int | None = None) -> Started:
        """A start or claim with that key was answered by this server."""
        name = server["instance_id"]
        if self._keys.setdefault(key, name) != name:
            self.twice.append(f"the key {key} has started {self._keys[key]} and {name}")
        if name in self.started and self.started[name].key != key:
            self.twice.append(f"{name} was given to {self.started[name].key} and to {key}")
        self.acknowledged[how] += 1
        given = Started(key, name, server["region"], how, time.monotonic(), ttl)
        given.hit = name in self._hits
        given.host = ((server.get("network_ports") or [{}])[0] or {}).get("host") or ""
        return self.started.setdefault(name, given)

    @property
    def anchors(self) -> set[str]:
        return {one.instance_id for one in self.started.values() if one.how == "anchor"}

    @property
    def open(self) -> list[Started]:
        return [one for one in self.started.values() if not one.settled]

    def forget(self, about: str) -> None:
        """Nothing more is expected of that server, or of that player's lobby."""
        if about in self.started:
            self.started[about].settled = True
        self.lobbies.pop(about, None)

    def hit(self, instance_id: str) -> None:
        self._hits.add(instance_id)
        if instance_id in self.started:
            self.started[instance_id].hit = True

    def was_hit(self, instance_id: str) -> bool:
        return instance_id in self._hits

    def was_cut(self, seconds: float) -> None:
        """The far node was out of reach so long."""
        self.cut_since = None
        if seconds >= LOST_AFTER_S:
            for one in self.open:
                if one.host == NODE_B:
                    one.hit = True
