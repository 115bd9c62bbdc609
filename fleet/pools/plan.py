"""What a pool orders, retires, replaces, freezes and thaws. Pure: (shelf, wish, target, now) -> numbers and ids.

Ordering looks at counts only, so it can be done at every claim. The rest walks the pool and is done by the timer.
"""

from collections.abc import Collection
from dataclasses import dataclass

from fleet.pools.shelf import Entry, Shelf

MIN_WARM_MS = 5_000  # a game may still load something just after its ports are open: freeze it later
AILING_MS = 10_000  # closed ports may open again; after this long the entry is replaced
UNSURE_MS = 20_000  # most agents come back in seconds; after this long another entry is ordered
REPLACED_AT_ONCE = 1


@dataclass(frozen=True, slots=True)
class Levels:
    """What the policy says: order up to `target`; drop warm ones only above `keep` (>= target)."""

    target: int
    keep: int


@dataclass(frozen=True, slots=True)
class Upkeep:
    """Ids: to stop for good, to mark as leaving (or not any more), to freeze, to thaw."""

    retire: tuple[str, ...] = ()
    leaving: frozenset[str] = frozenset()
    freeze: tuple[str, ...] = ()
    thaw: tuple[str, ...] = ()


def missing(shelf: Shelf, spec: str | None, target: int, now: int) -> int:
    """How many are wanted and not ordered.

    A booting one counts, so nothing is ordered twice. One on a silent node counts for `UNSURE_MS`; should its node come
    back later than that, there is one more than is wanted for a while.
    """
    if spec is None:
        return 0
    there = shelf.staying(spec) + shelf.count(spec, "booting") + shelf.younger("unsure", UNSURE_MS, now, spec)
    return max(0, target - there)


def upkeep(
    shelf: Shelf,
    spec: str | None,
    levels: Levels,
    now: int,
    *,
    max_age_ms: int,
    hot: int | None = None,
    draining: Collection[str] = (),
) -> Upkeep:
    """One pass over the pool. `spec` None: the pool has nothing to run, so nothing of it stays."""
    warm = [entry for entry in shelf.entries() if entry.state == "warm"]
    if spec is None:
        return Upkeep(retire=tuple(entry.instance_id for entry in shelf.entries()))
    mine = [entry for entry in warm if entry.spec == spec]
    leaving = _leaving(mine, now, max_age_ms, draining)
    ailing = [e.instance_id for e in shelf.entries() if e.state == "ailing" and now - e.since >= AILING_MS]
    retired = [*ailing, *_stale(shelf, warm, spec, levels.target), *_surplus(mine, leaving, levels)]
    gone = set(retired)
    rest = [entry for entry in mine if entry.instance_id not in gone]
    freeze, thaw = _temperatures(rest, hot, now)
    return Upkeep(tuple(retired), leaving - gone, freeze, thaw)


def _leaving(mine: list[Entry], now: int, max_age_ms: int, draining: Collection[str]) -> frozenset[str]:
    """All on draining nodes, and of the too old ones the oldest: they are replaced one by one."""
    on_draining = {entry.instance_id for entry in mine if entry.node_id in draining}
    old = sorted(
        (entry.since, entry.instance_id)
        for entry in mine
        if now - entry.since >= max_age_ms and entry.instance_id not in on_draining
    )
    return frozenset(on_draining | {name for _, name in old[:REPLACED_AT_ONCE]})


def _stale(shelf: Shelf, warm: list[Entry], spec: str, target: int) -> list[str]:
    """Entries of another spec: as many as the pool can do without. Those that still boot go at once."""
    booting = [e.instance_id for e in shelf.entries() if e.spec != spec and e.state == "booting"]
    stale = sorted((e for e in warm if e.spec != spec), key=lambda e: e.ticket)
    spare = max(0, len(warm) - max(target, 0))
    return booting + [entry.instance_id for entry in stale[: min(spare, len(stale))]]


def _surplus(mine: list[Entry], leaving: frozenset[str], levels: Levels) -> list[str]:
    """Leaving ones beyond the target (their replacements stand ready), then whatever is beyond `keep`."""
    stays = [entry for entry in mine if entry.instance_id not in leaving]
    goes = [entry for entry in mine if entry.instance_id in leaving]
    spare = max(0, len(mine) - max(levels.target, 0))
    retired = [entry.instance_id for entry in goes[: min(spare, len(goes))]]
    too_many = len(stays) - max(levels.keep, levels.target)
    if too_many > 0:
        # The youngest go: nodes that have just come are the ones that can be given back.
        retired += [entry.instance_id for entry in sorted(stays, key=lambda e: -e.since)[:too_many]]
    return retired


def _temperatures(entries: list[Entry], hot: int | None, now: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Keep `hot` entries unfrozen: freeze the youngest beyond, thaw the oldest if too few are left."""
    warm = sorted((e for e in entries if not e.frozen), key=lambda e: e.ticket)
    frozen = sorted((e for e in entries if e.frozen), key=lambda e: e.ticket)
    if hot is None:
        return (), tuple(entry.instance_id for entry in frozen)
    surplus = [e.instance_id for e in warm[hot:] if now - e.since >= MIN_WARM_MS]
    missing = max(0, hot - len(warm))
    return tuple(surplus), tuple(entry.instance_id for entry in frozen[:missing])
