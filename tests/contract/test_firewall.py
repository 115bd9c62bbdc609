"""The walls on the kernel's real packet filter, in a network namespace of the test's own: nothing else is touched."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = """
import json, sys
from dataclasses import replace
from pathlib import Path
from fleet.node.firewall import Walls, missing
from fleet.node.isolation import NoWalls, _put_up, _restore, _saved, take_down

lock = Path(sys.argv[1])
said = {}
walls = Walls("docker0", "f1", (8000,), ("10.0.0.2",), ("10.1.0.0/16", "10.0.0.7:5432"))
other = Walls("fl-f2", "f2", (9000,))
try:
    _put_up(walls, lock)
except NoWalls as error:
    said["without an engine"] = str(error)
_restore("*filter\\n:DOCKER-USER - [0:0]\\n-A DOCKER-USER -j RETURN\\n-A FORWARD -j DOCKER-USER\\n"
         "-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT\\nCOMMIT\\n")
said["first"] = _put_up(walls, lock)
said["second"] = _put_up(walls, lock)
said["other"] = [_put_up(other, lock), _put_up(walls, lock)]
_restore("*filter\\n-F FLEET-FW-docker0\\n-I INPUT 1 -s 10.0.0.0/8 -j ACCEPT\\nCOMMIT\\n")
said["mended"] = _put_up(walls, lock)
said["left"] = missing(_saved(), walls)
said["foreign"] = "--dport 22 -j ACCEPT" in _saved()
take_down("f1", lock)
said["f2 lacks"] = missing(_saved(), other)
take_down("f2", lock)
said["after"] = _saved()
print(json.dumps(said))
"""


# Two fleets with one bridge, `docker0`, and a game behind it: a namespace of its own that knocks at this one's ports.
KNOCK = """
import json, socket
found = []
for port in (8001, 8002, 6379):
    try:
        socket.create_connection(("172.17.0.1", port), timeout=1).close()
    except OSError:
        continue
    found.append(port)
print(json.dumps(found))
"""
TWO_FLEETS = """
import json, socket, subprocess, sys
from pathlib import Path
from fleet.node.firewall import Walls, missing
from fleet.node.isolation import _put_up, _restore, _saved, take_down

lock, order, knock = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
fleets = {"f1": Walls("docker0", "f1", (8001,)), "f2": Walls("docker0", "f2", (8002,))}
first, second = (fleets[name] for name in order.split(","))

def run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout

def reached():
    return json.loads(run(*inside, sys.executable, "-c", knock))

run("ip", "link", "set", "lo", "up")
game = subprocess.Popen(["unshare", "--net", "sh", "-c", "echo ready; exec sleep 120"], stdout=subprocess.PIPE)
game.stdout.readline()
inside = ("nsenter", "-t", str(game.pid), "-n")
listening = [socket.create_server(("0.0.0.0", port)) for port in (8001, 8002, 6379)]
said = {}
try:
    run("ip", "link", "add", "docker0", "type", "veth", "peer", "name", "eth0", "netns", str(game.pid))
    run("ip", "addr", "add", "172.17.0.1/16", "dev", "docker0")
    run("ip", "link", "set", "docker0", "up")
    run(*inside, "ip", "addr", "add", "172.17.0.2/16", "dev", "eth0")
    run(*inside, "ip", "link", "set", "eth0", "up")
    _restore("*filter\\n:DOCKER-USER - [0:0]\\n-A DOCKER-USER -j RETURN\\n-A FORWARD -j DOCKER-USER\\nCOMMIT\\n")
    said["without walls"] = reached()
    _put_up(first, lock), _put_up(second, lock)
    said["both"] = reached()
    said["stable"] = [_put_up(first, lock), _put_up(second, lock)]
    jumps = [line[9:] for line in _saved().splitlines() if line.startswith("-A INPUT ")]
    (refusing,) = [jump for jump in jumps if "-OK-" not in jump]
    _restore(f"*filter\\n-D INPUT {refusing}\\n-I INPUT 1 {refusing}\\nCOMMIT\\n")
    said["refused first"] = reached()
    said["seen"] = [bool(missing(_saved(), walls)) for walls in (first, second)]
    said["mended"] = [bool(_put_up(first, lock)), bool(_put_up(second, lock))]
    said["after mending"] = reached()
    take_down(first.fleet_id, lock)
    said["without the first"] = reached()
    said["second stands"] = missing(_saved(), second) == []
    _put_up(first, lock)
    said["restarted"] = reached()
    said["still"] = [missing(_saved(), walls) for walls in (first, second)]
finally:
    game.kill()
    game.wait()
    for one in listening:
        one.close()
print(json.dumps(said))
"""


def needs_a_namespace(*tools: str) -> None:
    missing_tools = [tool for tool in ("unshare", *tools) if shutil.which(tool) is None]
    if os.geteuid() != 0 or missing_tools:
        pytest.skip(f"needs root and {', '.join(missing_tools) or 'a new network namespace'}")


def said_by(program: str, *arguments: str) -> dict[str, Any]:
    command = ["unshare", "--net", sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("order", ["f1,f2", "f2,f1"])
def test_two_fleets_with_one_bridge_keep_what_each_allows(tmp_path: Path, order: str) -> None:
    needs_a_namespace("nsenter", "ip", "iptables-save", "iptables-restore")
    said = said_by(TWO_FLEETS, str(tmp_path / "lock"), order, KNOCK)
    apis = [8001, 8002]
    assert said["without walls"] == [*apis, 6379]
    assert said["both"] == apis, "whoever came last"
    assert said["stable"] == [[], []], "nobody undoes another's"
    assert said["refused first"] == []
    assert said["seen"] == [True, True]
    assert said["mended"] == [True, False], "one mends it for both"
    assert said["after mending"] == apis
    stays = {"f1": 8001, "f2": 8002}[order.split(",")[1]]
    assert said["without the first"] == [stays]
    assert said["second stands"]
    assert said["restarted"] == apis
    assert said["still"] == [[], []]


def test_rules_are_put_up_mended_and_taken_away(tmp_path: Path) -> None:
    needs_a_namespace("iptables-save", "iptables-restore")
    said = said_by(PROGRAM, str(tmp_path / "lock"))
    assert "DOCKER-USER" in said["without an engine"]
    assert said["first"], "nothing stood there"
    assert said["second"] == [], "what stands is left alone: the kernel writes rules as we do"
    assert said["other"][0], "another fleet's too"
    assert said["other"][1] == [], "and it has not undone ours"
    assert any("FLEET-FW-docker0" in problem for problem in said["mended"])
    assert any("decides before" in problem for problem in said["mended"])
    assert said["left"] == []
    assert said["foreign"], "the machine's own rules stay"
    assert said["f2 lacks"] == []
    assert "FLEET" not in said["after"]
    assert "DOCKER-USER" in said["after"]
