"""The walls on the kernel's real packet filter, in a network namespace of the test's own: nothing else is touched."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

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
said["f2 lacks"] = [p for p in missing(_saved(), other) if "decides before" not in p]
take_down("f2", lock)
said["after"] = _saved()
print(json.dumps(said))
"""


def test_rules_are_put_up_mended_and_taken_away(tmp_path: Path) -> None:
    missing_tools = [tool for tool in ("unshare", "iptables-save", "iptables-restore") if shutil.which(tool) is None]
    if os.geteuid() != 0 or missing_tools:
        pytest.skip(f"needs root and {', '.join(missing_tools) or 'a new network namespace'}")
    command = ["unshare", "--net", sys.executable, "-c", PROGRAM, str(tmp_path / "lock")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
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
