"""Warm pools as tests play with them: one region and build of their own, emptied in the end."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.player import WAIT_S, Studio


class PoolOf:
    """The pool of one build in one region, in size micro."""

    def __init__(self, studio: Studio, region: str, build: str) -> None:
        self.studio, self.region, self.build = studio, region, build

    def wish(self, **size: Any) -> None:
        """Set the project's pools to this one alone, of that size."""
        regions = {self.region: {"micro": {"build": self.build, **size}}} if size else {}
        self.studio.call(
            "POST", "/projects/settings", json={"pool_config": {"enabled": bool(size), "regions": regions}}
        )

    def view(self) -> dict[str, Any]:
        return self.studio.call("GET", f"/pools/{self.region}/micro", params={"build": self.build})

    def until(self, wanted: Any) -> dict[str, Any]:
        """The pool once `wanted(view)` holds."""
        end = time.monotonic() + WAIT_S
        while not wanted(seen := self.view()):
            assert time.monotonic() < end, seen
            time.sleep(0.1)
        return seen

    def full(self, warm: int) -> dict[str, Any]:
        return self.until(lambda v: v["stock"]["warm"] >= warm and not v["stock"]["booting"])

    def idle(self) -> list[dict[str, Any]]:
        """Its unclaimed servers, ready or not."""
        params = {"include_pool": True, "include_launching": True, "limit": 100}
        servers = self.studio.call("GET", "/servers", params=params)["servers"]
        return [s for s in servers if s["region"] == self.region and s["is_pool_server"] and not s["pool_claimed_at"]]

    def start(self, **fields: Any) -> dict[str, Any]:
        return self.studio.start(self.build, region=self.region, **fields)


@contextmanager
def pool_of(studio: Studio, region: str, build: str) -> Iterator[PoolOf]:
    """Nothing of it is left afterwards."""
    pool = PoolOf(studio, region, build)
    try:
        yield pool
    finally:
        pool.wish()
        end = time.monotonic() + WAIT_S
        while left := pool.idle():
            assert time.monotonic() < end, left
            time.sleep(0.2)
