"""Which pulled images may go: never one that a container has, never one that was wanted just now."""

from hypothesis import given
from hypothesis import strategies as st

from fleet.builds.bundle_cache import FRESH_S, superfluous
from fleet.node.image_cache import idle_images, image_key

NOW = 1_000_000.0
BUILDS = st.sampled_from([f"b{number}" for number in range(12)])
WANTED = st.dictionaries(
    st.sampled_from([f"k{number}" for number in range(8)]), st.dictionaries(BUILDS, st.floats(0, NOW), min_size=1)
)
SIZES = st.dictionaries(st.sampled_from([f"k{number}" for number in range(8)]), st.integers(0, 100))


@given(WANTED, SIZES, st.frozensets(BUILDS), st.integers(-50, 500), st.floats(FRESH_S, NOW))
def test_the_longest_unused_go_and_what_runs_stays(
    wanted: dict[str, dict[str, float]], sizes: dict[str, int], in_use: frozenset[str], needed: int, unused_s: float
) -> None:
    idle = idle_images(wanted, sizes, in_use)
    gone = superfluous(idle, NOW, needed=needed, max_unused_s=unused_s)
    for key in gone:
        assert not in_use & wanted[key].keys()
        assert NOW - max(wanted[key].values()) > FRESH_S
    kept = [held for held in idle if held.content_hash not in gone]
    freed = sum(sizes.get(key, 0) for key in gone)
    if freed < needed:  # nothing more could go
        assert all(NOW - held.used_at <= FRESH_S for held in kept)


def test_the_same_digest_in_another_repository_is_another_image() -> None:
    digest = f"sha256:{'a' * 64}"
    own, same = image_key("ghcr.io/studio/game:1", digest), image_key(f"ghcr.io/studio/game@{digest}", digest)
    assert own == same
    assert own != image_key("ghcr.io/other/game:1", digest)
    assert own != image_key("evil.example.com/studio/game:1", digest)
