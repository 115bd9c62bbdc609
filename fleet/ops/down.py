"""`fleet down`: tell the supervisor to go, then make sure that nothing is left."""

import os
import signal
from collections.abc import Callable

from fleet.ops.home import Home
from fleet.ops.processes import environment_of, held, wait_ended
from fleet.ops.shutdown import MANAGERS_S, shut_down
from fleet.ops.supervisor import lock_holder
from fleet.settings import FleetSettings


def bring_down(home: Home, settings: FleetSettings, report: Callable[[str], None]) -> bool:
    """Stop everything that this fleet started; True if there was anything. Works after any crash, and twice."""
    stopped = _stop_supervisor(home, MANAGERS_S * 2 + settings.servers.stop_grace_s, report)
    return shut_down(home, settings, report) or stopped


def _stop_supervisor(home: Home, timeout_s: float, report: Callable[[str], None]) -> bool:
    pid = lock_holder(home)
    if pid is None:
        return False
    with held(pid) as fd:
        # The lock tells that it runs; its environment, that the number in the file is really its own.
        if fd is None or environment_of(pid).get("FLEET_HOME") != str(home.path):
            return False
        report("Stopping game servers, the API and Ray")
        os.kill(pid, signal.SIGTERM)
        if wait_ended([fd], timeout_s):
            report("The supervisor hangs: ending it")
            os.kill(pid, signal.SIGKILL)
            wait_ended([fd], 10.0)
    return True
