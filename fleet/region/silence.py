"""When silence becomes loss. Pure.

An agent that gives no sign of life for `restart_ms` is killed and begun anew, since it may hang while its machine and
its games live. If nothing is heard for as long again, the node is lost: nobody comes back for it now. An agent that
answers, if only that it is starting and what it misses, is waited for much longer (`starting_ms`).

Only time in which somebody looked counts: a manager that was frozen, or busy, has no reason to call its nodes lost.
"""

from dataclasses import dataclass, replace
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class SilencePolicy:
    """In milliseconds. `look_ms`: the most that counts between two looks. `stuck_ms`: an agent that answers, but
    neither tells its list nor says that it is starting, is begun anew."""

    restart_ms: int = 30_000
    starting_ms: int = 900_000
    stuck_ms: int = 120_000
    look_ms: int = 5_000

    @property
    def lost_ms(self) -> int:
        """Without a sign of life."""
        return 2 * self.restart_ms


@dataclass(frozen=True, slots=True)
class Silence:
    """Moments (ms), moved on by the time in which nobody looked. `since`: when the node was last heard; `alive`: its
    agent's last sign of life; `excused`: when it last said that it is starting; `restarted`: asked to begin anew."""

    since: int
    alive: int
    looked: int
    excused: int | None = None
    restarted: int | None = None

    @classmethod
    def begun(cls, since: int, now: int) -> "Silence":
        """Heard last at `since`, which is in the past."""
        return cls(min(since, now), min(since, now), now)

    def sign(self, now: int, *, starting: bool = False) -> "Silence":
        """The agent answers, though it does not tell its list."""
        return replace(self, alive=max(now, self.alive), excused=now if starting else self.excused)


class Verdict(StrEnum):
    WAIT = "wait"
    HUNG = "hung"  # begin it anew, unless it answers after all
    STUCK = "stuck"  # begin it anew although it answers
    LOST = "lost"


def look(silence: Silence, now: int, policy: SilencePolicy) -> tuple[Silence, Verdict]:
    """What the silence has come to. HUNG and STUCK are said once, then again only after another sign of life."""
    silence = _watched(silence, now, policy)
    quiet = now - silence.alive
    asked = silence.restarted
    if now - silence.since >= policy.starting_ms:
        return silence, Verdict.LOST
    if quiet >= policy.restart_ms:
        if asked is None or asked <= silence.alive:
            return replace(silence, restarted=now), Verdict.HUNG
        lost = quiet >= policy.lost_ms and now - asked >= policy.restart_ms
        return silence, Verdict.LOST if lost else Verdict.WAIT
    if now - max(silence.since, silence.excused or 0, asked or 0) >= policy.stuck_ms:
        return replace(silence, restarted=now), Verdict.STUCK
    return silence, Verdict.WAIT


def _watched(silence: Silence, now: int, policy: SilencePolicy) -> Silence:
    unseen = max(0, now - silence.looked - policy.look_ms)

    def moved(moment: int | None) -> int | None:
        return None if moment is None else min(now, moment + unseen)

    return Silence(
        min(now, silence.since + unseen),
        min(now, silence.alive + unseen),
        max(now, silence.looked),
        moved(silence.excused),
        moved(silence.restarted),
    )
