"""An actor that hangs is ended, so that Ray begins it anew: a loop that is stuck, a process that was stopped.

Nobody in a hung process can notice that, so a child of it does: a shell that reads a beat from the actor's event loop
and sends SIGKILL when a number of looks in a row found none. It counts looks, not time: a machine that was
frozen as a whole and goes on kills nobody. The child ends with the actor, whose death closes the pipe.
"""

import asyncio
import contextlib
import os
import shutil
import subprocess

import structlog
from ray._private.worker import WORKER_MODE, global_worker

from fleet.actors.tasks import SupervisedTasks

log = structlog.get_logger(__name__)

BEAT_S = 1.0
LOOK_S = 2  # twice a beat, so that one that is a little late is none that is missed
BEGIN_S = 20.0

# Bash, since one takes 0.4 MB of its own and Python 3 MB. $1: whom it watches, $2: looks, $3: seconds of each. A read
# that times out gives more than 128, the end of the pipe gives 1. Whether the actor is still its parent is seen before
# the kill, since a process number may be used again.
_SCRIPT = """
misses=0
while [ "$misses" -lt "$2" ]; do
  read -r -t $3 -n 1 -u 0 beat
  code=$?
  if [ "$code" -eq 0 ]; then misses=0
  elif [ "$code" -gt 128 ]; then misses=$((misses + 1))
  else exit 0
  fi
done
read -r stat < "/proc/$$/stat"
set -- "$1" ${stat##*) }
[ "$3" = "$1" ] && kill -KILL "$1"
"""


class Watchdog:
    """Watches the process in whose event loop it is made, if that is an actor's (or `anywhere`): what plays an actor
    within a test must not end the test. `hung_s`: seconds without a beat; 0: no watching."""

    def __init__(self, hung_s: float, *, anywhere: bool = False) -> None:
        self._looks = max(1, round(hung_s / LOOK_S))
        self._child: subprocess.Popen[bytes] | None = None
        self._tasks = SupervisedTasks("watchdog")
        bash = shutil.which("bash")
        if not anywhere and global_worker.mode != WORKER_MODE:
            return
        if hung_s > 0 and bash is not None:
            self._bash = bash
            self._tasks.every("beat", self._beat, BEAT_S, limit_s=BEGIN_S, at_once=True)
        elif hung_s > 0:
            log.warning("no_watchdog", missing="bash")

    async def close(self) -> None:
        """Watch no more; the child ends."""
        await self._tasks.close()
        child, self._child = self._child, None
        if child is not None:
            await asyncio.to_thread(_end, child)

    async def _beat(self) -> None:
        if self._child is not None and self._child.poll() is not None:  # it was killed; no zombie is left of it
            log.warning("watchdog_ended", code=self._child.returncode)
            await asyncio.to_thread(_end, self._child)
            self._child = None
        if self._child is None:
            self._child = await asyncio.to_thread(self._begin)
        assert self._child.stdin is not None
        with contextlib.suppress(BlockingIOError):  # it has more beats than it has read
            os.write(self._child.stdin.fileno(), b".")

    def _begin(self) -> subprocess.Popen[bytes]:
        numbers = [str(os.getpid()), str(self._looks), str(LOOK_S)]
        command = [self._bash, "--norc", "--noprofile", "-c", _SCRIPT, "watchdog", *numbers]
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={},
            cwd="/",
            start_new_session=True,  # what stops or ends the actor's group is not meant for who watches it
            bufsize=0,
        )
        assert child.stdin is not None
        os.set_blocking(child.stdin.fileno(), False)
        return child


def _end(child: subprocess.Popen[bytes]) -> None:
    assert child.stdin is not None
    child.stdin.close()
    child.wait()
