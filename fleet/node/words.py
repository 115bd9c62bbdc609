"""What a running game may say of itself, in the node's own terms. Pure: bodies in, words out."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fleet.node.runtime import RunKey

MOST_PLAYERS = 100_000
LEAST_BEAT_S, USUAL_BEAT_S, LONGEST_BEAT_S = 5.0, 30.0, 600.0
LONGEST_REASON = 200


@dataclass(frozen=True, slots=True)
class Ready:
    """It takes players."""


@dataclass(frozen=True, slots=True)
class Players:
    count: int
    capacity: int | None = None


@dataclass(frozen=True, slots=True)
class Beat:
    """It is well, and will say so again within these seconds."""

    within_s: float


@dataclass(frozen=True, slots=True)
class StopMe:
    reason: str


Word = Ready | Players | Beat | StopMe
Heard = Callable[[RunKey, Word], None]


def word_of(path: str, body: dict[str, Any]) -> Word | None:
    """The word of a POST; None if there is no such path. ValueError says what is wrong with the body."""
    match path:
        case "/ready":
            return Ready()
        case "/players":
            return Players(_count(body.get("count"), "count"), _capacity(body.get("capacity")))
        case "/health":
            return Beat(_seconds(body.get("within_s", USUAL_BEAT_S)))
        case "/stop":
            reason = body.get("reason", "")
            if not isinstance(reason, str):
                raise ValueError("`reason` is a text.")
            return StopMe(reason[:LONGEST_REASON])
        case _:
            return None


def to_keep(word: Word) -> tuple[str, dict[str, Any]] | None:
    """(path, body) of a word that the next agent must know as well; None if it will be said again anyway."""
    match word:
        case Ready():
            return "/ready", {}
        case Beat(within_s):
            return "/health", {"within_s": within_s}
        case StopMe(reason):
            return "/stop", {"reason": reason}
        case Players():
            return None


def _count(value: Any, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MOST_PLAYERS:
        raise ValueError(f"`{name}` is a whole number, 0 to {MOST_PLAYERS}.")
    return value


def _capacity(value: Any) -> int | None:
    return None if value is None else _count(value, "capacity")


def _seconds(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not LEAST_BEAT_S <= value <= LONGEST_BEAT_S:
        raise ValueError(f"`within_s` is a number of seconds, {LEAST_BEAT_S:.0f} to {LONGEST_BEAT_S:.0f}.")
    return float(value)
