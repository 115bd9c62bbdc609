"""The pure parts of operating a fleet: proxy configuration, Serve config, packing, identities, port ranges."""

import os
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from fleet.cli_api import parse_port
from fleet.client.packing import pack
from fleet.errors import BadRequest
from fleet.ops.api import render
from fleet.ops.haproxy import write_shim
from fleet.ops.haproxy_shim import Changes, mend
from fleet.ops.head import Head, child_environment, read_head
from fleet.ops.home import (
    OpsError,
    free_ports,
    make_run_dir,
    open_home,
    port_is_free,
    read_json,
    reserve_ports,
    write_private,
)
from fleet.ops.logs import KEPT_SESSIONS, keep_ray_logs
from fleet.ops.processes import MARKER, ProcessId, end, environment_of, identify, is_alive, supervised
from fleet.ops.supervisor import AlreadyRunning, lock_holder, take_lock
from fleet.region.nodes_config import load_nodes_config
from fleet.settings import FleetSettings

SERVE_CONFIG = """global
    stats socket /run/x/admin.sock mode 666 level admin expose-fd listeners
    tune.bufsize 16384
defaults
    errorfile 503 /run/x/500.http
frontend prometheus
    bind :9101
frontend http_frontend
    bind 127.0.0.1:8000
    default_backend default_backend
backend default_backend
    http-request return status 404 content-type text/plain string "Not found"
listen stats
  bind *:8404
"""


def test_proxy_config_becomes_private() -> None:
    wanted = Changes(
        binds=["127.0.0.1:8000", "10.0.0.7:8000"],
        frontend=["timeout http-request 10s"],
        nowhere=["http-request deny deny_status 503"],
        sections=["backend more"],
        pages={"503": "/run/x/ours.http"},
        buffer_bytes=99,
    )
    mended = mend(SERVE_CONFIG, wanted)
    assert [line.split()[1] for line in mended.splitlines() if "bind " in line] == ["127.0.0.1:8000", "10.0.0.7:8000"]
    assert "9101" not in mended, "metrics are closed"
    assert "8404" not in mended, "statistics too"
    assert "mode 600 level admin" in mended
    assert "tune.bufsize 99" in mended
    assert "errorfile 503 /run/x/ours.http" in mended
    assert "500.http" not in mended
    assert "status 404" not in mended
    assert mended.endswith("backend more\n")
    assert mend(mended, wanted) == mended


def test_an_unknown_bind_to_every_interface_becomes_loopback() -> None:
    assert "bind 127.0.0.1:9\n" in mend("frontend grpc_frontend\n    bind *:9\n", Changes())
    assert "bind 127.0.0.1:9\n" in mend("frontend http_frontend\n    bind :9\n", Changes())


def test_shim_becomes_the_proxy_and_mends_its_config(tmp_path: Path) -> None:
    folder = tmp_path / "a folder's name"
    folder.mkdir()
    config = folder / "haproxy.cfg"
    config.write_text(SERVE_CONFIG)
    shim = write_shim(folder, "/bin/echo", Changes())
    done = subprocess.run([shim, "-db", "-f", config, "-sf", "1"], capture_output=True, text=True, check=True)
    assert done.stdout.split() == f"-db -f {config} -sf 1".split()
    assert "bind :9101" not in config.read_text()
    assert stat.S_IMODE(config.stat().st_mode) == 0o600


def test_serve_config_takes_address_and_replicas_from_settings() -> None:
    config = render(FleetSettings(host="0.0.0.0", port=1234, replicas=5))
    assert config["http_options"]["port"] == 1234
    assert config["applications"][0]["deployments"][0]["num_replicas"] == 5
    assert yaml.safe_load(yaml.safe_dump(config)) == config


def test_home_is_private_and_keeps_its_id(tmp_path: Path) -> None:
    home = open_home(tmp_path / "home")
    assert stat.S_IMODE(home.path.stat().st_mode) == 0o700
    assert stat.S_IMODE(home.token_file.stat().st_mode) == 0o600
    assert len(home.fleet_id) == 8
    assert open_home(tmp_path / "home") == home


def test_run_dir_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    home = open_home(tmp_path / "home")
    home.run_dir.symlink_to(tmp_path)
    with pytest.raises(OpsError, match="belongs to somebody else"):
        make_run_dir(home)


def test_half_written_records_count_as_missing(tmp_path: Path) -> None:
    home = open_home(tmp_path)
    home.head_file.write_text('{"address": "127.')
    assert read_json(home.head_file) is None
    assert read_head(home) is None
    write_private(home.head_file, '{"address": "x"}')
    assert read_head(home) is None


def test_free_ports_are_distinct_and_free() -> None:
    reserve_ports(5500)
    ports = [*free_ports(10), *free_ports(20, first=5500, last=5600), *free_ports(20, first=5500, last=5600)]
    assert len({5500, *ports}) == 51, "who was given a port listens there only later, and it is given to no other"
    assert all(port_is_free("127.0.0.1", port) for port in ports)


def test_only_one_supervisor_holds_the_lock(tmp_path: Path) -> None:
    home = open_home(tmp_path)
    assert lock_holder(home) is None
    with take_lock(home):
        assert lock_holder(home) == os.getpid()
        with pytest.raises(AlreadyRunning):
            take_lock(home)
    assert lock_holder(home) is None


def test_a_number_given_to_another_process_is_another_process() -> None:
    me = identify(os.getpid())
    assert me is not None
    assert is_alive(me)
    assert not is_alive(ProcessId(me.pid, me.start + 1))


def test_end_meets_only_what_bears_the_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    home = open_home(tmp_path / "home")
    make_run_dir(home)
    sleep = [sys.executable, "-c", "import signal; signal.pause()"]
    marked = os.environ | {MARKER: str(home.path)}
    by_mark = subprocess.Popen(sleep, env=marked)
    by_folder = subprocess.Popen(sleep, cwd=home.work_dir)
    game = subprocess.Popen(sleep, env={}, cwd=home.path)
    stranger = subprocess.Popen(sleep, env=os.environ | {MARKER: str(tmp_path / "other")})
    processes = (by_mark, by_folder, game, stranger)
    try:
        assert set(supervised(home)) == {by_mark.pid, by_folder.pid}
        assert end([process.pid for process in processes], home, grace_s=10) == 2
        assert by_mark.wait(10) == by_folder.wait(10) == -15
        assert game.poll() is None
        assert stranger.poll() is None
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_children_do_not_inherit_another_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    environment = child_environment({"A": "1"})
    assert "RAY_ADDRESS" not in environment
    assert environment["A"] == "1"
    assert environment["PATH"].startswith(str(Path(sys.executable).parent))


def test_environment_of_a_gone_process_is_empty() -> None:
    process = subprocess.Popen(["/bin/true"])
    process.wait()
    assert environment_of(process.pid) == {}


def test_ray_logs_are_kept_but_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    home = open_home(tmp_path / "home")
    for day in range(KEPT_SESSIONS + 2):
        make_run_dir(home)
        session = home.run_dir / "ray" / f"session_2026-01-0{day}"
        (session / "logs").mkdir(parents=True)
        (session.parent / "session_latest").symlink_to(session)
        keep_ray_logs(home)
    kept = sorted(path.name for path in home.logs.glob("ray-2*"))
    assert kept == [f"ray-2026-01-0{day}" for day in range(2, KEPT_SESSIONS + 2)]
    assert not home.run_dir.exists()


def test_pack_keeps_execute_bits_and_leaves_out_version_control(tmp_path: Path) -> None:
    game = tmp_path / "game"
    (game / ".git").mkdir(parents=True)
    (game / ".git" / "config").write_text("secret")
    (game / "data").mkdir()
    (game / "data" / "map").write_bytes(b"x" * 100)
    (game / "Server.x86_64").write_text("#!/bin/sh\n")
    (game / "Server.x86_64").chmod(0o755)
    os.utime(game / "data" / "map", (0, 0))
    pack(game, tmp_path / "out.zip")
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        assert archive.namelist() == ["Server.x86_64", "data/map"]
        assert archive.getinfo("Server.x86_64").external_attr >> 16 & 0o777 == 0o755
        assert archive.testzip() is None


def test_pack_refuses_links_that_lead_out(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (tmp_path / "game").mkdir()
    (tmp_path / "game" / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(BadRequest, match="leads out"):
        pack(tmp_path / "game", tmp_path / "out.zip")


def test_pack_of_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "game").mkdir()
    with pytest.raises(BadRequest, match="no files"):
        pack(tmp_path / "game", tmp_path / "out.zip")


def test_ports_are_written_as_name_number_protocol() -> None:
    assert parse_port("game:7777/tcp") == {"name": "game", "internal_port": 7777, "protocol": "tcp"}
    assert parse_port("game:7777")["protocol"] == "udp"
    for wrong in ("7777", "game:", "game:x/udp", ":7777"):
        with pytest.raises(BadRequest):
            parse_port(wrong)


def test_regions_own_disjoint_ports_below_the_kernels() -> None:
    config = load_nodes_config()
    shares = [config.node(region) for region in config.enabled]
    taken = [port for share in shares for port in range(share.port_first, share.port_last)]
    assert len(taken) == len(set(taken)) == 13 * 900
    assert max(taken) < 32768


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("regions: [atlantis]", "unknown regions"),
        ("node: {ports: {first: 30000}}", "below 32768"),
        ("nodes: {}", "nodes"),
        ("regions: [", "line 1: expected"),
        ("node:\n  memory_mb: many\n", "line 2: .*memory_mb"),
    ],
)
def test_wrong_node_files_say_what_is_wrong(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "nodes.yaml"
    path.write_text(text)
    with pytest.raises(BadRequest, match=complaint):
        load_nodes_config(path)


def test_a_region_that_is_not_enabled_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "nodes.yaml"
    path.write_text("regions: [eu-west]")
    config = load_nodes_config(path)
    assert config.enabled == ("eu-west",)
    with pytest.raises(BadRequest, match="not enabled"):
        config.node("us-east")


def test_a_head_is_alive_only_with_both_its_processes() -> None:
    me = identify(os.getpid())
    assert me is not None
    gone = ProcessId(me.pid, me.start + 1)
    assert Head("a", me, me, {}).alive
    assert not Head("a", me, gone, {}).alive
    assert not Head("a", gone, me, {}).alive
