"""Places where a test may have a process die as if by kill -9: `crash_point("claim.decided")`.

Off unless FLEET_FAULTS names a folder. There, a file of a point's name kills the first process that passes the point,
which takes the file away, so its successor lives.
"""

import os
import signal
from pathlib import Path

_FOLDER = Path(os.environ["FLEET_FAULTS"]) if os.environ.get("FLEET_FAULTS") else None


def crash_point(name: str) -> None:
    """Die here, at once and without a trace, if a test has asked for it."""
    if _FOLDER is None:
        return
    try:
        (_FOLDER / name).unlink()
    except FileNotFoundError:
        return
    os.kill(os.getpid(), signal.SIGKILL)
