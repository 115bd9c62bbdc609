"""The walls around game containers, as rules of the kernel's packet filter. Pure: what must stand there, what does.

A stranger's build runs in there. From its bridge it may reach the public internet, its resolver, this fleet's API and
what the operator allows; not this machine (Ray, the engine, the database, the nodes' agents), not private networks, not
the cloud's metadata address, not another game. Answers to those who came to it are let through, whoever they are.

Two pairs of chains: what is refused belongs to the bridge and is the same for every fleet that uses it; what is allowed
belongs to the fleet and stands before it. All is put in place by one `iptables-restore`, so there is no moment without.

Fleets of one machine agree on one order, whoever came last: first everything that any fleet allows, then everything
that is refused. Each looks for it and mends it, by moving the jumps of all; where it stands, nobody touches anything.
"""

import ipaddress
import re
from dataclasses import dataclass

# "This" network, private ones, carrier-grade NAT, loopback, link-local with the metadata addresses, benchmarks,
# multicast and reserved.
REFUSED = (
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16",
    "198.18.0.0/15", "224.0.0.0/3",
)  # fmt: skip
_ANSWERS = "-m conntrack --ctstate RELATED,ESTABLISHED -j RETURN"


@dataclass(frozen=True, slots=True)
class Walls:
    """`api_ports`: of this fleet on this machine. `resolvers`: name servers that games may ask. `reach`: what else they
    may reach, as `address`, `network/bits` or `address:port` (TCP)."""

    bridge: str
    fleet_id: str
    api_ports: tuple[int, ...]
    resolvers: tuple[str, ...] = ()
    reach: tuple[str, ...] = ()
    outer: str = "DOCKER-USER"  # where forwarded packets come by first

    def chains(self) -> dict[str, list[str]]:
        """Each chain of ours with its rules, as `iptables-save` writes them."""
        asked = [
            f"-d {_network(ip)} -p {p} -m {p} --dport 53 -j ACCEPT" for ip in self.resolvers for p in ("udp", "tcp")
        ]
        allowed = [*asked, *(_allow(target) for target in self.reach)]
        here, there = own_chains(self.fleet_id)
        host, away = bridge_chains(self.bridge)
        return {
            here: [*allowed, *(f"-p tcp -m tcp --dport {port} -j ACCEPT" for port in self.api_ports)],
            there: allowed,
            host: [_ANSWERS, "-j DROP"],
            away: [_ANSWERS, f"-o {self.bridge} -j DROP", *(f"-d {network} -j DROP" for network in REFUSED)],
        }

    def jumps(self) -> list[tuple[str, str]]:
        """(chain, rule): what leads to the chains."""
        here, there = own_chains(self.fleet_id)
        host, away = bridge_chains(self.bridge)
        targets = [("INPUT", here), ("INPUT", host), (self.outer, there), (self.outer, away)]
        return [(parent, f"-i {self.bridge} -j {chain}") for parent, chain in targets]


def own_chains(fleet_id: str) -> tuple[str, str]:
    return f"FLEET-OK-{fleet_id[:12]}-IN", f"FLEET-OK-{fleet_id[:12]}-FW"


def bridge_chains(bridge: str) -> tuple[str, str]:
    return f"FLEET-IN-{bridge}", f"FLEET-FW-{bridge}"


def missing(saved: str, walls: Walls) -> list[str]:
    """What is not as it must be, in words, given what `iptables-save` says; nothing if the walls stand."""
    rules = rules_of(saved)
    wrong = [f"chain {name} differs" for name, wanted in walls.chains().items() if rules.get(name) != wanted]
    for parent, jump in walls.jumps():
        before = rules.get(parent, [])
        if jump not in before:
            wrong.append(f"{parent} does not lead to {jump.rsplit(' ', 1)[1]}")
        elif any(not _is_jump(rule) for rule in before[: before.index(jump)]):
            wrong.append(f"{parent} decides before {jump.rsplit(' ', 1)[1]}")
        elif _allows(jump) and not all(map(_allows, before[: before.index(jump)])):
            wrong.append(f"{parent} refuses before {jump.rsplit(' ', 1)[1]}")
    if walls.outer != "FORWARD" and rules.get("FORWARD", [])[:1] != [f"-j {walls.outer}"]:
        wrong.append(f"FORWARD does not begin with {walls.outer}")
    return wrong


def restore_text(saved: str, walls: Walls) -> str:
    """Input of `iptables-restore --noflush` that puts the walls up, whatever of them stands there already."""
    rules = rules_of(saved)
    lines = ["*filter"]
    for name, wanted in walls.chains().items():
        lines += [f":{name} - [0:0]", *(f"-A {name} {rule}" for rule in wanted)]
    for parent in dict.fromkeys(parent for parent, _ in walls.jumps()):
        standing = [rule for rule in rules.get(parent, []) if _is_jump(rule)]
        ours = [jump for of, jump in walls.jumps() if of == parent]
        lines += [f"-D {parent} {rule}" for rule in standing]
        lines += [f"-I {parent} 1 {rule}" for rule in reversed(_in_order([*standing, *ours]))]
    if walls.outer != "FORWARD":
        lines += [f"-D FORWARD -j {walls.outer}"] * rules.get("FORWARD", []).count(f"-j {walls.outer}")
        lines.append(f"-I FORWARD 1 -j {walls.outer}")
    return "\n".join([*lines, "COMMIT", ""])


def _is_jump(rule: str) -> bool:
    """Whether it leads to a chain of some fleet."""
    return " -j FLEET-" in rule


def _allows(jump: str) -> bool:
    return " -j FLEET-OK-" in jump


def _in_order(jumps: list[str]) -> list[str]:
    """Each once, what allows before what refuses, else as they stand."""
    return sorted(dict.fromkeys(jumps), key=lambda jump: not _allows(jump))


def removal_text(saved: str, fleet_id: str) -> str:
    """Input that takes a fleet's chains away with all that leads to them, and those of bridges that nobody else uses;
    empty if there are none."""
    rules = rules_of(saved)
    own = set(own_chains(fleet_id))
    jumps = [(parent, rule) for parent, found in rules.items() for rule in found if _is_jump(rule)]
    bridges = {rule.split()[1] for _, rule in jumps if rule.split()[-1] in own}
    used = {rule.split()[1] for _, rule in jumps if _allows(rule) and rule.split()[-1] not in own}
    chains = own | {chain for bridge in bridges - used for chain in bridge_chains(bridge)}
    gone = sorted(chains & rules.keys())
    if not gone:
        return ""
    cut = [f"-D {parent} {rule}" for parent, rule in jumps if rule.split()[-1] in gone]
    emptied, removed = [f"-F {name}" for name in gone], [f"-X {name}" for name in gone]
    return "\n".join(["*filter", *cut, *emptied, *removed, "COMMIT", ""])


def rules_of(saved: str) -> dict[str, list[str]]:
    """The filter table as `iptables-save` writes it: rules per chain, in order, without their chain's name."""
    found: dict[str, list[str]] = {}
    for line in saved.splitlines():
        if line.startswith(":"):
            found.setdefault(line[1:].split(" ", 1)[0], [])
        elif line.startswith("-A "):
            _, chain, rule = line.split(" ", 2)
            found.setdefault(chain, []).append(rule)
    return found


def resolvers_of(resolv_conf: str) -> tuple[str, ...]:
    """IPv4 name servers that containers are given: those of the host that are not its own loopback."""
    named = re.findall(r"^\s*nameserver\s+(\S+)", resolv_conf, re.MULTILINE)
    return tuple(ip for ip in dict.fromkeys(named) if re.fullmatch(r"\d+(\.\d+){3}", ip) and not ip.startswith("127."))


def check_reach(target: str) -> str:
    """The target as it is; ValueError if it is none."""
    _allow(target)
    return target


def _allow(target: str) -> str:
    address, _, port = target.partition(":")
    if not port:
        return f"-d {_network(address)} -j ACCEPT"
    if not 0 < int(port) < 65536:
        raise ValueError(f"{port} is no port")
    return f"-d {_network(address)} -p tcp -m tcp --dport {int(port)} -j ACCEPT"


def _network(text: str) -> str:
    return str(ipaddress.IPv4Network(text, strict=False))
