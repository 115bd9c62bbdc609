"""How many containers a node has made and started at the same time, and for whom."""

from fleet.limits.fair import FairGate, Places

# The engine's network set-up does not scale: more at once only makes each slower.
AT_ONCE = 4
_MOST_WAITING = 10_000  # more than a node has room for: who waits here has a place on it


def launch_gate() -> FairGate:
    """`AT_ONCE` of one project, and one more for a project that has none under way; turns go to who has the fewest.
    A launch is called off by its region, so its wait has no end of its own."""
    return FairGate("launches", Places(AT_ONCE + 1, AT_ONCE, 1), queue=_MOST_WAITING, wait_s=None)
