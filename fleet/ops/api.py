"""The API: render its Serve config, deploy it, and know whether it answers."""

import time
from pathlib import Path
from typing import Any

import httpx
import yaml

from fleet.catalog import CONFIGS
from fleet.ops.head import Head, run_module, tail
from fleet.ops.home import Home, OpsError, write_private
from fleet.settings import FleetSettings
from fleet.store.engine import DATABASE_UNAVAILABLE

DEPLOY_TIMEOUT_S = 180.0
HEALTH_PATH = "/api/health"


def render(settings: FleetSettings, source: Path | None = None) -> dict[str, Any]:
    """`configs/serve.yaml` with this fleet's address and number of replicas."""
    config: dict[str, Any] = yaml.safe_load((source or CONFIGS / "serve.yaml").read_text())
    config["http_options"] = config.get("http_options", {}) | {"host": plain_host(settings), "port": settings.port}
    for application in config["applications"]:
        for deployment in application.get("deployments", []):
            deployment["num_replicas"] = settings.replicas
    return config


def deploy(home: Home, settings: FleetSettings, head: Head) -> None:
    """Deploy and wait until it runs and answers. OpsError with the reason if it does not."""
    write_private(home.serve_file, yaml.safe_dump(render(settings, settings.serve_config), sort_keys=False))
    log_file = home.logs / "deploy.log"
    log_file.unlink(missing_ok=True)
    config = str(home.serve_file)
    code = run_module(home, head, "fleet.ops.deploy", config, timeout_s=DEPLOY_TIMEOUT_S, log_file=log_file)
    if code != 0:
        raise OpsError(f"The API did not start. Last words, from {log_file}:\n{tail(log_file, 25)}")
    url = local_url(settings)
    if not wait_healthy(url, timeout_s=60.0):
        raise OpsError(f"The API was deployed but does not answer at {url}. See {home.logs}.")


def plain_host(settings: FleetSettings) -> str:
    """Where the API speaks without TLS: on this machine alone, if it speaks TLS elsewhere."""
    return "127.0.0.1" if settings.tls.api_port else settings.host


def local_url(settings: FleetSettings) -> str:
    """How this machine reaches the API, whatever address it is bound to."""
    host = plain_host(settings)
    host = "127.0.0.1" if host in ("0.0.0.0", "::", "*") else host
    return f"http://{host}:{settings.port}"


def healthy(url: str, timeout_s: float = 5.0) -> bool:
    """Whether the API answers its health check with 200."""
    try:
        return httpx.get(url + HEALTH_PATH, timeout=timeout_s, trust_env=False).is_success
    except httpx.HTTPError:
        return False


def lives(url: str, timeout_s: float = 5.0) -> bool:
    """Whether the API answers at all sensibly: without its database it is not healthy, but no restart would help."""
    try:
        answer = httpx.get(url + HEALTH_PATH, timeout=timeout_s, trust_env=False)
    except httpx.HTTPError:
        return False
    return answer.is_success or (answer.status_code == 503 and DATABASE_UNAVAILABLE in answer.text)


def wait_healthy(url: str, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while not healthy(url):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
