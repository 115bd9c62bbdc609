"""Accounts of a container as both generations of the kernel's cgroups write them."""

from pathlib import Path

from fleet.node.cgroup import cgroup_of, usage_of

DEV = """Inter-|   Receive                |  Transmit
 face |bytes    packets errs drop |bytes    packets errs
    lo: 9000 1 0 0 0 0 0 0 9000 1 0 0 0 0 0 0
  eth0: 1500 10 0 0 0 0 0 0 2500 12 0 0 0 0 0 0
"""
SNMP = """Ip: Forwarding DefaultTTL
Ip: 1 64
Tcp: RtoAlgorithm CurrEstab InSegs
Tcp: 1 7 99
Udp: InDatagrams
Udp: 5
"""


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def network(folder: Path) -> Path:
    write(folder / "dev", DEV)
    write(folder / "snmp", SNMP)
    write(folder / "sockstat", "sockets: used 3\nTCP: inuse 9 orphan 0\nUDP: inuse 2 mem 0\n")
    write(folder / "sockstat6", "TCP6: inuse 1\nUDP6: inuse 1\n")
    return folder


def test_version_one(tmp_path: Path) -> None:
    write(tmp_path / "proc/42/cgroup", "5:memory:/docker/abc\n2:cpu,cpuacct:/docker/abc\n0::/docker/abc\n")
    write(tmp_path / "fs/cpuacct/docker/abc/cpuacct.usage", "123456789\n")
    write(tmp_path / "fs/memory/docker/abc/memory.usage_in_bytes", "5000\n")
    write(tmp_path / "fs/memory/docker/abc/memory.stat", "cache 9\ninactive_file 1\ntotal_inactive_file 2000\n")
    usage = usage_of(cgroup_of(42, tmp_path / "fs", tmp_path / "proc"), network(tmp_path / "net"), own_connections=2)
    assert (usage.cpu_ns, usage.memory_bytes) == (123456789, 3000)
    assert (usage.rx_bytes, usage.tx_bytes) == (1500, 2500)
    assert usage.connections == 7 - 2 * 2 + 2 + 1


def test_version_two(tmp_path: Path) -> None:
    write(tmp_path / "proc/42/cgroup", "0::/system.slice/docker-abc.scope\n")
    write(tmp_path / "fs/cgroup.controllers", "cpu memory\n")
    here = tmp_path / "fs/system.slice/docker-abc.scope"
    write(here / "cpu.stat", "usage_usec 2500\nuser_usec 1\n")
    write(here / "memory.current", "5000\n")
    write(here / "memory.stat", "anon 1\ninactive_file 6000\n")
    usage = usage_of(cgroup_of(42, tmp_path / "fs", tmp_path / "proc"), network(tmp_path / "net"), own_connections=9)
    assert (usage.cpu_ns, usage.memory_bytes) == (2_500_000, 0)
    assert usage.connections == 3, "never below the bound sockets"
