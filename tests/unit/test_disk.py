"""How a server's writes are limited: which way is taken, and what a node may promise."""

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.node import disk_watch
from fleet.node.disk import DiskMeans, DiskRefused, disk_plan, has_quota, is_full, no_room
from fleet.node.disk_watch import AGAIN_MS, DiskWatch
from fleet.node.model import RunState, RunView
from fleet.node.run import Run
from fleet.node.runtime import RunKey

MEANS = st.builds(DiskMeans, st.sampled_from(["", "no root"]), st.sampled_from(["", "another driver"]), st.booleans())
VOLUMES = st.frozensets(st.sampled_from(["/data", "/srv", "/tmp", "/var/lib/game"]))
XFS = "/dev/a / ext4 rw 0 0\n/dev/b /var/lib/docker xfs rw,relatime,prjquota 0 0\n/dev/c /var/lib/dock xfs rw 0 0\n"


@given(VOLUMES, st.booleans(), MEANS, st.integers(16, 10_000), st.integers(64, 10_000))
def test_every_place_that_can_be_written_to_has_a_limit(
    volumes: frozenset[str], writable: bool, means: DiskMeans, disk_mb: int, memory_mb: int
) -> None:
    if writable and not means.quota and (means.loop or means.layers):
        with pytest.raises(DiskRefused, match=means.loop or means.layers):
            disk_plan(volumes, writable=True, means=means, disk_mb=disk_mb, memory_mb=memory_mb)
        return
    plan = disk_plan(volumes, writable=writable, means=means, disk_mb=disk_mb, memory_mb=memory_mb)
    assert (plan.root is not None) == writable
    assert set(plan.volumes) == volumes
    if plan.mounts:
        assert not means.loop
        assert plan.size_mb == disk_mb
    if plan.root == "quota":
        assert means.quota
        assert plan.size_mb == disk_mb
    if volumes and plan.volumes_in == "memory":
        assert 1 <= plan.volume_mb <= disk_mb
        assert plan.volume_mb * len(volumes) <= max(memory_mb // 4, len(volumes))


@pytest.mark.parametrize(
    ("driver", "folder", "mounts", "can"),
    [
        ("overlay2", "/var/lib/docker", XFS, True),
        ("overlay2", "/var/lib/docker", XFS.replace(",prjquota", ""), False),
        ("overlay2", "/srv/docker", XFS, False),
        ("overlay2", "/var/lib/dock", XFS, False),
        ("btrfs", "/srv/docker", "", True),
        ("overlayfs", "/var/lib/docker", XFS, False),
        ("overlay2", "/var/lib/docker", "", False),
    ],
)
def test_whether_the_engine_limits_layers_itself(driver: str, folder: str, mounts: str, can: bool) -> None:
    assert has_quota({"Driver": driver, "DockerRootDir": folder}, mounts) == can


SIZES = st.lists(st.integers(1, 1000), max_size=50)


@given(SIZES, st.integers(0, 20_000), st.integers(1, 20_000), st.floats(0, 50))
def test_what_is_promised_can_be_written(sizes: list[int], free: int, total: int, percent: float) -> None:
    """However many ask one after the other: if all write all that they may, what is to be kept free is still free."""
    free = min(free, total)
    promised = 0
    for size in sizes:
        if not no_room(size, promised, free, total, percent):
            promised += size
    assert promised == 0 or free - promised >= int(total * percent / 100)


def test_a_disk_is_full_until_there_is_clearly_room_again() -> None:
    assert is_full(0, 1000, was_full=False)
    assert not is_full(20, 1000, was_full=False)
    assert is_full(20, 1000, was_full=True)
    assert not is_full(60, 1000, was_full=True)


async def test_a_full_disk_is_told_once_and_again_after_a_while_only(monkeypatch: pytest.MonkeyPatch) -> None:
    now, full, told = 0, True, list[bool]()
    key = RunKey("i", 1)
    run = Run(RunView(key, "n", RunState.RUNNING, 0))

    async def look(keys: Any) -> frozenset[RunKey]:
        await asyncio.sleep(0)
        return frozenset(keys) if full else frozenset()

    def tell(run: Run, is_full: bool) -> None:
        told.append(is_full)
        run.view = RunView(key, "n", RunState.RUNNING, 0, disk_full=is_full)

    monkeypatch.setattr(disk_watch, "now_ms", lambda: now)
    watch = DiskWatch(lambda: {key: run}, look, tell)
    for _ in range(3):
        await watch.look()
    assert told == [True]
    full = False
    await watch.look()
    full = True
    await watch.look()
    assert told == [True, False]
    now += AGAIN_MS
    await watch.look()
    assert told == [True, False, True]
