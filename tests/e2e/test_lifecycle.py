"""A server's whole life through the public API, on real containers."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests import games
from tests.player import Studio, ask, stopped_after
from tests.waiting import eventually

pytestmark = [pytest.mark.fleet, pytest.mark.docker]


@pytest.fixture(scope="module")
def demo(studio: Studio) -> str:
    assert studio.push(games.demo_zip(), "life-demo")["status"] == "ready"
    return "life-demo"


def push(studio: Studio, name: str, files: games.Files) -> str:
    build = studio.push(games.make_zip(files), name)
    assert build["status"] == "ready", build
    return name


def test_a_player_reaches_the_server_and_the_game_knows_its_match(studio: Studio, demo: str) -> None:
    server = studio.start(
        demo,
        custom_data={"map": "dust"},
        match_id="m-1",
        startup_args="--port 9000",
        environment_variables={"MODE": "ranked"},
        port_configs=[{"name": "play", "internal_port": 9000, "protocol": "udp"}],
    )
    with stopped_after(studio, server):
        assert ask(server, "ping 1").startswith(f"pong {server['instance_id'][:8]}")
        assert json.loads(ask(server, "state"))["custom_data"] == {"map": "dust"}
        assert ask(server, "env MODE") == "env MODE=ranked"
        assert ask(server, "env PLAYFLOW_MATCH_ID") == "env PLAYFLOW_MATCH_ID=m-1"
        assert ask(server, "env PLAYFLOW_STARTUP_ARGS") == "env PLAYFLOW_STARTUP_ARGS=--port 9000"
        studio.call("POST", f"/servers/{server['instance_id']}/update", json={"custom_data": {"map": "aztec"}})
        end = time.monotonic() + 10
        while json.loads(state := ask(server, "state"))["custom_data"] != {"map": "aztec"}:
            assert time.monotonic() < end, state
    assert studio.server(server)["status"] == "stopped"


def test_what_a_server_uses_is_seen_over_time(studio: Studio) -> None:
    server = studio.start(push(studio, "life-busy", games.busy()))
    path = f"/servers/{server['instance_id']}/metrics"
    with stopped_after(studio, server):

        def seen() -> bool:
            series = studio.call("GET", path, params={"period": "5m", "step": "15s"})["series"]
            return any(value > 20 for _, value in series["cpu_percent"]) and bool(series["memory_mb"])

        eventually(seen, 60, "the server's CPU shows in its metrics")


def test_the_journal_has_every_step_in_order(studio: Studio, demo: str) -> None:
    server = studio.start(demo)
    assert ask(server, "quit") == "bye"
    studio.server(server, "stopped")
    types = [event["type"] for event in studio.events(server)]
    assert types == ["queued", "placed", "preparing", "creating", "booting", "running", "stopped"]
    assert studio.last_stop(server)["reason"] == "exited"
    assert studio.last_stop(server)["exit_code"] == 0


def test_a_crash_keeps_its_exit_code_and_last_words(studio: Studio) -> None:
    push(studio, "life-crash", games.crash(7))
    server = studio.start("life-crash", wait=False)
    stopped = studio.server(server, "stopped")
    assert stopped["status"] == "stopped"
    assert stopped["network_ports"] == []
    data = studio.last_stop(server)
    assert (data["reason"], data["exit_code"]) == ("crashed", 7)
    assert "fatal: no map" in data["detail"]
    assert "fatal: no map" in studio.log(server)


def test_auto_restart_brings_it_back_on_other_ports_and_gives_up_in_a_crash_loop(studio: Studio, demo: str) -> None:
    server = studio.start(demo, auto_restart=True)
    with stopped_after(studio, server):
        assert ask(server, "crash 5") == "crashing"
        again = studio.until(
            server, lambda s: s["status"] == "running" and s["network_ports"] != server["network_ports"]
        )
        assert ask(again, "ping 2").startswith("pong")
        assert "restarting" in [event["type"] for event in studio.events(server)]
    push(studio, "life-loop", games.crash(1))
    looping = studio.start("life-loop", auto_restart=True, wait=False)
    studio.until(looping, lambda s: s["status"] == "stopped")
    assert "Crash loop" in studio.last_stop(looping)["detail"]


def test_restart_keeps_the_id_and_applies_changes(studio: Studio, demo: str) -> None:
    server = studio.start(demo, custom_data={"a": 1})
    with stopped_after(studio, server):
        body = {"custom_data": {"b": 2}, "environment_variables": {"MODE": "casual"}}
        path = f"/servers/{server['instance_id']}/restart"
        assert studio.call("POST", path, json=body)["status"] == "launching"
        again = studio.server(server, "running")
        assert again["custom_data"] == {"b": 2}
        assert ask(again, "env MODE") == "env MODE=casual"
        assert again["network_ports"] != server["network_ports"]


def test_a_server_that_never_opens_its_port_says_why(studio: Studio) -> None:
    push(studio, "life-loopback", games.loopback_only())
    server = studio.start("life-loopback", wait=False)
    studio.server(server, "stopped")
    data = studio.last_stop(server)
    assert data["reason"] == "never_ready"
    assert "loopback" in data["detail"]


def test_an_image_that_cannot_start_is_a_clear_failure(studio: Studio) -> None:
    push(studio, "life-badscript", games.script("exit 0", "/no/such/interpreter"))
    server = studio.start("life-badscript", wait=False)
    studio.server(server, "stopped")
    assert studio.last_stop(server)["shutdown_reason"] == "STARTUP_FAILURE_EXECUTABLE"


def test_stop_while_launching_and_twice(studio: Studio) -> None:
    push(studio, "life-slow", games.slow_boot(30))
    server = studio.start("life-slow", wait=False)
    assert server["status"] == "launching"
    studio.stop(server)
    studio.stop(server)
    assert studio.server(server)["status"] == "stopped"
    assert studio.last_stop(server)["reason"] == "requested"


def test_a_deaf_server_is_killed_after_its_grace(studio: Studio) -> None:
    push(studio, "life-deaf", games.deaf())
    server = studio.start("life-deaf")
    studio.stop(server)
    studio.until_gone(server)
    assert studio.events(server)[-1]["data"]["exit_code"] == 137


def test_memory_eaters_forks_and_floods_harm_only_themselves(studio: Studio, demo: str) -> None:
    good = studio.start(demo)
    push(studio, "life-eater", games.memory_eater())
    push(studio, "life-forks", games.fork_bomb())
    push(studio, "life-filler", games.disk_filler())
    push(studio, "life-flood", games.log_writer())
    with stopped_after(studio, good):
        eater = studio.start("life-eater", wait=False)
        others = [studio.start(name, wait=False) for name in ("life-forks", "life-filler", "life-flood")]
        with stopped_after(studio, *others):
            studio.server(eater, "stopped")
            assert studio.last_stop(eater)["reason"] == "out_of_memory"
            for number in range(20):
                assert ask(good, f"ping {number}").startswith("pong")


def test_twenty_at_once_all_run_on_different_ports(studio: Studio, demo: str) -> None:
    with ThreadPoolExecutor(20) as pool:
        servers = list(pool.map(lambda n: studio.start(demo, name=f"n{n}", region="eu-west"), range(20)))
    with stopped_after(studio, *servers):
        ports = {s["network_ports"][0]["external_port"] for s in servers}
        assert len(ports) == 20
        for server in servers:
            assert ask(server, "ping x").startswith(f"pong {server['instance_id'][:8]}")


def test_ttl_ends_a_server(studio: Studio, demo: str) -> None:
    server = studio.start(demo, ttl=60)
    stopped = studio.until_stopped(server, 120)
    assert stopped["status"] == "stopped"
    assert studio.last_stop(server)["shutdown_reason"] == "TTL_EXPIRED"


def test_a_deleted_build_serves_on_and_its_storage_goes_with_its_last_server(studio: Studio) -> None:
    files = games.demo() | {"unique.txt": (str(time.time()).encode(), 0o644)}
    build = studio.push(games.make_zip(files), "life-deleted")
    server = studio.start("life-deleted", auto_restart=True)
    studio.call("DELETE", f"/builds/{build['build_id']}")
    assert ask(server, "crash 2") == "crashing"
    again = studio.until_elsewhere(server)
    assert ask(again, "ping 1").startswith("pong")
    studio.stop(server)
    studio.start("life-deleted", wait=False, expect=404)
