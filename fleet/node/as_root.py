"""Commands of the system that need root: run as root, or by a `sudo` that asks nothing, as cloud images have it."""

import os
import shutil
import subprocess
from collections.abc import Sequence

TIMEOUT_S = 60.0  # a file system is made in a hundredth of a second, on a busy disk in seconds


class NotAllowed(Exception):
    """The command cannot be run, or failed; says why."""


def missing_tools(names: Sequence[str]) -> list[str]:
    """Users that may use sudo need not have the system's folders on their path."""
    return [name for name in names if shutil.which(name, path=_path()) is None]


def _path() -> str:
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


def may_be_root() -> bool:
    """Root, or a user of the kind that cloud images have: sudo asks nothing."""
    if os.geteuid() == 0:
        return True
    if shutil.which("sudo") is None:
        return False
    return subprocess.run(["sudo", "-n", "true"], capture_output=True, timeout=TIMEOUT_S, check=False).returncode == 0


def run(command: Sequence[str], text: str = "", timeout_s: float = TIMEOUT_S) -> str:
    """Its output. `text`: its input. Blocks. `NotAllowed` with its last words; OSError, subprocess.TimeoutExpired."""
    as_root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    done = subprocess.run(
        [*as_root, *command],
        input=text,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        env=os.environ | {"PATH": _path(), "LC_ALL": "C"},
    )
    if done.returncode:
        raise NotAllowed(done.stderr.strip()[-300:] or f"exit code {done.returncode}")
    return done.stdout


def run_script(script: str, *arguments: object) -> str:
    """A shell script that ends at its first failure; its output. Blocks. `NotAllowed` with its last words."""
    try:
        return run(["sh", "-eu", "-c", script, "sh", *map(str, arguments)])
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotAllowed(f"sh: {error}") from error
