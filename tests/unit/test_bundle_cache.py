"""A node's unpacked builds: what runs stays, the longest unused goes first, never more than is needed."""

import os
import shutil
import time
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from fleet.builds.bundle_cache import FRESH_S, BundleCache, Held, superfluous
from fleet.node.facts import facts_of, is_joined, node_settings, own_share
from fleet.node.model import NodeShare
from fleet.settings import BundleLimits, FleetSettings

NOW = 1_000_000.0
idle = st.lists(st.builds(Held, st.uuids().map(str), st.integers(0, 100), st.floats(0, NOW)), max_size=12)


@given(idle, st.integers(-50, 500), st.floats(FRESH_S, NOW))
def test_the_oldest_go_until_it_is_enough(held: list[Held], needed: int, unused_s: float) -> None:
    gone = superfluous(held, NOW, needed=needed, max_unused_s=unused_s)
    by_hash = {each.content_hash: each for each in held}
    kept = [each for each in held if each.content_hash not in gone]
    old = [each for each in held if NOW - each.used_at > unused_s]
    assert all(each.content_hash in gone for each in old)
    extra = [by_hash[name] for name in gone if by_hash[name] not in old]
    assert all(NOW - each.used_at > FRESH_S for each in extra)
    assert all(each.used_at <= other.used_at for each in extra for other in kept)
    freed = sum(by_hash[name].size for name in gone)
    if extra:  # the last one was needed
        assert freed - extra[-1].size < needed
    if freed < needed:  # nothing more could go
        assert all(NOW - each.used_at <= FRESH_S for each in kept)


def bundle(folder: Path, letter: str, age_s: float) -> str:
    content_hash = letter * 64
    (folder / content_hash).mkdir(parents=True)
    (folder / content_hash / "data").write_bytes(b"x" * 1000)
    used = time.time() - age_s
    os.utime(folder / content_hash, (used, used))
    return content_hash


def test_what_any_region_of_the_machine_runs_stays(tmp_path: Path) -> None:
    limits = BundleLimits(max_gb=0, min_free_percent=0, max_unused_days=1)
    one, other = (BundleCache(tmp_path, region, limits) for region in ("us-east", "eu-west"))
    run, free, fresh = bundle(tmp_path, "a", 10 * 86400), bundle(tmp_path, "b", 3600), bundle(tmp_path, "c", 1)
    other.mark(run, "server.1")
    assert one.make_room() == [free]
    assert sorted(path.name for path in tmp_path.glob("[a-c]*")) == [run, fresh]
    other.release(lambda name: name == "server.1")
    assert one.make_room() == []
    other.release(lambda _name: False)
    assert one.make_room() == [run]


def test_room_is_made_for_what_comes(tmp_path: Path) -> None:
    cache = BundleCache(tmp_path, "us-east", BundleLimits(max_gb=2500 / 2**30, min_free_percent=0))
    older, newer = bundle(tmp_path, "a", 7200), bundle(tmp_path, "b", 3600)
    assert cache.make_room(500) == []
    assert cache.make_room(600) == [older]
    assert (tmp_path / newer).is_dir()


def test_a_node_is_told_what_its_own_environment_leaves_open(tmp_path: Path) -> None:
    """Home and address are the node's own, limits and storage the fleet's."""
    head, node = tmp_path / "head", tmp_path / "node"
    head.mkdir()
    (head / "fleet-id").write_text("abcd1234")
    facts = facts_of(FleetSettings(home=head, bundle_limits=BundleLimits(max_gb=7), runtime="docker"))
    local = FleetSettings(home=node, runtime="process")
    assert (is_joined(facts, local), is_joined(facts, FleetSettings(home=head))) == (True, False)
    settings = node_settings(facts, local)
    assert (settings.home, settings.fleet_id, settings.runtime) == (node, "abcd1234", "process")
    assert (settings.bundle_limits.max_gb, settings.artefacts_url) == (7, f"file://{head}/artefacts")
    share = NodeShare(1, 1.0, 2, 3, "127.0.0.1", "127.0.0.1", auto=("memory_mb",))
    own = own_share(share, local, "10.0.0.7")
    assert (own.bind_host, own.public_host, own.cores) == ("0.0.0.0", "10.0.0.7", 1.0)
    assert own.memory_mb > 1
    told = own_share(share, FleetSettings(public_host="play.example.org", bind_host="::1"), "10.0.0.7")
    assert (told.public_host, told.bind_host) == ("play.example.org", "::1")


def test_what_servers_may_yet_write_is_kept_free(tmp_path: Path) -> None:
    """Bundles that nobody runs give way to it."""
    free = shutil.disk_usage(tmp_path).free
    promised = [0]
    cache = BundleCache(tmp_path, "us-east", BundleLimits(min_free_percent=0), lambda: promised[0])
    idle = bundle(tmp_path, "a", 7200)
    assert cache.make_room() == []
    assert cache.make_room(beside=1 << 20) == []
    promised[0] = free
    assert cache.make_room(beside=1 << 40) == [idle]
