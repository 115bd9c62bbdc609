"""The runs that nodes report, found by key, by server and by node without a walk.

Two nodes may tell of the same run: a manager that died before its commit had launched it on a node that was silent when
the next one placed it elsewhere. Each key has one run that counts, the one on the node that the row names, or else the
one that was told first; the other is its *rival*. Nobody was ever told of a rival's place, so it is ended.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from fleet.node.model import RunView
from fleet.node.runtime import RunKey


def _unheard(_instance_id: str) -> None:
    """Nobody listens."""


def _anywhere(_key: RunKey) -> str | None:
    """Every node may tell of it."""


class Runs(dict[RunKey, RunView]):
    """A dictionary with two indexes. `on_change(instance_id)` hears of each change of a server's runs. `place_of(key)`
    is the node on which the row has that run; None if no row says so."""

    def __init__(self, on_change: Callable[[str], None] = _unheard) -> None:
        super().__init__()
        self.on_change = on_change
        self.place_of: Callable[[RunKey], str | None] = _anywhere
        self._of: dict[str, tuple[RunKey, ...]] = {}
        self._on: dict[str, set[RunKey]] = {}
        self._rivals: dict[str, dict[tuple[RunKey, str], RunView]] = {}

    def __setitem__(self, key: RunKey, run: RunView) -> None:
        old = self.get(key)
        if not self._counts(old, run):
            self._set_aside(run)
            return
        self.forget_rival(key, run.node_id)
        if old is not None and old.node_id != run.node_id:
            self._set_aside(old)
        if key not in self:
            self._of[key.instance_id] = (*self._of.get(key.instance_id, ()), key)
        self._on.setdefault(run.node_id, set()).add(key)
        super().__setitem__(key, run)
        self.on_change(key.instance_id)

    def _counts(self, old: RunView | None, run: RunView) -> bool:
        if (place := self.place_of(run.key)) is not None:
            return run.node_id == place
        return old is None or old.node_id == run.node_id or (old.state.ended and not run.state.ended)

    def __delitem__(self, key: RunKey) -> None:
        run = self[key]
        super().__delitem__(key)
        self._on[run.node_id].discard(key)
        rest = tuple(other for other in self._of[key.instance_id] if other != key)
        if rest:
            self._of[key.instance_id] = rest
        else:
            del self._of[key.instance_id]
        self.on_change(key.instance_id)

    def update(self, *others: Mapping[RunKey, RunView], **_: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for other in others:
            for key, run in other.items():
                self[key] = run

    def clear(self) -> None:
        for key in list(self):
            del self[key]
        for rival in list(self.rivals()):
            self.forget_rival(rival.key, rival.node_id)

    def replace_node(self, node_id: str, runs: Iterable[RunView]) -> set[str]:
        """A node told its whole truth. The servers that had or have a run there."""
        told = {run.key: run for run in runs}
        rivals = [rival.key for rival in self.rivals() if rival.node_id == node_id and rival.key not in told]
        concerned = {key.instance_id for key in (*told, *self.on(node_id), *rivals)}
        for key in [key for key in self.on(node_id) if key not in told]:
            del self[key]
        for key in rivals:
            self.forget_rival(key, node_id)
        self.update(told)
        return concerned

    def of(self, instance_id: str) -> Mapping[RunKey, RunView]:
        """The runs of one server: as a rule one, more after a restart."""
        return {key: self[key] for key in self._of.get(instance_id, ())}

    def on(self, node_id: str) -> Iterator[RunKey]:
        return iter(self._on.get(node_id, ()))

    # Rivals ------------------------------------------------------------------------------------------------------

    def counts(self, run: RunView) -> bool:
        """Whether the run of this key that counts is on this one's node."""
        counted = self.get(run.key)
        return counted is not None and counted.node_id == run.node_id

    def rivals(self) -> Iterator[RunView]:
        """Of all servers. As a rule there are none."""
        return (run for found in self._rivals.values() for run in found.values())

    def rivals_of(self, instance_id: str) -> Iterator[RunView]:
        return iter(self._rivals.get(instance_id, {}).values())

    def forget_rival(self, key: RunKey, node_id: str) -> None:
        """It is gone, or it counts now."""
        found = self._rivals.get(key.instance_id)
        if found is None or found.pop((key, node_id), None) is None:
            return
        if not found:
            del self._rivals[key.instance_id]
        self.on_change(key.instance_id)

    def _set_aside(self, run: RunView) -> None:
        if self.counts(run):
            del self[run.key]  # it counted until the row named another node
        self._rivals.setdefault(run.key.instance_id, {})[run.key, run.node_id] = run
        self.on_change(run.key.instance_id)
