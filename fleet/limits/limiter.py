"""Who may ask how often: per key reads and writes, per address keys that nobody knows."""

import hashlib
import ipaddress
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from fleet.errors import FleetError
from fleet.limits.windows import SharedWindows, Taken
from fleet.projects.model import Principal
from fleet.projects.plans import plan_book
from fleet.settings import FleetSettings

_MAX_GATES = 10_000


class Windows(Protocol):
    """What counts: `SharedWindows` on the node where the counts are, `LeasedWindows` elsewhere."""

    def try_take(self, tag: int, limit: int) -> Taken | None:
        """Take one now; None if that has to be asked for, by `fetch`."""
        ...

    async def fetch(self, tag: int, limit: int) -> Taken: ...


class Quota(NamedTuple):
    """Requests per second of one key; 0: as many as it likes."""

    reads: int
    writes: int
    lobby_reads: int = 0  # of all players together
    lobby_writes: int = 0
    lobby_address_writes: int = 0


class Count(NamedTuple):
    """One of the limits that a request counts against."""

    tag: int
    limit: int
    who: str


@dataclass(slots=True)
class Gate:
    """A key that is known, what it may, and until when (monotonic) that is believed."""

    caller: Principal
    until: float
    key: bytes
    reads: int  # tags of its two counts
    writes: int
    quota: Quota


class Limiter:
    """One per replica. `quota_of` says what a caller may; `failures` is how many unknown keys an address may try."""

    def __init__(
        self, windows: Windows, failed: SharedWindows, quota_of: Callable[[Principal], Quota], failures: int
    ) -> None:
        self._windows = windows
        self._failed = failed
        self._quota_of = quota_of
        self._failures = failures
        self._gates: dict[bytes, Gate] = {}

    def gate(self, key: bytes) -> Gate | None:
        """The key's gate, if it is known here and need not be looked up again."""
        gate = self._gates.get(key)
        return gate if gate is not None and gate.until > time.monotonic() else None

    def open(self, key: bytes, caller: Principal) -> Gate:
        """The gate of a key that has just been looked up."""
        self._gates.pop(key, None)
        if len(self._gates) >= _MAX_GATES:
            del self._gates[next(iter(self._gates))]
        reads = tag_of(b"r" + key)
        gate = Gate(caller, caller.valid_until, key, reads, tag_of(b"w" + key), self._quota_of(caller))
        self._gates[key] = gate
        return gate

    def shut(self, key: bytes) -> None:
        """Nobody's key any more."""
        self._gates.pop(key, None)

    def count(self, gate: Gate, write: bool) -> Count:
        """What a request counts against."""
        if write:
            return Count(gate.writes, gate.quota.writes, "This key")
        return Count(gate.reads, gate.quota.reads, "This key")

    def lobby_counts(self, gate: Gate, write: bool, player: bytes, address: bytes) -> list[Count]:
        """The same for a call to a lobby: a whole game shares its client key, so each player counts alone, and there
        is a ceiling for all. The address counts too, since a player's name is for the caller to choose."""
        quota, kind = gate.quota, b"w" if write else b"r"
        alone = Count(
            tag_of(b"p" + kind + gate.key + b"\0" + player), quota.writes if write else quota.reads, "A player"
        )
        together = quota.lobby_writes if write else quota.lobby_reads
        counts = [alone, Count(tag_of(b"l" + kind + gate.key), together, "All players of this key together")]
        if write:
            tag = tag_of(b"a" + gate.key + b"\0" + address)
            counts.insert(1, Count(tag, quota.lobby_address_writes, "All players of one address together"))
        return [count for count in counts if count.limit]

    def try_take(self, count: Count) -> Taken | None:
        """One request; None if `take` has to ask for it."""
        return self._windows.try_take(count.tag, count.limit)

    async def take(self, count: Count) -> Taken:
        return await self._windows.fetch(count.tag, count.limit)

    # Keys that nobody knows -------------------------------------------------------------------------------------

    def tried_too_often(self, key: bytes, address: str) -> float:
        """Seconds that this address must wait before another unknown key is looked up; 0 if it need not. A key that
        was good a moment ago is looked up all the same: the stranger may sit behind the same address."""
        if key in self._gates or not self._failures:
            return 0.0
        return self._failed.take(_address_tag(address), self._failures, 0).retry_s

    def failed(self, address: str) -> None:
        """A key from there was nobody's."""
        if self._failures:
            self._failed.take(_address_tag(address), self._failures)


def open_limiter(settings: FleetSettings, windows: Windows | None = None, folder: Path | None = None) -> Limiter:
    """Over the counts of this node in `folder`, or over `windows` from elsewhere."""
    limits, folder = settings.limits, folder or settings.home / "limits"
    plans = plan_book(settings.plans_config)

    def quota_of(caller: Principal) -> Quota:
        usual = Quota(
            limits.reads_per_s,
            limits.writes_per_s,
            limits.lobby_reads_per_s,
            limits.lobby_writes_per_s,
            limits.lobby_writes_per_address_per_s,
        )
        try:
            plan = plans.get(caller.plan)
        except FleetError:  # what needs the plan says so
            return usual
        return Quota(
            usual.reads if plan.reads_per_s is None else plan.reads_per_s,
            usual.writes if plan.writes_per_s is None else plan.writes_per_s,
            usual.lobby_reads if plan.lobby_reads_per_s is None else plan.lobby_reads_per_s,
            usual.lobby_writes if plan.lobby_writes_per_s is None else plan.lobby_writes_per_s,
            usual.lobby_address_writes,
        )

    failed = SharedWindows(folder / "failed", window_s=60.0, slots=2048)
    return Limiter(windows or SharedWindows(folder / "keys"), failed, quota_of, limits.unknown_keys_per_minute)


def tag_of(what: bytes) -> int:
    """64 bits that stand for a key or an address; never 0, which is an empty slot."""
    return int.from_bytes(hashlib.blake2b(what, digest_size=8).digest()) | 1


def _address_tag(address: str) -> int:
    """One for a whole /64 of IPv6, since a household has that many."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return tag_of(address.encode()[:64])
    packed = ip.packed[:8] if ip.version == 6 else ip.packed
    return tag_of(b"ip" + packed)
