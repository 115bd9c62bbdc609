"""Stands between Ray Serve and HAProxy: `haproxy_shim.py <haproxy> <changes> -f <config> …`.

Serve writes HAProxy's configuration itself and offers no setting for most of what the fleet needs, so it is mended
here before HAProxy reads it, as a JSON file of `Changes` says (made by `proxy_rules.py`). What is mended in any case:
binds to every interface become loopback, metrics and statistics are closed, the admin socket is its owner's alone.
The process then asks the kernel to end it with its manager, since an orphan would keep the port and answer every
request with an error.

Runs with `python -IS`: standard library only.
"""

import ctypes
import json
import os
import re
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path

PR_SET_PDEATHSIG = 1
MENDED = "# Mended by the fleet.\n"
_CLOSED = ("frontend prometheus", "listen stats")
_FRONTEND = "frontend http_frontend"
_NOWHERE = "backend default_backend"
_SECTION = re.compile(r"^(?=[a-z])", re.MULTILINE)
_BIND = re.compile(r"^[ \t]*bind .*\n", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Changes:
    """`binds`: of the frontend, in place of Serve's own; none: those stay. `frontend`: its first lines. `nowhere`: what
    answers while no application is deployed. `defaults`, `sections`: more of these. `pages`: file per status."""

    binds: list[str] = field(default_factory=list[str])
    frontend: list[str] = field(default_factory=list[str])
    nowhere: list[str] = field(default_factory=list[str])
    defaults: list[str] = field(default_factory=list[str])
    sections: list[str] = field(default_factory=list[str])
    pages: dict[str, str] = field(default_factory=dict[str, str])
    buffer_bytes: int = 0
    connections: int = 0


def mend(config: str, changes: Changes) -> str:
    """The configuration with the changes; one that has them already stays as it is."""
    if config.startswith(MENDED):
        return config
    sections = [_mend_section(section, changes) for section in _SECTION.split(config)]
    more = "".join(f"{line}\n" for line in changes.sections)
    return MENDED + "".join(sections).rstrip("\n") + "\n" + more


def _mend_section(section: str, changes: Changes) -> str:
    head, _, body = section.partition("\n")
    if head.strip() in _CLOSED:
        return ""
    if head.strip() == _FRONTEND:
        binds = [] if not changes.binds else [f"bind {place}" for place in changes.binds]
        kept = _BIND.sub("", body) if binds else body
        return f"{head}\n{_indented([*binds, *changes.frontend])}{_loopback(kept)}"
    if head.strip() == _NOWHERE and changes.nowhere:
        return f"{head}\n{_indented(changes.nowhere)}"
    if head.strip() == "global":
        body = re.sub(r"^(\s*stats socket .*) mode 666 ", r"\1 mode 600 ", body, flags=re.MULTILINE)
        for name, value in (("tune.bufsize", changes.buffer_bytes), ("maxconn", changes.connections)):
            if value:
                body = re.sub(rf"^(\s*{re.escape(name)}) \d+", rf"\1 {value}", body, flags=re.MULTILINE)
    if head.strip() == "defaults":
        pages = [f"errorfile {status} {file}" for status, file in changes.pages.items()]
        if pages:
            body = re.sub(r"^\s*errorfile .*\n", "", body, flags=re.MULTILINE)
        body = f"{_indented([*pages, *changes.defaults])}{body}"
    return f"{head}\n{_loopback(body)}" if body or section.endswith("\n") else head


def _indented(lines: list[str]) -> str:
    return "".join(f"    {line}\n" for line in lines)


def _loopback(body: str) -> str:
    return re.sub(r"^(\s*bind )(?:\*)?:(\d+)", r"\g<1>127.0.0.1:\2", body, flags=re.MULTILINE)


def mend_file(path: Path, changes: Changes) -> None:
    """Replace the file at once: an older HAProxy or its manager may be reading it. It holds the proxy's secret."""
    mended = path.with_name(path.name + ".mended")
    mended.unlink(missing_ok=True)
    mended.touch(mode=0o600)
    mended.write_text(mend(path.read_text(), changes))
    mended.replace(path)


def die_with_parent(parent: int) -> None:
    """SIGKILL for this process when its parent ends; at once if that has happened already."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != parent:
        sys.exit("the manager of this proxy is gone")


def main(arguments: list[str]) -> None:
    haproxy, changes, *rest = arguments
    die_with_parent(os.getppid())
    if "-f" in rest:
        mend_file(Path(rest[rest.index("-f") + 1]), Changes(**json.loads(Path(changes).read_text())))
    os.execv(haproxy, [haproxy, *rest])


if __name__ == "__main__":
    main(sys.argv[1:])
