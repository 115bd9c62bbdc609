"""Tasks are made in `fleet.actors` only: elsewhere an error would end one silently (`fleet/actors/tasks.py`)."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAKERS = {"create_task", "ensure_future"}
MADE_IN = ROOT / "fleet" / "actors"
SOURCES = [
    path
    for folder in ("fleet", "serve_app")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if MADE_IN not in path.parents
]


def makers(source: str) -> list[int]:
    """The lines on which a task is made."""
    names = ((node, getattr(node.func, "attr", getattr(node.func, "id", ""))) for node in calls(source))
    return [node.lineno for node, name in names if name in MAKERS]


def calls(source: str) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_task_is_made_here(path: Path) -> None:
    assert makers(path.read_text()) == []


def test_the_rule_finds_what_it_forbids() -> None:
    assert makers(
        "import asyncio\nasyncio.create_task(f())\nx = asyncio.ensure_future(g())\nloop.create_task(h())"
    ) == [2, 3, 4]
