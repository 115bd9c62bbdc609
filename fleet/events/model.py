"""One form for the entries of both journals, and where a reader stands in them."""

import re
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from fleet.errors import BadRequest
from fleet.store.tables import ProjectEvent, ServerEvent
from fleet.times import iso

KINDS = ("server", "build", "pool", "lobby", "budget", "project")
Journal = Literal["server", "project"]
_CURSOR = re.compile(r"(\d{1,19})-(\d{1,19})\.(\d{1,19})-(\d{1,19})", re.ASCII)
_WORD = re.compile(r"[a-z_]{1,32}(\.[a-z_]{1,64})?", re.ASCII)
_MAX = 2**63 - 1
_INNER = ("op", "pool")  # of no use to anyone outside


class Position(NamedTuple):
    """An entry's place in its journal. `tx` is 0 on SQLite, where entries appear in the order of their ids."""

    tx: int
    id: int


@dataclass(frozen=True, slots=True)
class Event:
    """`id` is the same however often and wherever it is told. `hidden`: of a pool entry that nobody has claimed."""

    journal: Journal
    position: Position
    project_id: str
    kind: str
    type: str
    subject: str
    at: int
    region: str | None
    data: dict[str, Any]
    hidden: bool = False

    @property
    def id(self) -> str:
        return f"evt_{self.journal[0]}{self.position.id}"

    def view(self) -> dict[str, Any]:
        """As streams and webhooks show it."""
        return {
            "id": self.id,
            "type": self.type,
            "kind": self.kind,
            "subject": self.subject,
            "at": iso(self.at),
            "project_id": self.project_id,
            "region": self.region,
            "data": self.data,
        }


@dataclass(frozen=True, slots=True)
class Cursor:
    """Everything up to `server` in the one journal and up to `project` in the other has been seen."""

    server: Position
    project: Position

    def __str__(self) -> str:
        return f"{self.server.tx}-{self.server.id}.{self.project.tx}-{self.project.id}"

    @classmethod
    def parse(cls, text: str) -> "Cursor":
        found = _CURSOR.fullmatch(text)
        numbers = [int(number) for number in found.groups()] if found else [_MAX + 1]
        if max(numbers) > _MAX:
            raise BadRequest("The position is not one that this stream gave; send back an event's id as it was.")
        return cls(Position(*numbers[:2]), Position(*numbers[2:]))

    def of(self, journal: Journal) -> Position:
        return self.server if journal == "server" else self.project

    def covers(self, event: Event) -> bool:
        return event.position <= self.of(event.journal)

    def past(self, event: Event) -> "Cursor":
        """With this event seen too."""
        if event.journal == "server":
            return Cursor(event.position, self.project)
        return Cursor(self.server, event.position)

    def joined(self, other: "Cursor") -> "Cursor":
        return Cursor(max(self.server, other.server), max(self.project, other.project))


@dataclass(frozen=True, slots=True)
class EventFilter:
    """What a reader wants: kinds (`server`) and types (`server.running`); none: everything."""

    words: frozenset[str] = frozenset()
    include_pool: bool = False

    @classmethod
    def of(cls, words: list[str] | None, *, include_pool: bool = False) -> "EventFilter":
        """Checked: an unknown kind would wait for ever."""
        for word in words or ():
            if not _WORD.fullmatch(word) or word.split(".")[0] not in KINDS:
                raise BadRequest(
                    f"Unknown event '{word[:64]}'. Use a kind ({', '.join(KINDS)}) or a type such as server.running.",
                    error="Unknown event",
                )
        return cls(frozenset(words or ()), include_pool)

    def passes(self, event: Event) -> bool:
        if event.hidden and not self.include_pool:
            return False
        return not self.words or event.kind in self.words or event.type in self.words


def of_server(row: ServerEvent) -> Event:
    data = row.data or {}
    shown = {name: value for name, value in data.items() if name not in _INNER}
    return Event(
        "server",
        Position(row.tx or 0, row.id or 0),
        row.project_id,
        "server",
        f"server.{row.type}",
        row.instance_id,
        row.at,
        row.region,
        shown | {"generation": row.generation},
        bool(data.get("pool")),
    )


def of_project(row: ProjectEvent) -> Event:
    data = row.data or {}
    return Event(
        "project",
        Position(row.tx or 0, row.id or 0),
        row.project_id,
        row.kind,
        row.type,
        row.subject,
        row.at,
        data.get("region"),
        data,
    )
