"""Take a fleet down in order. Idempotent, and right after any crash: it looks at what is there, not at what should be.

1. Managers stop all game servers, so that rows and events say so. 2. Ray, Serve and the proxy end. 3. Games that are
left (no manager answered) are stopped by their labels, and the proxies that ended TLS for them; the next start finds
their rows and says that they were lost.
4. The run folder goes, its logs are kept. 5. The container engine stops, if this fleet started it.
"""

import shutil
from collections.abc import Callable
from typing import TypeVar

import structlog

from fleet.limits.windows import counts_folder
from fleet.node.tls_proxy import end_all_proxies
from fleet.ops.engine import stop_engine
from fleet.ops.head import forget_head, read_head, run_module, tail
from fleet.ops.home import Home
from fleet.ops.left_games import stop_left_games
from fleet.ops.logs import keep_ray_logs
from fleet.ops.processes import end_supervised
from fleet.settings import FleetSettings

log = structlog.get_logger(__name__)
Found = TypeVar("Found")
MANAGERS_S = 60.0


def shut_down(home: Home, settings: FleetSettings, report: Callable[[str], None]) -> bool:
    """Stop all that this fleet started and nothing else; True if there was anything."""
    steps = _Steps(report)
    found = steps.do("game servers could not be told", False, lambda: _stop_servers(home, settings, report))
    report("Stopping Ray and the API")
    ended = steps.do("Ray could not be ended", 0, lambda: end_supervised(home, grace_s=3.0))
    left = steps.do("games that are left could not be stopped", 0, lambda: stop_left_games(home.fleet_id, settings))
    if left:
        log.warning("left_games_stopped", count=left)
    proxies = steps.do("TLS proxies could not be ended", 0, lambda: end_all_proxies(home.path))
    steps.do("the head could not be forgotten", None, lambda: forget_head(home))
    steps.do("Ray's logs could not be kept", None, lambda: keep_ray_logs(home))
    shutil.rmtree(counts_folder(home.path), ignore_errors=True)
    engine = steps.do("the container engine could not be stopped", False, lambda: stop_engine(home, report))
    log.info("fleet_down", processes=ended, left_games=left, tls_proxies=proxies, engine_stopped=engine)
    return found or bool(left or proxies or ended) or engine


class _Steps:
    """What goes wrong in one step is said, and the next is done all the same."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report

    def do(self, problem: str, otherwise: Found, step: Callable[[], Found]) -> Found:
        try:
            return step()
        except Exception as error:
            log.error("shut_down_step_failed", problem=problem, error=repr(error), exc_info=error)
            self._report(f"Not done: {problem} ({type(error).__name__}). Run 'fleet down' again when it may work")
            return otherwise


def _stop_servers(home: Home, settings: FleetSettings, report: Callable[[str], None]) -> bool:
    head = read_head(home)
    if head is None or not head.alive:
        return False
    report("Stopping game servers")
    log_file = home.logs / "stop-servers.log"
    log_file.unlink(missing_ok=True)
    timeout_s = MANAGERS_S + settings.servers.stop_grace_s
    code = run_module(home, head, "fleet.ops.stop_servers", timeout_s=timeout_s, log_file=log_file)
    if code != 0:
        log.warning("managers_did_not_stop_servers", code=code, output=tail(log_file, 20))
    return True
