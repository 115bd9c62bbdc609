"""A storm over one fleet: waves of faults under load; after each, a still watch until all is as its row says.

How a recovery is timed: when the last fault of a wave is over, the gate of the load is shut, so that nobody sends
anything. Three times a second everything is looked at. A fault's recovery is the time from its own end to the first
look that finds nothing wrong. With several faults in a wave that is an upper bound of what each would have needed;
waves of one fault alone give the true figure. Then the load goes on and a start in each region is timed until it is
played.
"""

import asyncio
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from fleet.store.engine import Store
from tests.chaos.storm.audit import Finding, judge
from tests.chaos.storm.faults import Faults, Undo
from tests.chaos.storm.kinds import KINDS
from tests.chaos.storm.ledger import Ledger
from tests.chaos.storm.load import Load
from tests.chaos.storm.look import look
from tests.chaos.storm.report import Done, Result, Wave
from tests.chaos.storm.sandbox import Machine
from tests.chaos.storm.schedule import Fault
from tests.chaos.storm.world import REGIONS, World, start_world

Say = Callable[[str], None]
LOOK_EVERY_S = 0.3
FIRST_S = 120.0  # a new fleet is at rest within that
AFTER_BOUND_S = 30.0  # how much longer a wave that is late is watched, to see whether it ever comes right
CANARY_S = 60.0
TARGET_S = 30.0  # from the wave's beginning: so long a fault waits for somebody whom it can hit
SURE_S = 2.0  # what never mends is told once it was seen for so long


class Spoilt(Exception):
    """The fleet has not come back: what follows would blame the wrong fault."""


class Storm:
    """One fleet's life. `run` returns when the waves are done, the time is up, or the fleet has not come back."""

    def __init__(self, world: World, result: Result, seed: int, say: Say) -> None:
        self._world, self._result, self._say = world, result, say
        self._ledger = Ledger()
        self._store = Store(world.database_url)
        self._load = Load(world, self._ledger, seed)
        self._faults = Faults(world, self._ledger)
        self._first: dict[str, float] = {}  # when each thing that is wrong now was first seen
        self._told: dict[str, Finding] = {}  # what never mends, and is in the result

    async def run(self, waves: list[list[Fault]], until: float) -> int:
        """How many of the waves were done."""
        try:
            try:
                await asyncio.wait_for(self._load.prepare(), FIRST_S)
            except TimeoutError:
                raise Spoilt(f"the new fleet serves nobody: {dict(self._ledger.refused)}") from None
            self._load.shut()
            findings, _ = await self._watch(time.monotonic() + FIRST_S)
            if findings:
                raise Spoilt(f"the new fleet does not come to rest: {findings[:5]}")
            self._load.begin()
            self._load.open()
            for number, wave in enumerate(waves):
                if time.monotonic() > until:
                    return number
                if not await self._wave(wave):
                    return number + 1
            return len(waves)
        finally:
            await self._load.end()
            await self._store.close()

    # A wave ----------------------------------------------------------------------------------------------------------

    async def _wave(self, faults: list[Fault]) -> bool:
        """False if the fleet has not come back."""
        began = time.monotonic()
        before = sum(self._ledger.acknowledged.values())
        self._ledger.clock_stepped = False
        done = [Done(fault) for fault in faults]
        await asyncio.gather(*(self._one(began, one) for one in done))
        over = max(one.over_at for one in done)
        self._load.shut()
        bound = max(one.over_at + KINDS[one.fault.kind].bound_s for one in done)
        told = len(self._told)
        findings, well_at = await self._watch(bound)
        beyond = findings
        wave = Wave(faults[0].wave, [one.fault.number for one in done], load=os.getloadavg()[0])
        if beyond:
            self._say(f"wave {wave.number} is beyond its bound: " + "; ".join(f.what for f in beyond[:8]))
            findings, well_at = await self._watch(time.monotonic() + AFTER_BOUND_S)
        wave.findings = [f"{f.kind}: {f.what}" for f in [*list(self._told.values())[told:], *beyond]]
        for kind in ("lost", "twice", "leaked", "unsettled"):
            wave.counts[kind] = sum(line.startswith(kind) for line in wave.findings)
        self._settle()
        wave.canary_s = await self._canary() if not findings else None
        wave.acknowledged = sum(self._ledger.acknowledged.values()) - before
        wave.late = bool(beyond) or wave.canary_s is None
        for one in done:
            one.recovery_s = round(well_at - one.over_at, 2) if not findings else None
            one.alone = len(done) == 1
        self._result.add(wave, done)
        hit = ", ".join(f"{one.fault.kind}({one.what})" for one in done if one.what)
        canary = "no canary" if wave.canary_s is None else f"canary {wave.canary_s:.1f} s"
        well = "not well" if findings else f"well {well_at - over:.1f} s after the last"
        self._say(f"wave {wave.number}: {hit}: {well}, {canary}")
        for broken in self._load.broken:
            self._say(f"  no answer to a client: {broken}")
            self._result.broken.append(f"wave {wave.number}: {broken}")
        self._load.broken.clear()
        return not findings and wave.canary_s is not None

    async def _one(self, began: float, one: Done) -> None:
        await asyncio.sleep(max(0.0, began + one.fault.at - time.monotonic()))
        undo: Undo | None = None
        while not one.what:
            try:
                one.what, undo = await self._faults.begin(one.fault)
            except Exception as error:
                self._say(f"{one.fault.kind} could not be done: {error!r}")
                break
            if not one.what and time.monotonic() > began + TARGET_S:
                break
            await asyncio.sleep(0 if one.what else 0.3)
        try:
            if undo is not None:
                await asyncio.sleep(one.fault.lasts_s)
        finally:
            if undo is not None:
                await self._undone(one.fault, undo)
        one.over_at = time.monotonic()

    async def _undone(self, fault: Fault, undo: Undo) -> None:
        for attempt in range(3):
            try:
                await undo()
                return
            except Exception as error:
                self._say(f"{fault.kind} could not be undone ({attempt}): {error!r}")
                await asyncio.sleep(1)

    # Looking on ------------------------------------------------------------------------------------------------------

    async def _watch(self, until: float) -> tuple[list[Finding], float]:
        """What is wrong at last (nothing, if all came right in time), and when it was looked at."""
        told = time.monotonic()
        while True:
            seen = await look(self._world, self._store, self._ledger)
            now = time.monotonic()
            findings = self._not_told(self._beyond_grace(judge(seen, self._ledger), now), now)
            if not findings or now > until:
                return findings, now
            if now - told > 15:
                told = now
                self._say("  waiting: " + "; ".join(finding.what for finding in findings[:4]))
            await asyncio.sleep(LOOK_EVERY_S)

    def _beyond_grace(self, findings: list[Finding], now: float) -> list[Finding]:
        """Without what has been there for less time than it may be."""
        self._first = {finding.what: self._first.get(finding.what, now) for finding in findings}
        return [finding for finding in findings if now - self._first[finding.what] >= finding.grace_s]

    def _not_told(self, findings: list[Finding], now: float) -> list[Finding]:
        """Without what never mends, once that is certain: it is told, and the storm goes on."""
        for finding in findings:
            if finding.for_good and finding.what not in self._told and now - self._first[finding.what] >= SURE_S:
                self._told[finding.what] = finding
                self._say(f"  {finding.kind}: {finding.what}")
                self._ledger.forget(finding.about)
        return [finding for finding in findings if finding.what not in self._told]

    def _settle(self) -> None:
        """What has ended as it should is not looked at again."""
        for one in self._ledger.open:
            if one.stop == "acknowledged" or (one.ttl and time.monotonic() - one.at > 300):
                one.settled = True

    async def _canary(self) -> float | None:
        began = time.monotonic()
        self._load.open()
        try:
            async with asyncio.timeout(CANARY_S):
                await asyncio.gather(*(self._load.canary(region) for region in REGIONS))
        except Exception as error:
            self._say(f"no start works again: {error!r}")
            return None
        return round(time.monotonic() - began, 2)


async def rage(
    folder: Path,
    machines: list[Machine],
    waves: list[list[Fault]],
    result: Result,
    limit_s: float,
    runtime: str,
    say: Say,
) -> None:
    """All waves, on one fleet after another: one that has not come back is thrown away, its logs kept."""
    until = time.monotonic() + limit_s
    life = 0
    while waves and time.monotonic() < until and life < 6:
        life += 1
        say(f"fleet {life} starts")
        # In this very thread: the kernel ends PostgreSQL with the thread that started it.
        world = start_world(folder / "disks" / f"fleet-{life}", machines, result.database, runtime)
        try:
            storm = Storm(world, result, result.seed + life, say)
            done = await storm.run(waves, until)
            waves = waves[done:]
        except Spoilt as spoilt:
            result.broken.append(str(spoilt))
            say(str(spoilt))
        finally:
            with suppress(Exception):
                _keep_logs(world, result)
            world.end()


def _keep_logs(world: World, result: Result) -> None:
    if result.logs is None:
        return
    for home in world.homes:
        for path in (*home.glob("logs/*.log"), *home.parent.glob("*.out")):
            target = result.logs / world.folder.name / home.name / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
