"""Stands between Ray Serve and HAProxy: `haproxy_shim.py <haproxy> <error file> <lines> -f <config> …`.

Serve writes HAProxy's configuration itself and offers no setting for eight things, so they are mended here before
HAProxy reads it: its metrics and statistics listen on every interface (now: loopback), its admin socket is open to
every user (now: the owner), it speaks no TLS and lets every flood through (now: as a file of lines says), its own error
page is not in the API's shape (now: ours), every path is "not found" while it or Serve's own proxy knows of no
application (now: 503, since clients take 404 for an answer; the API's own is JSON), replicas do not learn who called
and how (now: headers tell the address and the scheme), and a replica reads request bodies into memory as fast as they
come, to notice clients that leave (now: uploads are read as fast as the disk takes them, by the header that tells Serve
so; a client that leaves is noticed by reading).
The process then asks the kernel to end it with its manager, since an orphan would keep the port and answer every
request with an error.

Runs with `python -IS`: standard library only.
"""

import ctypes
import os
import re
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1
# Serve's 16 KB make an upload cost one wake-up of the replica for each.
BUFFER_BYTES = 131072
UPLOADS = "{ path_beg /upload/ } or { path_end /v2/builds/builds/upload /v2/builds/builds/upload/ }"
BACK_PRESSURE = f"    http-request set-header x-request-disconnect-disabled ?1 if {UPLOADS}"
# Replicas see only this proxy; what a client sends under that name is replaced.
CLIENT = "    http-request set-header x-fleet-client %[src]"
# Its lines hold whole URLs, and these are signed, or say who a player is.
SILENT = (
    "    http-request set-log-level silent if { path_beg /upload/ } or { path_end /me/events /me/events/ } "
    "or { path_sub /lobbies-sse/ }"
)
SCHEME = (
    "    http-request del-header x-fleet-scheme",
    "    http-request set-header x-fleet-scheme https if { ssl_fc }",
)


NOT_KNOWN_YET = "    http-response deny deny_status 503 if { status 404 } { res.fhdr(content-type) -m beg text/plain }"
_NOT_FOUND = re.compile(r"^\s*http-request return status 404 .*not found\. Ping .*$", re.MULTILINE)
_FRONTEND = re.compile(r"^frontend http_frontend\n\s*bind .*\n", re.MULTILINE)


def mend(config: str, error_file: str, more: str = "") -> str:
    """The configuration with loopback binds, a private socket, the API's error page, and these lines more."""
    config = re.sub(r"^(\s*bind )(?:\*)?:(\d+)", r"\g<1>127.0.0.1:\2", config, flags=re.MULTILINE)
    config = re.sub(r"^(\s*tune\.bufsize) \d+", rf"\1 {BUFFER_BYTES}", config, flags=re.MULTILINE)
    for lines in (BACK_PRESSURE, NOT_KNOWN_YET, CLIENT, SILENT, *reversed(SCHEME), more.rstrip("\n")):
        if lines and lines not in config:
            config = _FRONTEND.sub(lambda found, lines=lines: f"{found[0]}{lines}\n", config)
    config = _NOT_FOUND.sub("    http-request deny deny_status 503", config)
    config = re.sub(r"^(\s*stats socket .*) mode 666 ", r"\1 mode 600 ", config, flags=re.MULTILINE)
    return re.sub(r"^(\s*errorfile \d+) .*$", rf"\1 {error_file}", config, flags=re.MULTILINE)


def mend_file(path: Path, error_file: str, more: str) -> None:
    """Replace the file at once: an older HAProxy or its manager may be reading it."""
    mended = path.with_name(path.name + ".mended")
    mended.write_text(mend(path.read_text(), error_file, more))
    mended.replace(path)


def die_with_parent(parent: int) -> None:
    """SIGKILL for this process when its parent ends; at once if that has happened already."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != parent:
        sys.exit("the manager of this proxy is gone")


def main(arguments: list[str]) -> None:
    haproxy, error_file, lines, *rest = arguments
    die_with_parent(os.getppid())
    if "-f" in rest:
        mend_file(Path(rest[rest.index("-f") + 1]), error_file, Path(lines).read_text())
    os.execv(haproxy, [haproxy, *rest])


if __name__ == "__main__":
    main(sys.argv[1:])
