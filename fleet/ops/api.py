"""The API: render its Serve config, deploy it, and know whether it answers."""

import time
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import httpx
import yaml

from fleet.catalog import CONFIGS
from fleet.config_files import ConfigFile, Invalid, kept_file
from fleet.ops.haproxy import find_haproxy
from fleet.ops.head import Head, last_words, run_module
from fleet.ops.home import Home, StartFailed, write_private
from fleet.settings import FleetSettings
from fleet.store.engine import DATABASE_UNAVAILABLE

SERVE_FILE = CONFIGS / "serve.yaml"
DEPLOY_TIMEOUT_S = 180.0
HEALTH_PATH = "/api/health"


def serve_of(content: Any) -> dict[str, Any]:
    """A Serve config of applications with deployments; `Invalid` says what is missing."""
    config = cast("dict[str, Any]", content) if isinstance(content, dict) else {}
    applications: Any = config.get("applications")
    if not isinstance(applications, list) or not applications:
        raise Invalid("it must have 'applications:' with at least one", "applications")
    for number, application in enumerate(cast("list[Any]", applications)):
        if not isinstance(application, dict) or "import_path" not in application:
            raise Invalid("an application must have an import_path", "applications", number)
        if not isinstance(cast("dict[str, Any]", application).get("deployments", []), list):
            raise Invalid("deployments must be a list", "applications", number, "deployments")
    if not isinstance(config.get("http_options", {}), dict):
        raise Invalid("http_options must be a mapping", "http_options")
    return config


def render(settings: FleetSettings, source: Path | None = None) -> dict[str, Any]:
    """`configs/serve.yaml` with this fleet's address and number of replicas. While the file is broken, as it last was:
    it is read again whenever the head is replaced."""
    config = deepcopy(_serve_file(source or SERVE_FILE).now())
    config["http_options"] = config.get("http_options", {}) | {"host": serve_host(settings), "port": settings.port}
    for application in config["applications"]:
        for deployment in application.get("deployments", []):
            deployment["num_replicas"] = settings.replicas
    return config


@lru_cache(maxsize=4)
def _serve_file(path: Path) -> ConfigFile[dict[str, Any]]:
    return ConfigFile(path, serve_of, kept_file("serve.yaml"))


def deploy(home: Home, settings: FleetSettings, head: Head) -> None:
    """Deploy and wait until it runs and answers. OpsError with the reason if it does not."""
    write_private(home.serve_file, yaml.safe_dump(render(settings, settings.serve_config), sort_keys=False))
    log_file = home.logs / "deploy.log"
    log_file.unlink(missing_ok=True)
    config = str(home.serve_file)
    code = run_module(home, head, "fleet.ops.deploy", config, timeout_s=DEPLOY_TIMEOUT_S, log_file=log_file)
    if code != 0:
        raise StartFailed(f"The API did not start: {last_words(log_file)} More is in {log_file}.")
    url = local_url(settings)
    if not wait_healthy(url, timeout_s=60.0):
        raise StartFailed(f"The API was deployed but does not answer at {url}. See {home.logs}.")


def serve_host(settings: FleetSettings) -> str:
    """Where Serve listens. Its replicas listen on the same address, so behind HAProxy that is this machine alone, and
    HAProxy listens on FLEET_HOST (`proxy_rules.binds`)."""
    return "127.0.0.1" if settings.tls.api_port or find_haproxy() else settings.host


def local_url(settings: FleetSettings) -> str:
    """How this machine reaches the API, whatever address it is bound to."""
    host = serve_host(settings)
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
