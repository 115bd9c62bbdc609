"""Keeper of one game process, for the process runtime. Run as `python -I -S shim.py <run folder>`; stdlib only.

It leaves the caller's session, so that it survives the agent's death, starts the game described in `run.json`, stamps
its output line by line into a rotated log, waits for its end, kills what the game left behind, and writes
`exit.json`. To its caller it says one line on stdout: `{"game": pid}` or `{"error": words}`.

A separate program rather than a module of the agent: it must start in milliseconds and hold a few MB.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import resource
import select
import signal
import sys
import time
from typing import Any

CHUNK = 64 << 10
LONGEST_LINE = 64 << 10
DRAIN_S = 2.0
_PR_SET_CHILD_SUBREAPER = 36


class LogWriter:
    """Rows `<stream> <time>~<n> <message>` in log.0; when it is half of the limit, it becomes log.1."""

    def __init__(self, limit: int) -> None:
        self._half = max(limit // 2, CHUNK)
        self._file = open("log.0", "ab", buffering=0)  # noqa: SIM115 - kept for the whole life
        self._size = self._file.tell()
        self._second, self._last_ns, self._n = (0, ""), 0, -1
        self._partial = {1: b"", 2: b""}

    def write(self, stream: int, data: bytes) -> None:
        lines = (self._partial[stream] + data).split(b"\n")
        rest = lines.pop()
        while len(rest) >= LONGEST_LINE:
            lines.append(rest[:LONGEST_LINE])
            rest = rest[LONGEST_LINE:]
        self._partial[stream] = rest
        if lines:
            self._append(stream, lines)

    def close(self) -> None:
        for stream, rest in self._partial.items():
            if rest:
                self._append(stream, [rest])
        self._file.close()

    def _append(self, stream: int, lines: list[bytes]) -> None:
        now = max(time.time_ns(), self._last_ns)
        self._n = self._n if now == self._last_ns else -1
        self._last_ns = now
        stamp = self._stamp(now)
        rows = bytearray()
        for line in lines:
            self._n += 1
            rows += b"%d %s~%d %s\n" % (stream, stamp, self._n, line.rstrip(b"\r"))
        self._file.write(rows)
        self._size += len(rows)
        if self._size > self._half:
            self._rotate()

    def _stamp(self, ns: int) -> bytes:
        second, rest = divmod(ns, 1_000_000_000)
        if self._second[0] != second:
            self._second = (second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)))
        return b"%s.%09dZ" % (self._second[1].encode(), rest)

    def _rotate(self) -> None:
        self._file.close()
        os.replace("log.0", "log.1")
        self._file = open("log.0", "ab", buffering=0)  # noqa: SIM115 - kept for the whole life
        self._size = 0


def write_atomically(name: str, value: dict[str, Any]) -> None:
    with open(f"{name}.part", "w") as file:
        json.dump(value, file)
    os.replace(f"{name}.part", name)


def start_time(pid: int) -> int:
    """Start of a process in clock ticks since boot: with the pid, it names a process for ever."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[19])


def limit_resources(run: dict[str, Any]) -> None:
    for name, value in run["limits"].items():
        kind = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(kind)[1]
        wanted = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (wanted, wanted))


def become_game(run: dict[str, Any], out: int, err: int, report: int) -> None:
    """In the child: set everything up and exec; never returns."""
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.chdir(run["folder"])
        limit_resources(run)
        os.execve(run["command"][0], run["command"], run["environment"])
    except BaseException as error:
        os.write(report, str(error).encode()[:500])
    os._exit(127)


def start_game(run: dict[str, Any]) -> tuple[int, dict[int, int], str]:
    """(pid, {pipe: stream}, error): fork and exec; `error` is empty if the exec has succeeded."""
    (out, game_out), (err, game_err), (seen, report) = os.pipe(), os.pipe(), os.pipe()
    game = os.fork()
    if game == 0:
        become_game(run, game_out, game_err, report)
    for descriptor in (game_out, game_err, report):
        os.close(descriptor)
    error = os.read(seen, 500).decode(errors="replace")  # closed by a successful exec
    os.close(seen)
    return game, {out: 1, err: 2}, error


def keep(game: int, pipes: dict[int, int], log: LogWriter) -> int:
    """Carry output to the log until the game has ended; its exit code as a shell would tell it."""
    pidfd = os.pidfd_open(game)
    poller = select.poll()
    for descriptor in (pidfd, *pipes):
        poller.register(descriptor, select.POLLIN | select.POLLHUP)
    ended = False
    deadline = float("inf")
    code = 0
    while pipes and time.monotonic() < deadline:
        for descriptor, _ in poller.poll(None if not ended else 100):
            if descriptor == pidfd:
                code = os.waitstatus_to_exitcode(os.waitpid(game, 0)[1])
                ended, deadline = True, time.monotonic() + DRAIN_S
                poller.unregister(pidfd)
                kill_descendants(game)
                continue
            data = os.read(descriptor, CHUNK)
            if data:
                log.write(pipes[descriptor], data)
            else:
                poller.unregister(descriptor)
                del pipes[descriptor]
    if not ended:  # it closed its output and goes on
        code = os.waitstatus_to_exitcode(os.waitpid(game, 0)[1])
        kill_descendants(game)
    return code if code >= 0 else 128 - code


def kill_descendants(game: int) -> None:
    """Kill what the game started and left. Orphans come to us as children, since we are their subreaper."""
    for _ in range(100):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(game, signal.SIGKILL)
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            children = [int(pid) for pid in file.read().split()]
        if not children:
            return
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def detach() -> int:
    """Leave the caller's session and process tree. In the caller's process it never returns; else the report pipe."""
    seen, report = os.pipe()
    if os.fork():
        os.close(report)
        with os.fdopen(seen, "rb") as answer:
            os.write(1, answer.read())
        os._exit(0)
    os.close(seen)
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    return report


def main(folder: str) -> None:
    secret = json.load(sys.stdin)
    os.chdir(folder)
    lock = os.open("lock", os.O_CREAT | os.O_RDWR, 0o600)
    report = detach()
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.write(report, b'{"error": "another keeper runs this game"}')
        return
    with open("run.json") as file:
        run = json.load(file)
    run["environment"] |= secret
    write_atomically("shim.json", {"pid": os.getpid(), "start": start_time(os.getpid())})
    game, pipes, error = start_game(run)
    if error:
        os.waitpid(game, 0)
        os.write(report, json.dumps({"error": error}).encode())
        return
    write_atomically("game.json", {"pid": game, "start": start_time(game), "at": time.time_ns() // 1_000_000})
    os.write(report, json.dumps({"game": game}).encode())
    os.close(report)
    log = LogWriter(run["log_bytes"])
    code = keep(game, pipes, log)
    log.close()
    write_atomically("exit.json", {"code": code, "at": time.time_ns() // 1_000_000})


if __name__ == "__main__":
    main(sys.argv[1])
