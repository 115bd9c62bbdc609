"""What a player's word is worth: ids, proofs, and what is said to those who have none."""

import re
from dataclasses import dataclass
from typing import Protocol

from fleet.errors import Forbidden, Unauthorized

MAX_TOKEN = 8192
MAX_ID = 128
# Ids of Steam, PlayFab, EOS, Firebase, Auth0 and e-mail addresses; printable, so that they can stand in a header.
ID_PATTERN = r"^[!-~](?:[ -~]{0,126}[!-~])?$"
_ID = re.compile(ID_PATTERN.replace("$", r"\Z"))


@dataclass(frozen=True, slots=True)
class Proof:
    """A token is good for these player ids, until then (unix seconds; None: as long as its provider says so)."""

    ids: tuple[str, ...]
    until: float | None = None


class Provider(Protocol):
    """One way to prove who a player is. To add one: a class here, and a line in `service.py`."""

    async def proof(self, token: str) -> Proof:
        """`Unauthorized` for a token that is not good; `Unavailable` if that cannot be found out now."""
        ...


def is_player_id(text: str) -> bool:
    return _ID.match(text) is not None


def bad_token(why: str) -> Unauthorized:
    return Unauthorized(f"The player token is not good: {why}. Log the player in again.", error="Invalid player token")


def not_this_player(player_id: str) -> Forbidden:
    return Forbidden(
        f"The player token is not of player '{player_id[:64]}'. Send the id that its provider knows.",
        error="Not this player",
    )
