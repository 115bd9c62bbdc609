"""What an operator takes out of the catalog, or breaks in it, stops nobody who uses it."""

from pathlib import Path

import pytest

from fleet import catalog as catalog_module
from fleet.catalog import load_catalog
from fleet.config_files import BadConfig
from fleet.errors import BadRequest
from fleet.node.model import RunState, RunView
from fleet.node.runtime import RunKey
from fleet.region.sizes import RegionSizes

REGIONS = 'regions:\n  us-east: {title: "US East"}\n'
SIZES = "sizes:\n  small: {memory_mb: 1024, cpus: 1}\n  huge: {memory_mb: 65536, cpus: 16, dedicated: true}\n"
PRICES = "currency: USD\ntariffs: []\n"


@pytest.fixture
def configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files of an operator, and a home beside them."""
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "regions.yaml").write_text(REGIONS)
    (folder / "sizes.yaml").write_text(SIZES)
    (folder / "prices.yaml").write_text(PRICES)
    monkeypatch.setattr(catalog_module, "CONFIGS", folder)
    monkeypatch.setattr(catalog_module, "kept_file", lambda name: tmp_path / name)
    return folder


def anew(folder: Path) -> catalog_module.Catalog:
    """As another process reads it."""
    load_catalog.cache_clear()
    return load_catalog(folder)


def test_a_size_that_is_removed_is_known_to_the_next_process_and_refused_to_new_servers(configs: Path) -> None:
    anew(configs)
    (configs / "sizes.yaml").write_text("sizes:\n  small: {memory_mb: 1024, cpus: 1}\n")
    after = anew(configs)
    known = after.known("huge")
    assert known is not None
    assert (known.memory_mb, known.cpus, known.dedicated) == (65536, 16, True)
    with pytest.raises(BadRequest, match="huge"):
        after.size("huge")


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("sizes.yaml", "sizes:\n  small: {memory_mb: 1024, cpus: 1}\n  bad: {memory_mb: lots, cpus: 1}\n", 3),
        ("sizes.yaml", "sizes:\n  small: {memory_mb: 1024\n", 3),
        ("sizes.yaml", "sizes: {}\n", 1),
        ("regions.yaml", "regions:\n  us-east: {}\n", 2),
    ],
)
def test_a_broken_edit_keeps_the_last_good_text_and_stops_a_first_start_with_its_line(
    configs: Path, name: str, text: str, line: int
) -> None:
    good = anew(configs)
    (configs / name).write_text(text)
    assert anew(configs).sizes == good.sizes
    (configs.parent / name).unlink()
    with pytest.raises(BadConfig, match=f"{name}, line {line}"):
        anew(configs)


def test_a_size_that_nobody_remembers_is_learned_from_what_runs() -> None:
    sizes = RegionSizes(load_catalog())
    guess = sizes.size("xlarge-2024")
    assert guess.memory_mb > 0
    run = RunView(RunKey("a", 1), "n", RunState.RUNNING, 1, memory_mb=6000, cores=2.0)
    assert (sizes.size("xlarge-2024", lambda: run).memory_mb, sizes.size("xlarge-2024").memory_mb) == (6000, 6000)
    with pytest.raises(BadRequest, match="xlarge-2024"):
        sizes.offered("xlarge-2024")
