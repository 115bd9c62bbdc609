"""The runs that nodes report, found by key, by server and by node without a walk."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from fleet.node.model import RunView
from fleet.node.runtime import RunKey


def _unheard(_instance_id: str) -> None:
    """Nobody listens."""


class Runs(dict[RunKey, RunView]):
    """A dictionary with two indexes. `on_change(instance_id)` hears of each change of a server's runs."""

    def __init__(self, on_change: Callable[[str], None] = _unheard) -> None:
        super().__init__()
        self.on_change = on_change
        self._of: dict[str, tuple[RunKey, ...]] = {}
        self._on: dict[str, set[RunKey]] = {}

    def __setitem__(self, key: RunKey, run: RunView) -> None:
        old = self.get(key)
        if old is None:
            self._of[key.instance_id] = (*self._of.get(key.instance_id, ()), key)
        elif old.node_id != run.node_id:
            self._on[old.node_id].discard(key)
        self._on.setdefault(run.node_id, set()).add(key)
        super().__setitem__(key, run)
        self.on_change(key.instance_id)

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

    def replace_node(self, node_id: str, runs: Iterable[RunView]) -> set[str]:
        """A node told its whole truth. The servers that had or have a run there."""
        told = {run.key: run for run in runs}
        concerned = {key.instance_id for key in told} | {key.instance_id for key in self.on(node_id)}
        for key in [key for key in self.on(node_id) if key not in told]:
            del self[key]
        self.update(told)
        return concerned

    def of(self, instance_id: str) -> Mapping[RunKey, RunView]:
        """The runs of one server: as a rule one, more after a restart."""
        return {key: self[key] for key in self._of.get(instance_id, ())}

    def on(self, node_id: str) -> Iterator[RunKey]:
        return iter(self._on.get(node_id, ()))
