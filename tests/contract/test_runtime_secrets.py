"""Secrets of a run, on both runtimes: where the game finds them, whose they are, and that they go with the run."""

import asyncio
import stat
from pathlib import Path

from fleet.node.docker_spec import container_name
from fleet.node.engine import Engine
from fleet.node.process_folder import RunFolder
from fleet.node.runtime import GameSecrets, RunKey
from fleet.node.secret_files import SecretFiles, owner_of
from fleet.node.server_folder import server_folder
from tests import games
from tests.contract.runtime_stage import Stage, ask, gone

VALUE, VARIABLE = "hunter2-in-a-file", "hunter3-in-a-variable"
SECRETS = GameSecrets({"API_KEY": VARIABLE}, {"DB_PASSWORD": VALUE, "TLS_KEY": "-----\nlines\n-----\n"})
TELLS = games.perl(
    'my $d = $ENV{PLAYFLOW_SECRETS}; my $m = sprintf "%04o", (stat "$d/DB_PASSWORD")[2] & 07777;'
    ' open F, "<", "$d/DB_PASSWORD"; my $v = <F>; close F; my $w = open(G, ">", "$d/DB_PASSWORD") ? "written" : "kept";'
    ' my $n = open(G, ">", "$d/NEW") ? "made" : "refused";'
    ' my $who = (stat "$d/DB_PASSWORD")[4] == $< ? "mine" : "other"; my $port = $ENV{PLAYFLOW_PORT_GAME} || 7777;'
    ' my $s = IO::Socket::INET->new(Proto => "udp", LocalAddr => "0.0.0.0", LocalPort => $port);'
    ' while (1) { my $f = $s->recv(my $p, 2048) // next; $s->send("$d|$m|$v|$w|$n|$who|$ENV{API_KEY}", 0, $f) }'
)


def kept(stage: Stage) -> SecretFiles:
    place = stage.place()
    return SecretFiles(place.fleet_id, place.servers_dir)


async def test_a_game_finds_its_secrets_and_nobody_else_does(stage: Stage) -> None:
    spec = await stage.running(TELLS, secrets=SECRETS)
    folder, mode, value, over, new, who, variable = (await asyncio.to_thread(ask, spec, "tell")).split("|")
    assert (value, variable) == (VALUE, VARIABLE)
    assert (folder == "/run/secrets") == (stage.kind == "docker")
    assert mode == "0400"
    assert who == "mine"
    if stage.kind == "docker":  # a plain process is the agent's own user, who may change its modes
        assert (over, new) == ("kept", "refused")
    root = kept(stage).root
    assert root.is_relative_to("/dev/shm")
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    await stage.runtime.launch(spec)  # again, as a manager may: what runs keeps its files
    assert VALUE in await asyncio.to_thread(ask, spec, "tell")
    assert not [path for path in stage.folder.rglob("*") if path.is_file() and _has_a_value(path)]
    await _look_at_the_engine(stage, spec.key)
    await stage.runtime.stop(spec.key, 1)
    await stage.exit_of(spec.key)
    await gone(lambda: stage.runtime.remove(spec.key))
    assert not (root / str(spec.key)).exists()


def _has_a_value(path: Path) -> bool:
    content = path.read_bytes()
    return VALUE.encode() in content or VARIABLE.encode() in content


async def _look_at_the_engine(stage: Stage, key: RunKey) -> None:
    if stage.kind == "process":
        described = RunFolder(server_folder(stage.folder / "servers", key)).description()
        assert VARIABLE not in str(described)
        return
    engine = Engine()
    details = await engine.call("GET", f"/containers/{container_name(stage.place().fleet_id, key)}/json")
    await engine.close()
    assert VALUE not in str(details)
    assert VARIABLE not in str(details["Config"]["Labels"])
    mount = next(one for one in details["Mounts"] if one["Destination"] == "/run/secrets")
    assert mount["RW"] is False


async def test_what_no_run_has_is_swept_away(stage: Stage) -> None:
    files = kept(stage)
    files.write(RunKey("lost", 1), {"A": "left by an agent that died"}, None)
    await stage.runtime.remove_orphans()
    assert not files.folder(RunKey("lost", 1)).exists()


async def test_a_game_without_secrets_has_no_folder_for_them(stage: Stage) -> None:
    spec = await stage.running(games.demo())
    assert await asyncio.to_thread(ask, spec, "env PLAYFLOW_SECRETS") == "env PLAYFLOW_SECRETS="


def test_owners_by_number_are_known_and_others_are_not() -> None:
    assert owner_of("") == (0, 0)
    assert owner_of("1000") == (1000, 0)
    assert owner_of("1000:50") == (1000, 50)
    assert owner_of("steam") is owner_of("1000:steam") is None
