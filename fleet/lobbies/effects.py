"""What has to be done in the world once a change is on disk."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Effect:
    """`start`: bring the match to a server. `follow`: tell when its server runs, and when it has stopped. `stop`: end
    the server that it has or may have. `tell`: who plays has changed, so the game is told. Each may be repeated."""

    kind: Literal["start", "follow", "stop", "tell"]
    match_id: str
