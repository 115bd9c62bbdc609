"""The speed of the loop that the keeper drives: a pass over many waiting tickets, an arriving one, tickets per second.

`python -m bench.matchmaking [--quick]`. Times are of this process's CPU, so that others on the machine count little;
`yardstick` is the same CPU's time to sort a million numbers, to compare machines by.
"""

import argparse
import gc
import json
import random
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from math import log
from time import process_time
from typing import Any

from fleet.matchmaking import MatchLoop, ModeConfig, Player, Ticket, parse_mode
from fleet.matchmaking.check import check
from fleet.simulate.match_people import MODES, People, crowd
from fleet.simulate.matchmaking import quantile

SIZES = (1_000, 10_000, 100_000)
ATTEMPTS = 2_000
STREAM = 20_000
CHECKED = 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="up to 10,000 tickets")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON at the end")
    arguments = parser.parse_args()
    sizes = SIZES[:2] if arguments.quick else SIZES
    figures: dict[str, Any] = {"yardstick_s": _cpu(_yardstick)}
    _say(f"yardstick (a million numbers sorted): {figures['yardstick_s']:.2f} s")
    for name in ("5v5", "duel", "ffa"):
        figures[f"pass_{name}"] = [_pass(name, size) for size in sizes]
        _growth(name, figures[f"pass_{name}"])
    figures["attempts"] = [_attempts(size) for size in sizes]
    figures["stuck"] = _stuck(sizes[-1])
    figures["stream"] = _stream()
    if arguments.json:
        print(json.dumps(figures))


def _cpu(work: Callable[[], object]) -> float:
    gc.collect()
    begun = process_time()
    work()
    return process_time() - begun


def _yardstick() -> None:
    chance = random.Random(1)
    sorted(chance.random() for _ in range(1_000_000))


def _filled(mode: ModeConfig, tickets: list[Ticket]) -> MatchLoop:
    """Who waits, known to the sweeps too: one at a time when nobody is due yet just takes them in."""
    loop = MatchLoop(mode)
    for ticket in tickets:
        loop.add(ticket)
    begun = process_time()
    assert not list(loop.sweep(-1e9, 1e9, clock=process_time))
    if len(tickets) >= SIZES[-1]:
        _say(f"sweeps take in {len(tickets):,} new tickets: {process_time() - begun:.2f} s")
    return loop


def _pass(name: str, size: int) -> dict[str, float]:
    """One pass without the search, from an empty table of roles."""
    mode = parse_mode(MODES[name])
    tickets = crowd(name, size, seed=1, waited=60.0)
    loop = _filled(mode, tickets)
    gc.collect()
    begun = process_time()
    found = loop.taken(loop.sweep(0.0, 1e9, clock=process_time, search=False))
    took = process_time() - begun
    by_id = {ticket.ticket_id: ticket for ticket in tickets}
    faults = [fault for one in found[:: max(1, len(found) // CHECKED)] for fault in check(one, by_id, mode, 0.0)]
    assert not faults, faults[:3]
    players = sum(by_id[one].size for match in found for one in match.ticket_ids)
    share = players / sum(ticket.size for ticket in tickets)
    _say(f"{name:5} pass over {size:7,} tickets: {took:6.3f} s, {len(found):6,} matches, {share:.1%} of players")
    return {"tickets": size, "seconds": took, "matches": len(found), "players_matched": share}


def _growth(name: str, passes: list[dict[str, float]]) -> None:
    """How much more than n log n a pass grows: 1 is exactly as n log n."""
    for less, more in pairwise(passes):
        work = (more["tickets"] * log(more["tickets"])) / (less["tickets"] * log(less["tickets"]))
        ratio = more["seconds"] / less["seconds"] / work
        _say(f"{name:5} {less['tickets']:,.0f} to {more['tickets']:,.0f}: {ratio:.2f} of n log n")


def _attempts(waiting: int) -> dict[str, float]:
    """Arrivals at a queue that many wait in: each is added, tries, and what it took is put back."""
    mode = parse_mode(MODES["5v5"])
    loop = _filled(mode, crowd("5v5", waiting, seed=2, waited=60.0))
    people, chance = People(mode), random.Random(3)
    known = {ticket.ticket_id: ticket for ticket in loop.tickets}
    times: list[float] = []
    made = 0
    gc.collect()
    gc.freeze()
    for number in range(ATTEMPTS):
        ticket = people.ticket(chance, 10_000_000 + number, number / 1000)
        known[ticket.ticket_id] = ticket
        begun = process_time()
        loop.add(ticket)
        found = loop.taken(loop.attempt(ticket.ticket_id, ticket.created_at))
        times.append(process_time() - begun)
        for match in found:
            made += 1
            for one in match.ticket_ids:
                loop.add(known[one])
        loop.remove(ticket.ticket_id)
    gc.unfreeze()
    return _told(f"attempt with {waiting:,} waiting ({made} of {ATTEMPTS} made a match)", times, waiting)


def _stuck(waiting: int) -> dict[str, float]:
    """Arrivals at a queue where no match can be made although all roles are there: healers are all far away."""
    mode = parse_mode(MODES["5v5"])
    chance = random.Random(4)
    players = [Player(f"p{n}", chance.gauss(25, 6), 2.0, ("tank",) if n % 5 == 0 else ("dps",)) for n in range(waiting)]
    far = [replace(players[0], player_id=f"h{n}", mu=90.0, roles=("healer",)) for n in range(2)]
    loop = _filled(mode, [Ticket(player.player_id, (player,), 0.0) for player in (*players, *far)])
    times: list[float] = []
    gc.collect()
    for number in range(ATTEMPTS // 4):
        player = Player(f"n{number}", chance.gauss(25, 6), 2.0, ("dps",))
        begun = process_time()
        loop.add(Ticket(player.player_id, (player,), 1.0))
        assert not list(loop.attempt(player.player_id, 1.0))
        times.append(process_time() - begun)
    begun = process_time()
    assert not list(loop.sweep(1.0, 1e9, clock=process_time))
    _say(f"sweep of the stuck queue: {process_time() - begun:.3f} s")
    return _told(f"failing attempt with {waiting:,} waiting", times, waiting)


def _told(title: str, times: list[float], waiting: int) -> dict[str, float]:
    times.sort()
    p50, p99 = quantile(times, 0.5) * 1e3, quantile(times, 0.99) * 1e3
    _say(f"{title}: p50 {p50:.2f} ms, p99 {p99:.2f} ms, most {times[-1] * 1e3:.2f} ms")
    return {"waiting": waiting, "p50_ms": p50, "p99_ms": p99, "max_ms": times[-1] * 1e3}


def _stream() -> dict[str, float]:
    """Tickets that come and are matched at once, one core, the sweep each virtual second included."""
    mode = parse_mode(MODES["5v5"])
    loop = MatchLoop(mode)
    people, chance = People(mode), random.Random(6)
    rate = 2_000
    tickets = [people.ticket(chance, 20_000_000 + n, n / rate) for n in range(STREAM)]
    matched = 0
    gc.collect()
    begun = process_time()
    for number, ticket in enumerate(tickets):
        loop.add(ticket)
        found = loop.taken(loop.attempt(ticket.ticket_id, ticket.created_at))
        if number % rate == rate - 1:
            found += loop.taken(loop.sweep(ticket.created_at, 0.05, clock=process_time))
        matched += sum(len(one.ticket_ids) for one in found)
    per_s = STREAM / (process_time() - begun)
    _say(f"stream: {per_s:,.0f} tickets a second of one core, {matched / STREAM:.1%} matched")
    return {"tickets_per_s": per_s, "matched": matched / STREAM}


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
