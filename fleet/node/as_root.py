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
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    return [name for name in names if shutil.which(name, path=path) is None]


def may_be_root() -> bool:
    if os.geteuid() == 0:
        return True
    if shutil.which("sudo") is None:
        return False
    return subprocess.run(["sudo", "-n", "true"], capture_output=True, timeout=TIMEOUT_S, check=False).returncode == 0


def run_script(script: str, *arguments: object) -> str:
    """A shell script that ends at its first failure; its output. Blocks. `NotAllowed` with its last words."""
    as_root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    environment = os.environ | {"PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin", "LC_ALL": "C"}
    command = [*as_root, "sh", "-eu", "-c", script, "sh", *map(str, arguments)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, env=environment)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotAllowed(f"{command[0]}: {error}") from error
    if done.returncode:
        raise NotAllowed(done.stderr.strip()[-300:] or f"exit code {done.returncode}")
    return done.stdout
