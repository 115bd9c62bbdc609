"""A table in a file that processes of a node map together, with a lock for each of its parts."""

import fcntl
import mmap
import os
import time
import weakref
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

_LOCK_TRIES = 2000


class SharedFile:
    """`map`: its bytes. Made, or made larger, with holes: only what is in use takes room."""

    def __init__(self, file: Path, size: int) -> None:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        weakref.finalize(self, os.close, self._fd)
        if os.fstat(self._fd).st_size != size:
            os.ftruncate(self._fd, size)
        self.map = memoryview(mmap.mmap(self._fd, size))

    @contextmanager
    def locked(self, part: int) -> Generator[None]:
        """While inside, no other process is in this part; threads of this process are not kept out."""
        taken = self._lock(part)
        try:
            yield
        finally:
            if taken:
                fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, part)

    def _lock(self, part: int) -> bool:
        """False after a tenth of a second: whoever holds it has been stopped, and counting may then be a little off."""
        for _ in range(_LOCK_TRIES):
            try:
                fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, part)
            except OSError:
                time.sleep(0.00005)  # the holder needs microseconds
            else:
                return True
        return False
