"""Ray's own logs: reachable from the home folder while it runs, and kept when it ends."""

import shutil
from contextlib import suppress
from pathlib import Path

from fleet.ops.home import Home

KEPT_SESSIONS = 3


def session_logs(home: Home) -> Path:
    """Where the running head writes its logs."""
    return home.run_dir / "ray" / "session_latest" / "logs"


def link_ray_logs(home: Home) -> None:
    """Show the running head's logs as `<home>/logs/ray`."""
    link = home.logs / "ray"
    link.unlink(missing_ok=True)
    link.symlink_to(session_logs(home))


def keep_ray_logs(home: Home) -> None:
    """Move the logs of a head that has ended to `<home>/logs/ray-<session>`, drop older ones, clear the run folder."""
    logs = session_logs(home)
    if logs.is_dir():
        shutil.move(logs.resolve(), home.logs / f"ray-{logs.resolve().parent.name.removeprefix('session_')}")
    with suppress(FileNotFoundError):
        shutil.rmtree(home.run_dir)
    kept = sorted(path for path in home.logs.glob("ray-2*") if path.is_dir())
    for old in kept[:-KEPT_SESSIONS]:
        shutil.rmtree(old, ignore_errors=True)
