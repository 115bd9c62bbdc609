"""CEL expressions of rules: checked when a config is saved, evaluated for two lobbies. No I/O, no loops but one.

The library interprets CEL in Rust without side effects. What could run long is kept out: the text is short, the values
are small, and of the macros that loop (all, exists, map, filter) one may be used, so time grows no worse than linearly.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import cel

MAX_TEXT = 500
MAX_NESTING = 20
LOOPS = re.compile(r"\.\s*(all|exists|exists_one|existsOne|map|filter)\s*\(")
NAMES = frozenset({"a", "b"})


class BadExpression(ValueError):
    """The text is no expression we evaluate; the message says why."""


def checked(text: str) -> None:
    """Raise unless the text is an expression over `a` and `b` that is cheap to evaluate."""
    if len(text) > MAX_TEXT:
        raise BadExpression(f"an expression has at most {MAX_TEXT} characters")
    if _depth(text) > MAX_NESTING:
        raise BadExpression(f"brackets nest at most {MAX_NESTING} deep")
    loops = LOOPS.findall(text)
    if len(loops) > 1:
        raise BadExpression(f"one of all, exists, map and filter may be used, not {len(loops)}")
    foreign = _foreign(_compiled(text), looping=bool(loops))
    if foreign:
        raise BadExpression(f"unknown name '{foreign[0]}': an expression sees the lobbies 'a' and 'b'")


def _depth(text: str) -> int:
    deepest = depth = 0
    for char in text:
        depth += (char in "([{") - (char in ")]}")
        deepest = max(deepest, depth)
    return deepest


def _foreign(program: "cel.Program", *, looping: bool) -> list[str]:
    names = sorted(set(program.variables()) - NAMES)
    # A loop's own variable is told among the names.
    return names[1:] if looping else names


@lru_cache(maxsize=256)
def _compiled(text: str) -> "cel.Program":
    import cel  # slow to import: it brings its command line

    try:
        return cel.compile(text)
    except ValueError as error:
        raise BadExpression(f"not a CEL expression: {' '.join(str(error).split())[:200]}") from None


def holds(text: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether the expression is true of two lobbies. One that fails on them (a field is missing) is not."""
    try:
        return _compiled(text).execute({"a": dict(a), "b": dict(b)}) is True
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError):
        return False
