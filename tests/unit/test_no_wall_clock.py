"""Decisions go by `fleet.times.now_ms`, which does not jump with the machine's clock: what is compared with a time that
the fleet has written is read from the same clock. Whoever reads the wall clock has a reason."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAY = {
    "fleet/times.py": "makes the steady clock of it",
    "fleet/builds/bundle_cache.py": "compares with the times of files",
    "fleet/node/image_cache.py": "compares with the times of files",
    "fleet/node/logs.py": "compares with the times of files",
    "fleet/node/shim.py": "runs without this package, and only tells times",
    "fleet/ops/supervisor.py": "looks whether it was set back",
    "fleet/players/service.py": "tokens of others hold by the wall clock",
    "fleet/node/docker_exits.py": "asks the engine, which has the machine's clock",
    "fleet/cli_node.py": "a moment of the cloud's",
    "fleet/client/_async/transport.py": "runs elsewhere, and compares with a server's header",
    "fleet/client/_sync/transport.py": "runs elsewhere, and compares with a server's header",
    "fleet/tls/dev_ca.py": "certificates hold by the wall clock",
    "fleet/region/metrics.py": "tells when counting began",
}
READERS = {("time", "time"), ("time", "time_ns"), ("datetime", "now"), ("datetime", "utcnow")}
SOURCES = [
    path
    for folder in ("fleet", "serve_app")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if str(path.relative_to(ROOT)) not in MAY
]


def readings(source: str) -> list[int]:
    """The lines on which the wall clock is read, or handed on to be read."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)]
    return sorted(node.lineno for node in nodes if (getattr(node.value, "id", ""), node.attr) in READERS)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_wall_clock_is_not_read_here(path: Path) -> None:
    assert readings(path.read_text()) == []


def test_the_rule_finds_what_it_forbids_and_every_exception_is_one() -> None:
    source = "import time\nnow = time.time()\nclock(time.time_ns)\nat = datetime.now(UTC)\ntime.monotonic()"
    assert readings(source) == [2, 3, 4]
    assert [name for name in MAY if not readings((ROOT / name).read_text())] == []
