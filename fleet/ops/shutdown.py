"""Take a fleet down in order. Idempotent, and right after any crash: it looks at what is there, not at what should be.

1. Managers stop all game servers, so that rows and events say so. 2. Ray, Serve and the proxy end. 3. Games that are
left (no manager answered) are stopped by their labels, and the proxies that ended TLS for them; the next start finds
their rows and says that they were lost.
4. The run folder goes, its logs are kept. 5. The container engine stops, if this fleet started it.
"""

import shutil
from collections.abc import Callable

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
MANAGERS_S = 60.0


def shut_down(home: Home, settings: FleetSettings, report: Callable[[str], None]) -> bool:
    """Stop all that this fleet started and nothing else; True if there was anything."""
    found = _stop_servers(home, settings, report)
    report("Stopping Ray and the API")
    ended = end_supervised(home, grace_s=3.0)
    left = stop_left_games(home.fleet_id, settings)
    if left:
        log.warning("left_games_stopped", count=left)
    proxies = end_all_proxies(home.path)
    forget_head(home)
    keep_ray_logs(home)
    shutil.rmtree(counts_folder(home.path), ignore_errors=True)
    engine = stop_engine(home, report)
    log.info("fleet_down", processes=ended, left_games=left, tls_proxies=proxies, engine_stopped=engine)
    return found or bool(left or proxies or ended) or engine


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
