"""CEL expressions of rules: compiled, estimated when a config is saved, evaluated for two lobbies. No I/O.

The library (Google's, in C++) has no side effects, and stops an evaluation after 10,000 rounds of loops. That bound is
the second wall. The first is the estimate (`cost.py`): what could cost more is refused when it is saved, and never run
where it was saved by an older version. It holds for values within the bounds that it was made for; so those are
checked too (`fits`) before anything runs.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

from fleet.matchmaking import syntax
from fleet.matchmaking.cost import Bound, Refused, estimate
from fleet.matchmaking.syntax import Call, Listing, Loop, Name, Node, Select, UnknownSyntax

if TYPE_CHECKING:
    from cel_expr_python import cel

MAX_TEXT = 500
BASE = 30  # steps of an evaluation that does nothing
LOBBIES = ("a", "b")


class BadExpression(ValueError):
    """The text is no expression we evaluate; the message says why."""


class OverBound(Exception):
    """An evaluation that the library stopped."""


@dataclass(frozen=True, slots=True)
class Program:
    """`steps`: the most that one evaluation costs. `used`: the fields of lobbies that it looks at; None: any."""

    steps: int
    used: frozenset[str] | None
    _compiled: "cel.Expression"

    def holds(self, a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
        """Whether it is true of two lobbies. One that fails on them (a field is missing) is not. OverBound."""
        return _holds(self._compiled, a, b)


def prepared(text: str, lobby: Bound) -> Program:
    """The expression for lobbies within that bound; BadExpression if it is none, or if its cost cannot be told."""
    compiled, tree = _parsed(text)
    used = frozenset(_used(tree))
    named = None if "" in used else used
    seen = sum(1 + bound.weight for name, bound in lobby.fields.items() if named is None or name in named)
    try:
        steps = estimate(tree, dict.fromkeys(LOBBIES, lobby)).steps
    except Refused as error:
        raise BadExpression(str(error)) from None
    return Program(BASE + steps + len(LOBBIES) * seen, named, compiled)


def holds(text: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """As `Program.holds`, without any bound but the library's; for checks of what has been matched."""
    return _holds(_parsed(text)[0], a, b)


def fits(value: object, bound: Bound) -> bool:
    """Whether a value is as small as it was estimated for."""
    if isinstance(value, str):
        return len(value) <= bound.chars
    if isinstance(value, list | tuple):
        several = cast("list[object]", value)
        return len(several) <= bound.count and all(fits(one, bound.element) for one in several)
    return value is None or isinstance(value, bool | int | float)


@lru_cache(maxsize=256)
def _parsed(text: str) -> tuple["cel.Expression", Node]:
    if len(text) > MAX_TEXT:
        raise BadExpression(f"an expression has at most {MAX_TEXT} characters")
    try:
        # Unchecked: what lobbies have is known when they queue, and comparing whole numbers with others is fine.
        compiled = _environment().compile(text, disable_check=True)
        return compiled, syntax.parsed(compiled.serialize())
    except (RuntimeError, UnicodeError) as error:
        raise BadExpression(f"not a CEL expression: {_reason(str(error))}") from None
    except (UnknownSyntax, RecursionError) as error:
        raise BadExpression(f"this CEL is not taken here: {error}") from None


@lru_cache(maxsize=1)
def _environment() -> "cel.Env":
    from cel_expr_python import cel  # slow to import: only who evaluates expressions loads it

    lobby = cel.Type.Map(cel.Type.STRING, cel.Type.DYN)
    return cel.NewEnv(variables=dict.fromkeys(LOBBIES, lobby))


def _holds(compiled: "cel.Expression", a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    try:
        return compiled.eval(data={"a": a, "b": b}).value() is True
    except RuntimeError as error:  # what fails within the expression is a value, and not this
        if "budget" in str(error):
            raise OverBound("an evaluation took 10,000 rounds of loops, which is the limit") from None
        return False
    except (TypeError, ValueError):  # values that are none of CEL's
        return False


def _reason(message: str) -> str:
    """The first sentence of the library's message, without the picture of the place."""
    first = message.split("\n", 1)[0].split("ERROR: <input>:")[-1].removeprefix("INVALID_ARGUMENT: ")
    return f"at {first[:200]}" if first[:1].isdigit() else first[:200]


def _used(node: Node) -> Iterator[str]:
    """Names of fields of the lobbies; an empty one for a lobby as a whole."""
    match node:
        case Select(operand=Name(name=name), field=field) if name in LOBBIES:
            yield field
        case Name(name=name) if name in LOBBIES:
            yield ""
        case _:
            for one in _parts(node):
                yield from _used(one)


def _parts(node: Node) -> tuple[Node, ...]:
    match node:
        case Select(operand=operand):
            return (operand,)
        case Call(arguments=several) | Listing(items=several):
            return several
        case syntax.Mapping(entries=entries):
            return tuple(one for entry in entries for one in entry)
        case Loop():
            return node.range, node.initial, node.condition, node.step, node.result
        case _:
            return ()
