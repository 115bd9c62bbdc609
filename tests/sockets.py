"""Who listens, and what a stranger gets there: every TCP socket of a fleet's processes, asked without credentials."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx

from fleet.ops.home import Home
from fleet.ops.processes import command_of, supervised

_LINE = re.compile(r"^LISTEN\s+\d+\s+\d+\s+(\S+):(\d+)\s")
# A call that each of Ray's and Serve's servers has; an empty message is one of any type.
CALLS = (
    "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "/ray.rpc.ActorInfoGcsService/GetAllActorInfo",
    "/ray.rpc.InternalKVGcsService/InternalKVKeys",
    "/ray.rpc.NodeManagerService/GetNodeStats",
    "/ray.rpc.CoreWorkerService/GetCoreWorkerStats",
    "/ray.rpc.ReporterService/GetTraceback",
    "/ray.rpc.LogService/ListLogs",
    "/ray.serve.ASGIService/HandleRequest",
    "/ray.serve.RayServeAPIService/ListApplications",
)
PATHS = ("/", "/api/jobs/", "/api/packages/gcs/x.zip", "/logs", "/worker/traceback", "/log_index")


@dataclass(frozen=True, slots=True)
class Listener:
    address: str
    port: int
    pid: int
    command: str

    @property
    def private(self) -> bool:
        plain = self.address.strip("[]").removeprefix("::ffff:")
        return plain.startswith("127.") or plain == "::1"

    @property
    def asked(self) -> str:
        """Where this machine asks it."""
        plain = self.address.strip("[]").removeprefix("::ffff:")
        return plain if plain.startswith("127.") else "127.0.0.1"

    @property
    def is_proxy(self) -> bool:
        return "haproxy" in self.command.split(" ")[0]


def listeners(home: Home) -> list[Listener]:
    ours = set(supervised(home))
    output = subprocess.run(["ss", "-Hltnp"], check=True, capture_output=True, text=True).stdout
    found: list[Listener] = []
    for line in output.splitlines():
        if (words := _LINE.match(line)) is not None:
            pids = {int(pid) for pid in re.findall(r"pid=(\d+)", line)} & ours
            found += [Listener(words[1], int(words[2]), pid, command_of(pid)) for pid in pids]
    return found


def given_to_strangers(listener: Listener) -> list[str]:
    """What somebody on this machine without any credential gets there that is not a refusal."""
    got: list[str] = []
    place = f"{listener.asked}:{listener.port}"
    for path in PATHS:
        try:
            answer = httpx.get(f"http://{place}{path}", timeout=2, trust_env=False)
        except httpx.RemoteProtocolError:
            break  # it does not speak HTTP/1.1
        except httpx.HTTPError:
            continue
        if answer.is_success and not answer.text.startswith("# HELP "):  # numbers, for Prometheus on this machine
            got.append(f"GET {path}: {answer.text[:100]}")
    with grpc.insecure_channel(place, options=[("grpc.enable_http_proxy", 0)]) as channel:
        for call in CALLS:
            method = channel.unary_unary(call, request_serializer=None, response_deserializer=None)
            try:
                got.append(f"{call}: {method(b'', timeout=2)[:100]!r}")
            except grpc.RpcError:
                continue
    return got


CONNECT = """
import json, socket, sys
found = []
for port in json.loads(sys.argv[2]):
    try:
        socket.create_connection((sys.argv[1], port), timeout=1).close()
    except OSError:
        continue
    found.append(port)
print(json.dumps(found))
"""


@contextmanager
def outside() -> Iterator[tuple[str, str]]:
    """A machine of its own beside this one: the name of a network namespace, and this machine's address as seen there.
    Root only."""
    number = os.getpid() % 250
    name, inner, here = f"fleet-out-{os.getpid()}", f"fo{os.getpid()}", f"198.51.100.{number & ~3 | 1}"
    there = f"198.51.100.{number & ~3 | 2}"
    run = subprocess.run
    run(["ip", "netns", "add", name], check=True)
    try:
        run(["ip", "link", "add", inner, "type", "veth", "peer", "name", "eth0", "netns", name], check=True)
        run(["ip", "addr", "add", f"{here}/30", "dev", inner], check=True)
        run(["ip", "link", "set", inner, "up"], check=True)
        run(["ip", "-n", name, "addr", "add", f"{there}/30", "dev", "eth0"], check=True)
        run(["ip", "-n", name, "link", "set", "eth0", "up"], check=True)
        yield name, here
    finally:
        run(["ip", "netns", "del", name], check=False)  # takes both ends of the link with it


def reached_from(namespace: str, address: str, ports: list[int]) -> list[int]:
    """Those of the ports that take a connection from there."""
    command = ["ip", "netns", "exec", namespace, sys.executable, "-c", CONNECT, address, json.dumps(sorted(set(ports)))]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    return json.loads(done.stdout)


def may_make_namespaces() -> bool:
    return os.geteuid() == 0 and any(Path(folder, "ip").exists() for folder in ("/usr/sbin", "/sbin", "/bin"))


def nothing_is_given(found: list[Listener]) -> None:
    """Asserts that nobody without credentials gets anything there."""
    with ThreadPoolExecutor(8) as threads:
        gives = dict(zip(found, threads.map(given_to_strangers, found), strict=True))
    assert {one: got for one, got in gives.items() if got} == {}


def only_the_proxy_listens(home: Home, api_port: int, *, everywhere: bool) -> None:
    """Asserts that nothing but the API is reached from elsewhere (if `everywhere`), and that the rest, which listens on
    loopback, gives nothing to who has no credentials."""
    found = listeners(home)
    assert len(found) > 5, "Ray, the proxy and the replicas listen"
    public = {(one.port, one.is_proxy) for one in found if not one.private}
    assert public == ({(api_port, True)} if everywhere else set()), public
    nothing_is_given([one for one in found if not one.is_proxy])
    if may_make_namespaces():
        with outside() as (namespace, address):
            reached = reached_from(namespace, address, [one.port for one in found])
        assert reached == ([api_port] if everywhere else [])
