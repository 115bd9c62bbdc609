"""Matchmaking: which lobbies that wait play together, on which teams, in which region. All of it is pure.

`config.py` a mode as data, `tickets.py` a lobby as a ticket, `matcher.py` the queue; below it `index.py`, `assemble.py`
(candidates), `roles.py` and `teams.py` (placing), `regions.py` (voting); `loop.py` a queue as it is run, `turns.py`
whose queue is next; `ratings.py` skill; `check.py` an independent checker. docs/matchmaking.md tells the whole.
"""

from fleet.matchmaking.config import ModeConfig
from fleet.matchmaking.loop import MatchLoop, Sweep
from fleet.matchmaking.matcher import Matcher, match
from fleet.matchmaking.model import Found, OpenMatch, Player, Quality, Team, Ticket
from fleet.matchmaking.pairs import Fault, Faults
from fleet.matchmaking.parse import parse_lobby_configs, parse_mode, parse_modes
from fleet.matchmaking.ratings import Rating, chances, rated
from fleet.matchmaking.tickets import Member, ticket_of

__all__ = [
    "Fault",
    "Faults",
    "Found",
    "MatchLoop",
    "Matcher",
    "Member",
    "ModeConfig",
    "OpenMatch",
    "Player",
    "Quality",
    "Rating",
    "Sweep",
    "Team",
    "Ticket",
    "chances",
    "match",
    "parse_lobby_configs",
    "parse_mode",
    "parse_modes",
    "rated",
    "ticket_of",
]
