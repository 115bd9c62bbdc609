"""The operator's keys: files of the home folder know them as hashes, only the operator has them in clear.

They are beside the database rather than in it, so that who can write rows cannot become the operator.
"""

import hmac
import json
import secrets
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import structlog

from fleet.errors import Unauthorized
from fleet.private_file import write_private
from fleet.projects.service import MAX_KEY_LENGTH, hash_key, hint_of
from fleet.times import now_ms

log = structlog.get_logger(__name__)

PREFIX = "pfadmin_"


@dataclass(frozen=True, slots=True)
class AdminKey:
    """Times are seconds since the epoch."""

    hash: str
    hint: str
    created_at: int
    expires_at: int | None = None

    def holds(self, now: float) -> bool:
        return self.expires_at is None or now < self.expires_at


class AdminKeys:
    """`admin-keys.json` of a home. A change counts at once in every process."""

    def __init__(self, home: Path) -> None:
        self._path = home / "admin-keys.json"
        self._seen: tuple[int, int] | None = None
        self._keys: list[AdminKey] = []

    def check(self, key: str | None) -> str:
        """The hint of the key, to name who acts; `Unauthorized` if it is none of ours."""
        if not key:
            raise Unauthorized("Send the fleet's admin key in the 'admin-key' header.", error="Missing admin key")
        digest, now, found = hash_key(key[:MAX_KEY_LENGTH]), now_ms() / 1000, ""
        for known in self.keys():  # all of them, in constant time: how long it takes tells nothing
            same = hmac.compare_digest(known.hash, digest)
            found = known.hint if same and known.holds(now) and len(key) <= MAX_KEY_LENGTH else found
        if not found:
            raise Unauthorized(
                "This admin key is unknown. 'fleet keys rotate admin' makes another.", error="Invalid admin key"
            )
        return found

    def keys(self) -> list[AdminKey]:
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return []
        if self._seen != (found.st_mtime_ns, found.st_ino):
            content: Any = json.loads(self._path.read_text())
            self._keys, self._seen = [AdminKey(**one) for one in content], (found.st_mtime_ns, found.st_ino)
        return self._keys

    def ensure(self) -> str | None:
        """The first key, in clear for the only time; None if there is one."""
        return None if self._path.exists() else self.rotate(0)

    def rotate(self, overlap_s: int) -> str:
        """Another key. Those that there are go on for so long."""
        now = now_ms() // 1000
        ends = [replace(old, expires_at=min(old.expires_at or now + overlap_s, now + overlap_s)) for old in self.keys()]
        key = PREFIX + secrets.token_urlsafe(32)
        kept = [old for old in ends if old.holds(now)]
        new = AdminKey(hash_key(key), hint_of(key), now)
        write_private(self._path, json.dumps([asdict(one) for one in [*kept, new]], indent=2) + "\n")
        return key
