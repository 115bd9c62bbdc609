"""What the proxy that everything comes through is told beyond Serve's configuration. Pure, but for the TLS certificate.

Slow and silent clients hold a connection, so each thing that a client does has an end, and an address may hold so many
connections. What ends them is told in docs/timeouts.md.
"""

import json

from fleet.ops.flood import shed_lines
from fleet.proxy_secret import CLIENT_HEADER, PREFIX, SCHEME_HEADER, SECRET_HEADER
from fleet.settings import FleetSettings

HEADER_S = 10  # from the connection, or a request's first byte, to the end of its headers
BODY_S = 20  # for the whole of a small body (what fits the buffer), before a replica hears of the request
SILENCE_S = 30  # of a client that is expected to send or to take something; also the TLS handshake
KEEP_ALIVE_S = 60  # between two requests
ANSWER_S = 300  # of a replica that says nothing; the longest wait of the API is 120 s, and streams ping
# Serve's 16 KB make an upload cost one wake-up of the replica for each.
BUFFER_BYTES = 131072
SOURCES = "fleet_sources"

UPLOADS = "{ path_beg /upload/ } or { path_end /v2/builds/builds/upload /v2/builds/builds/upload/ }"
_NOT_UPLOADS = "!{ path_beg /upload/ } !{ path_end /v2/builds/builds/upload /v2/builds/builds/upload/ }"
# The machine itself, where a proxy of the operator's may stand; not all of 127.0.0.0/8.
_OWN = "{ src 127.0.0.1 ::1 }"
_WILDCARDS = ("0.0.0.0", "*")
SAFE_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "access-control-allow-origin": "*",  # nothing secret stands here
}
_AGAIN = "Try again in a few seconds."
# What HAProxy answers by itself: reason, error, detail, seconds after which to try again.
_PAGES: dict[int, tuple[str, str, str, int | None]] = {
    400: ("Bad Request", "Bad request", "This is not valid HTTP, or its headers are too long.", None),
    403: ("Forbidden", "Forbidden", "The proxy refuses this request.", None),
    408: (
        "Request Timeout",
        "Request timeout",
        f"The headers must be here within {HEADER_S} s and the body within {BODY_S} s. Send the request again.",
        1,
    ),
    413: ("Payload Too Large", "Payload too large", "The body is too big.", None),
    425: ("Too Early", "Too early", "Send the request again without early data.", None),
    429: (
        "Too Many Requests",
        "Too many connections",
        "Your address holds too many connections. Close some, or use HTTP/2, and try again in 5 s.",
        5,
    ),
    500: ("Internal Server Error", "Internal error", f"The proxy failed. {_AGAIN}", None),
    501: ("Not Implemented", "Not implemented", "The proxy does not know what this request asks for.", None),
    502: ("Bad Gateway", "Temporarily unavailable", f"The API broke off while it answered. {_AGAIN}", 2),
    503: ("Service Unavailable", "Temporarily unavailable", f"The API is starting or restarting. {_AGAIN}", 2),
    504: ("Gateway Timeout", "Temporarily unavailable", f"The API did not answer in time. {_AGAIN}", 2),
}


def error_pages() -> dict[int, str]:
    """What HAProxy answers by itself, as whole HTTP answers in the shape of the API's errors."""
    return {status: _page(status, *told) for status, told in _PAGES.items()}


def _page(status: int, reason: str, error: str, detail: str, again_s: int | None) -> str:
    body = json.dumps({"error": error, "detail": detail, "status": status}, separators=(",", ":"))
    again = [] if again_s is None else [f"retry-after: {again_s}"]
    lines = [
        f"HTTP/1.1 {status} {reason}",
        "content-type: application/json",
        *again,
        *(f"{name}: {value}" for name, value in SAFE_HEADERS.items()),
        "cache-control: no-store",
        f"content-length: {len(body)}",
    ]
    return "\r\n".join([*lines, "", body])


def own_address(settings: FleetSettings) -> str:
    """Where the API listens for this machine's own tools."""
    return f"127.0.0.1:{settings.port}"


def binds(settings: FleetSettings, tls: str) -> list[str]:
    """Where the proxy listens. `tls`: its words for the address on which it speaks TLS; then the plain port is for this
    machine alone."""
    if tls:
        return [own_address(settings), tls]
    if settings.host in _WILDCARDS:
        return [f"0.0.0.0:{settings.port}"]
    if settings.host == "::":
        return [f"0.0.0.0:{settings.port}", f"[::]:{settings.port} v6only"]
    if settings.host in ("127.0.0.1", "localhost"):
        return [own_address(settings)]
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return [own_address(settings), f"{host}:{settings.port}"]


def frontend_lines(settings: FleetSettings, secret: str) -> list[str]:
    """What stands at the frontend's beginning, in the order in which it acts."""
    return [
        f"timeout http-request {HEADER_S}s",
        f"timeout http-keep-alive {KEEP_ALIVE_S}s",
        f"timeout client {SILENCE_S}s",
        f"maxconn {settings.limits.connections}",
        *_source_lines(settings.limits.connections_per_address),
        *_header_lines(secret),
        # Its lines hold whole URLs, and these are signed, or say who a player is.
        "http-request set-log-level silent if { path_beg /upload/ } or { path_end /me/events /me/events/ } "
        "or { path_sub /lobbies-sse/ }",
        # Serve's own proxy, which stands in while no replica is known, says so of every path. The API's 404 is JSON.
        "http-response deny deny_status 503 if { status 404 } { res.fhdr(content-type) -m beg text/plain }",
        *shed_lines(settings),
        f"http-request wait-for-body time {BODY_S}s if {_NOT_UPLOADS}",
    ]


def _source_lines(most: int) -> list[str]:
    """An address that holds more connections than it may is told so; one that holds twice as many is not let in."""
    if not most:
        return []
    return [
        f"tcp-request connection track-sc1 src table {SOURCES}",
        f"tcp-request connection reject if {{ sc1_conn_cur gt {2 * most} }} !{_OWN}",
        f"http-request deny deny_status 429 if {{ sc1_conn_cur gt {most} }} !{_OWN}",
        f"http-after-response set-header connection close if {{ sc1_conn_cur gt {most} }} !{_OWN}",
    ]


def sections(settings: FleetSettings) -> list[str]:
    if not settings.limits.connections_per_address:
        return []
    return [f"backend {SOURCES}", "    stick-table type ipv6 size 100k expire 10m store conn_cur"]


def _header_lines(secret: str) -> list[str]:
    """What replicas are told of the caller; what a client sends under these names is removed."""
    return [
        f"http-request del-header {PREFIX} -m beg",
        # Serve's own: a client could keep a stream's replica from noticing that it left.
        "http-request del-header x-request-disconnect-disabled",
        "http-request del-header x-request-timeout-seconds",
        f"http-request set-header {SECRET_HEADER} {secret}",
        f"http-request set-header {CLIENT_HEADER} %[src]",
        f"http-request set-header {SCHEME_HEADER} https if {{ ssl_fc }}",
        # Serve reads bodies into memory as fast as they come, to notice clients that leave, unless it is told not to.
        # Uploads are read as fast as the disk takes them; a client that leaves is noticed by reading.
        f"http-request set-header x-request-disconnect-disabled ?1 if {UPLOADS}",
    ]
