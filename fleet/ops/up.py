"""`fleet up`: start the supervisor in the background and follow its steps until the API answers."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress

from fleet.ops import api
from fleet.ops.head import last_words
from fleet.ops.home import Home, OpsError, read_access
from fleet.ops.supervisor import FIRST_START_S, lock_holder
from fleet.settings import FleetSettings

Report = Callable[[str], None]
LOOK_S = 5.0
HEALTHY, FAILED = "healthy: ", "failed: "
JOIN_TIMEOUT_S = FIRST_START_S + 30.0


def pipe_report(fd: int) -> Report:
    """A report that writes lines to a pipe whose reader may leave at any time."""

    def report(step: str) -> None:
        with suppress(BrokenPipeError):
            os.write(fd, (step.replace("\n", "\x1f") + "\n").encode())

    return report


def bring_up(home: Home, settings: FleetSettings, report: Report) -> bool:
    """Have the fleet run and answer. False if it ran before. OpsError says why it does not start."""
    if lock_holder(home) is not None:
        _join(home, settings, report)
        return False
    reader, writer = os.pipe()
    with (home.logs / "supervisor.out").open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "fleet.cli", "run", "--report-fd", str(writer)],
            env=os.environ | {"FLEET_HOME": str(home.path)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=[writer],
            start_new_session=True,
        )
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8") as steps:
        for line in steps:
            step = line.rstrip("\n").replace("\x1f", "\n")
            if step.startswith(HEALTHY):
                return True
            if step.startswith(FAILED):
                process.wait()
                raise OpsError(step.removeprefix(FAILED))
            report(step)
    output = home.logs / "supervisor.out"
    said = f"The supervisor ended (exit code {process.wait()}): {last_words(output)}"
    raise OpsError(f"{said} More is in {output} and supervisor.log.")


def _join(home: Home, settings: FleetSettings, report: Report) -> None:
    """Another `up` came first: wait until its fleet answers, at its own address."""
    access = read_access(home)
    url = access.url if access else api.local_url(settings)
    if api.healthy(url):
        return
    report("The fleet is starting already: waiting for it")
    deadline = time.monotonic() + JOIN_TIMEOUT_S
    while not api.wait_healthy(url, LOOK_S):
        if lock_holder(home) is None:
            raise OpsError(f"The start that was under way has failed; {home.logs / 'supervisor.log'} says why.")
        if time.monotonic() > deadline:
            raise OpsError(
                f"The fleet's supervisor runs, but the API does not answer at {url}. Try 'fleet down' first."
            )
