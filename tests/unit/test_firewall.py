"""The walls around games: what must stand, what is mended, and that nobody else's rules are touched."""

import ipaddress
from itertools import pairwise, permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.node.firewall import (
    Walls,
    check_reach,
    missing,
    removal_text,
    resolvers_of,
    restore_text,
    rules_of,
)

Table = dict[str, list[str]]
DOCKERS: Table = {
    "INPUT": [], "FORWARD": ["-j DOCKER-USER", "-o docker0 -j DOCKER"], "OUTPUT": [], "DOCKER": [],
    "DOCKER-USER": ["-j RETURN"],
}  # fmt: skip
WALLS = Walls("docker0", "f1", (8000,), ("9.9.9.9", "10.0.0.2"), ("10.1.0.0/16", "10.0.0.7:5432"))
OTHER = Walls("docker0", "f2", (9000,))
OWN = Walls("fl-f3", "f3", (8000,))


def saved(table: Table) -> str:
    heads = [f":{name} {'ACCEPT' if name in ('INPUT', 'FORWARD', 'OUTPUT') else '-'} [0:0]" for name in table]
    return "\n".join(["*filter", *heads, *(f"-A {name} {r}" for name, rules in table.items() for r in rules), "COMMIT"])


def restored(table: Table, text: str) -> Table:
    """What `iptables-restore --noflush` makes of the table; KeyError or ValueError where it would refuse."""
    table = {name: list(rules) for name, rules in table.items()}
    for line in text.splitlines():
        if line.startswith(":"):
            table[line[1:].split(" ")[0]] = []
            continue
        if not line.startswith("-"):
            continue
        flag, chain, *rest = line.split(" ", 2)
        match flag, rest:
            case "-A", [rule]:
                table[chain].append(rule)
            case "-I", [rule]:
                assert rule.startswith("1 ")
                table[chain].insert(0, rule[2:])
            case "-D", [rule]:
                table[chain].remove(rule)
            case "-F", []:
                table[chain].clear()
            case "-X", []:
                assert not table[chain]
                assert not any(rule.endswith(f" {chain}") for rules in table.values() for rule in rules)
                del table[chain]
            case _:
                raise ValueError(line)
    return table


def put_up(table: Table, walls: Walls) -> Table:
    return restored(table, restore_text(saved(table), walls))


FOREIGN = st.sampled_from(["-p tcp -m tcp --dport 22 -j ACCEPT", "-s 10.0.0.0/8 -j ACCEPT", "-j LOG"])
STEPS = st.one_of(
    st.tuples(st.just("up"), st.sampled_from([WALLS, OTHER, OWN])),
    st.tuples(st.just("first"), st.sampled_from(["INPUT", "FORWARD", "DOCKER-USER"]), FOREIGN),
    st.tuples(st.just("lose"), st.integers(0, 30)),
)


@given(steps=st.lists(STEPS, max_size=12))
def test_whatever_happened_they_stand_after_one_restore(steps: list[tuple[object, ...]]) -> None:
    table = {name: list(rules) for name, rules in DOCKERS.items()}
    for step in steps:
        match step:
            case ("up", Walls() as walls):
                table = put_up(table, walls)
            case ("first", str(chain), str(rule)):
                table[chain].insert(0, rule)
            case ("lose", int(number)):
                rules = [(chain, rule) for chain, found in table.items() for rule in found]
                if rules:
                    chain, rule = rules[number % len(rules)]
                    table[chain].remove(rule)
            case _:
                raise AssertionError(step)
    for walls in (WALLS, OTHER, OWN):
        foreign = {name: [r for r in rules if "FLEET" not in r] for name, rules in table.items() if "FLEET" not in name}
        table = put_up(table, walls)
        assert missing(saved(table), walls) == []
        after = {name: [r for r in rules if "FLEET" not in r] for name, rules in table.items() if "FLEET" not in name}
        assert {n: [r for r in rules if r != "-j DOCKER-USER"] for n, rules in after.items()} == {
            n: [r for r in rules if r != "-j DOCKER-USER"] for n, rules in foreign.items()
        }
    assert all(missing(saved(table), walls) == [] for walls in (WALLS, OTHER, OWN)), "fleets do not undo each other"
    for walls in (WALLS, OTHER):
        assert verdict(table, "INPUT", walls.bridge, "172.17.0.1", walls.api_ports[0]) == "ACCEPT"
    again = put_up(table, WALLS)
    assert {n: sorted(r) for n, r in again.items()} == {n: sorted(r) for n, r in table.items()}, "nothing piles up"
    for walls in (WALLS, OTHER, OWN):
        table = restored(table, removal_text(saved(table), walls.fleet_id))
        if walls is WALLS:
            assert missing(saved(table), OTHER) == [], "the bridge that they share keeps its walls"
        assert removal_text(saved(table), walls.fleet_id) == ""
    assert not any("FLEET" in name or any("FLEET" in r for r in rules) for name, rules in table.items())


def verdict(table: Table, first: str, bridge: str, to: str, port: int, *, out: str = "eth0") -> str:
    """What becomes of the first packet of a TCP connection from a game on the bridge."""
    for rule in table[first]:
        words = rule.split()
        facts = dict(pairwise(words))
        if facts.get("-i", bridge) != bridge or facts.get("-o", out) != out or "--ctstate" in facts:
            continue
        if "-d" in facts and ipaddress.ip_address(to) not in ipaddress.ip_network(facts["-d"]):
            continue
        if facts.get("-p", "tcp") != "tcp" or facts.get("--dport", str(port)) != str(port):
            continue
        target = facts["-j"]
        if target in ("ACCEPT", "DROP", "RETURN"):
            return target
        if target in table and (found := verdict(table, target, bridge, to, port, out=out)) in ("ACCEPT", "DROP"):
            return found
    return "RETURN"


@pytest.mark.parametrize(
    ("first", "to", "port", "expected"),
    [
        ("INPUT", "172.17.0.1", 6379, "DROP"),  # Ray on this machine
        ("INPUT", "203.0.113.9", 2375, "DROP"),  # the engine, by the machine's public address
        ("INPUT", "203.0.113.9", 8000, "ACCEPT"),  # the API
        ("INPUT", "172.17.0.1", 5432, "DROP"),
        ("FORWARD", "169.254.169.254", 80, "DROP"),  # the cloud's metadata
        ("FORWARD", "10.0.0.9", 6379, "DROP"),  # Ray's head elsewhere
        ("FORWARD", "10.0.0.9", 8000, "DROP"),
        ("FORWARD", "192.168.1.1", 80, "DROP"),
        ("FORWARD", "100.100.0.1", 80, "DROP"),
        ("FORWARD", "10.0.0.2", 53, "ACCEPT"),  # its resolver
        ("FORWARD", "10.0.0.2", 80, "DROP"),
        ("FORWARD", "10.1.2.3", 9999, "ACCEPT"),  # what the operator allows
        ("FORWARD", "10.0.0.7", 5432, "ACCEPT"),
        ("FORWARD", "10.0.0.7", 22, "DROP"),
        ("FORWARD", "1.1.1.1", 443, "RETURN"),  # the world
    ],
)
def test_where_a_game_may_go(first: str, to: str, port: int, expected: str) -> None:
    table = put_up(put_up(DOCKERS, OTHER), WALLS)
    assert verdict(table, first, "docker0", to, port) == expected
    assert verdict(table, first, "eth1", to, port) == "RETURN", "others' packets are none of our business"


def test_games_do_not_reach_each_other_not_even_by_their_public_ports() -> None:
    table = put_up(DOCKERS, WALLS)
    assert verdict(table, "FORWARD", "docker0", "8.8.8.8", 7777, out="docker0") == "DROP"


@pytest.mark.parametrize("order", list(permutations((WALLS, OTHER, OWN))))
def test_what_a_fleet_allows_stands_before_what_any_refuses(order: tuple[Walls, ...]) -> None:
    table = {name: list(rules) for name, rules in DOCKERS.items()}
    for walls in order:
        table = put_up(table, walls)
        assert put_up(table, walls) == table, "a second time changes nothing"
    for walls in order:
        assert missing(saved(table), walls) == []
        assert verdict(table, "INPUT", walls.bridge, "172.17.0.1", walls.api_ports[0]) == "ACCEPT"
        assert verdict(table, "INPUT", walls.bridge, "172.17.0.1", 22) == "DROP"
        assert verdict(table, "FORWARD", walls.bridge, "169.254.169.254", 80) == "DROP"
    assert verdict(table, "FORWARD", "docker0", "10.1.2.3", 9999) == "ACCEPT"


@pytest.mark.parametrize(("first", "second"), [(WALLS, OTHER), (OTHER, WALLS)])
def test_a_fleet_of_before_that_undid_the_order_is_seen_and_mended(first: Walls, second: Walls) -> None:
    """As fleets once put their walls up: their own jumps first, so the other's allowances came behind the refusals."""
    table = put_up(put_up(DOCKERS, first), second)
    refusing, own = "-i docker0 -j FLEET-IN-docker0", f"-i docker0 -j FLEET-OK-{second.fleet_id}-IN"
    others = f"-i docker0 -j FLEET-OK-{first.fleet_id}-IN"
    table["INPUT"] = [own, refusing, others]
    assert missing(saved(table), first) == [f"INPUT refuses before FLEET-OK-{first.fleet_id}-IN"]
    assert verdict(table, "INPUT", "docker0", "172.17.0.1", first.api_ports[0]) == "DROP"
    table = put_up(table, first)
    assert missing(saved(table), first) == missing(saved(table), second) == []
    assert verdict(table, "INPUT", "docker0", "172.17.0.1", first.api_ports[0]) == "ACCEPT"


def test_what_is_wrong_is_said() -> None:
    assert any("does not lead" in problem for problem in missing(saved(DOCKERS), WALLS))
    table = put_up(DOCKERS, WALLS)
    table["INPUT"].insert(0, "-s 172.17.0.0/16 -j ACCEPT")
    assert [p for p in missing(saved(table), WALLS)] == [
        "INPUT decides before FLEET-OK-f1-IN", "INPUT decides before FLEET-IN-docker0"
    ]  # fmt: skip
    table = put_up(DOCKERS, WALLS)
    table["FORWARD"].remove("-j DOCKER-USER")
    assert missing(saved(table), WALLS) == ["FORWARD does not begin with DOCKER-USER"]
    assert rules_of("") == {}


def test_resolvers_and_what_may_be_reached_are_read_strictly() -> None:
    named = ("127.0.0.53", "10.0.0.2", "fe80::1%eth0", "10.0.0.2")
    text = "".join(f"nameserver {server}\n" for server in named) + "# nameserver 1.1.1.1\n"
    assert resolvers_of(text) == ("10.0.0.2",)
    for bad in ("example.com", "10.0.0.0/33", "10.0.0.1:0", "10.0.0.1:70000", "10.0.0.1 -j ACCEPT", "::1"):
        with pytest.raises(ValueError):  # noqa: PT011
            check_reach(bad)
    assert check_reach("10.0.0.7:5432") == "10.0.0.7:5432"
