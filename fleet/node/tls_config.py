"""HAProxy's configuration for the games of one node whose TLS it ends. Pure.

It is static: each of a range of ports leads to the loopback port a constant above it (`server 127.0.0.1:+n`). So no
launch and no end of a game changes it, and whoever dies, there is nothing to rebuild.
"""

from collections.abc import Iterable

MOST_CONNECTIONS = 8192
MOST_PER_ADDRESS = 512  # a handshake that never ends holds one, too
_SPARE_FILES = 200


def proxy_config(bind_host: str, ports: Iterable[int], step: int, *, user: int | None, files: int, threads: int) -> str:
    """The text. `user`: which uid it becomes; `files`: how many descriptors it may have."""
    spans = spans_of(ports)
    listeners = sum(last - first + 1 for first, last in spans)
    most = max(64, min(MOST_CONNECTIONS, (files - _SPARE_FILES - listeners) // 2))
    identity = f"  uid {user}\n  gid {user}\n" if user is not None else ""
    binds = "".join(f"  bind {_address(bind_host)}:{first}-{last} ssl crt site.pem\n" for first, last in spans)
    return f"""\
# Written by the fleet's agent; see docs/runtime.md.
global
  maxconn {most}
  noreuseport
  nbthread {threads}
  stats socket unix@admin.sock mode 600 level admin expose-fd listeners
  hard-stop-after 24h
  ssl-default-bind-options ssl-min-ver TLSv1.2
{identity}defaults
  mode tcp
  option clitcpka
  timeout connect 5s
  timeout client 1h
  timeout server 1h
  timeout client-fin 30s
listen games
{binds}  stick-table type ipv6 size 100k expire 10m store conn_cur
  tcp-request connection track-sc0 src
  tcp-request connection reject if {{ sc0_conn_cur gt {MOST_PER_ADDRESS} }}
  tcp-request inspect-delay 10s
  server game 127.0.0.1:+{step}
"""


def spans_of(ports: Iterable[int]) -> list[tuple[int, int]]:
    """Runs of consecutive numbers, as (first, last)."""
    spans: list[tuple[int, int]] = []
    for port in sorted(set(ports)):
        if spans and spans[-1][1] == port - 1:
            spans[-1] = (spans[-1][0], port)
        else:
            spans.append((port, port))
    return spans


def ports_in(config: str) -> frozenset[int]:
    """The ports that a proxy with this configuration listens on."""
    found: set[int] = set()
    for line in config.splitlines():
        if line.startswith("  bind "):
            first, _, last = line.split()[1].rpartition(":")[2].partition("-")
            found |= set(range(int(first), int(last) + 1))
    return frozenset(found)


def _address(host: str) -> str:
    return f"[{host}]" if ":" in host else host
