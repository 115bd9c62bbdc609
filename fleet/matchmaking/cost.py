"""The most that an expression can cost, from its syntax tree and the bounds of what it sees. No I/O, nothing is run.

Costs are steps. One step is a part of the tree that is evaluated, an element that is looked at or copied, or some tens
of characters: 1 to 85 ns. The estimate is never below what is really done: a loop costs its body times the most
elements that its range can have, both branches of a condition count, and what is not known is refused.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import reduce

from fleet.matchmaking import syntax
from fleet.matchmaking.patterns import BadPattern, instructions
from fleet.matchmaking.syntax import Call, Constant, Listing, Loop, Name, Node, Select

COPIED = 16  # characters that are copied in a step
COMPARED = 256  # characters that are compared in a step
SEARCHED = 128  # characters times characters, for `contains`
COMPILED = 4  # steps for each instruction of a pattern
NUMBER_TEXT = 64  # characters of any number, time or duration as a text
PARSED = 8  # steps of reading a time or duration


class Refused(ValueError):
    """The expression has something whose cost is not known; the message says what."""


@dataclass(frozen=True, slots=True)
class Bound:
    """The most that a value can be: elements of a list or map, characters of a text, and the same of its elements.
    A value of one kind is within the bound of another: only its size counts."""

    count: int = 0
    chars: int = 0
    item: "Bound | None" = None
    key: "Bound | None" = None
    fields: Mapping[str, "Bound"] = field(default_factory=dict[str, "Bound"])
    weight: int = field(init=False, compare=False)  # steps of looking at all of it

    def __post_init__(self) -> None:
        inner = sum(one.weight for one in (self.item, self.key) if one is not None)
        known = sum(1 + one.weight for one in self.fields.values())
        weight = 1 + self.chars // COMPARED + self.count * max(1, inner) + known
        object.__setattr__(self, "weight", weight)

    @property
    def element(self) -> "Bound":
        """Any value in it."""
        inside = [*self.fields.values(), *([self.item] if self.item is not None else [])]
        return reduce(either, inside, SCALAR)

    @property
    def looped(self) -> "Bound":
        """What a loop over it sees: elements of a list, keys of a map."""
        names = text(max((len(name) for name in self.fields), default=0))
        return reduce(either, [one for one in (self.item, self.key, names) if one is not None], SCALAR)

    @property
    def size(self) -> int:
        """The most elements a loop over it has."""
        return max(self.count, len(self.fields))


SCALAR = Bound()


def text(chars: int) -> Bound:
    return Bound(chars=chars)


def listing(count: int, item: Bound) -> Bound:
    return Bound(count=count, item=item)


def either(a: Bound, b: Bound) -> Bound:
    """The bound of a value that is within one of the two."""
    if a == b:
        return a
    names = a.fields.keys() | b.fields.keys()
    return Bound(
        max(a.count, b.count),
        max(a.chars, b.chars),
        _either(a.item, b.item),
        _either(a.key, b.key),
        {name: _some(_either(a.fields.get(name), b.fields.get(name))) for name in names},
    )


def _either(a: Bound | None, b: Bound | None) -> Bound | None:
    return either(a, b) if a is not None and b is not None else a or b


def _some(bound: Bound | None) -> Bound:
    return bound if bound is not None else SCALAR


@dataclass(frozen=True, slots=True)
class Estimate:
    """`steps`: the most that the evaluation costs. `value`: the most that it comes to."""

    steps: int
    value: Bound = SCALAR


TYPES = frozenset({"bool", "bytes", "double", "int", "list", "map", "null_type", "string", "type", "uint"})
Scope = Mapping[str, Bound]


def estimate(node: Node, scope: Scope) -> Estimate:
    """The cost of a tree over values within these bounds, by name. Refused for what is not known."""
    match node:
        case Constant(text=value):
            return Estimate(1, text(len(value)) if value is not None else SCALAR)
        case Name(name=name):
            return Estimate(1, _named(name, scope))
        case Select():
            return _selected(node, scope)
        case Listing(items=items):
            inside = [estimate(one, scope) for one in items]
            elements = reduce(either, (one.value for one in inside), SCALAR)
            return Estimate(1 + sum(one.steps + 1 for one in inside), listing(len(items), elements))
        case syntax.Mapping(entries=entries):
            keys, values = ([estimate(entry[side], scope) for entry in entries] for side in (0, 1))
            value = Bound(
                count=len(entries),
                item=reduce(either, (one.value for one in values), SCALAR),
                key=reduce(either, (one.value for one in keys), SCALAR),
            )
            return Estimate(1 + sum(one.steps + one.value.weight for one in (*keys, *values)), value)
        case Call(function="matches", arguments=(of, pattern)):
            return _matched(estimate(of, scope), pattern)
        case Call(function=function, arguments=arguments):
            return _called(function, [estimate(one, scope) for one in arguments])
        case Loop():
            return _looped(node, scope)


def _named(name: str, scope: Scope) -> Bound:
    if name in scope:
        return scope[name]
    if name in TYPES:
        return SCALAR
    raise Refused(f"unknown name '{name[:40]}': an expression sees the lobbies 'a' and 'b'")


def _selected(node: Select, scope: Scope) -> Estimate:
    of = estimate(node.operand, scope)
    if node.test:
        return Estimate(of.steps + 1)
    return Estimate(of.steps + 1, either(of.value.fields.get(node.field, SCALAR), of.value.item or SCALAR))


def _matched(of: Estimate, pattern: Node) -> Estimate:
    if not isinstance(pattern, Constant) or pattern.text is None:
        raise Refused("the pattern of 'matches' should be a text that stands in the expression")
    try:
        program = instructions(pattern.text)
    except BadPattern as error:
        raise Refused(f"'matches': {error}") from None
    return Estimate(of.steps + 2 + COMPILED * program + (of.value.chars + 1) * program // COPIED)


def _looped(node: Loop, scope: Scope) -> Estimate:
    over, initial = estimate(node.range, scope), estimate(node.initial, scope)
    rounds = over.value.size
    inside = {**scope, node.variable: over.value.looped, node.total: initial.value}
    match node.initial:
        case Constant(text=None):
            step = estimate(node.step, inside)
        case Listing(items=()):
            step = _grown(node.step, inside, rounds)
            inside[node.total] = step.value
        case _:
            raise Refused("a loop that is not known here")
    condition, result = estimate(node.condition, inside), estimate(node.result, inside)
    each = 2 + condition.steps + step.steps
    return Estimate(over.steps + initial.steps + 1 + rounds * each + condition.steps + result.steps, result.value)


def _grown(step: Node, scope: Scope, rounds: int) -> Estimate:
    """One round of map or filter: `total + [element]`, which may stand in a condition. The library copies the list."""
    match step:
        case Call(function="_?_:_", arguments=(condition, Call() as adding, Name())):
            added = _grown(adding, scope, rounds)
            return Estimate(2 + estimate(condition, scope).steps + added.steps, added.value)
        case Call(function="_+_", arguments=(Name(), Listing(items=(element,)))):
            added = estimate(element, scope)
            return Estimate(4 + added.steps + rounds, listing(rounds, added.value))
        case _:
            raise Refused("a loop that is not known here")


# Operators and functions: their own steps, without their arguments', and what they come to. -----------------------


def _called(function: str, arguments: list[Estimate]) -> Estimate:
    known = FUNCTIONS.get(function)
    if known is None:
        names = ", ".join(sorted(name for name in FUNCTIONS if name.isidentifier()))
        raise Refused(f"unknown function '{function[:40]}': use operators, {names}, matches")
    places, cost = known
    if len(arguments) not in places:
        raise Refused(f"'{function}' with {len(arguments)} arguments is not known")
    own = cost([one.value for one in arguments])
    return Estimate(own.steps + sum(one.steps for one in arguments), own.value)


Cost = Callable[[list[Bound]], Estimate]


def _plain(_values: list[Bound]) -> Estimate:
    return Estimate(1)


def _looked_at(values: list[Bound]) -> Estimate:
    """Comparing, and all that goes through its arguments once."""
    return Estimate(1 + sum(one.weight for one in values))


def _summed(values: list[Bound]) -> Estimate:
    a, b = values
    whole = either(a, b)
    summed = Bound(a.count + b.count, a.chars + b.chars, whole.item, whole.key, whole.fields)
    return Estimate(1 + a.count + b.count + (a.chars + b.chars) // COPIED, summed)


def _chosen(values: list[Bound]) -> Estimate:
    return Estimate(1, either(values[1], values[2]))


def _indexed(values: list[Bound]) -> Estimate:
    return Estimate(1 + values[1].weight, values[0].element)


def _contained(values: list[Bound]) -> Estimate:
    return Estimate(1 + (values[0].chars + 1) * (values[1].chars + 1) // SEARCHED)


def _itself(values: list[Bound]) -> Estimate:
    return Estimate(1, values[0])


def _as_text(values: list[Bound]) -> Estimate:
    chars = max(NUMBER_TEXT, values[0].chars)
    return Estimate(2 + chars // COPIED, text(chars))


def _read(values: list[Bound]) -> Estimate:
    return Estimate(PARSED + values[0].chars // COPIED)


def _measured(values: list[Bound]) -> Estimate:
    return Estimate(1 + values[0].chars // COPIED)


_TWO, _ONE = frozenset({2}), frozenset({1})
FUNCTIONS: dict[str, tuple[frozenset[int], Cost]] = {
    **dict.fromkeys(("_&&_", "_||_", "_-_", "_*_", "_/_", "_%_"), (_TWO, _plain)),
    **dict.fromkeys(("!_", "-_", "@not_strictly_false"), (_ONE, _plain)),
    **dict.fromkeys(("_==_", "_!=_", "_<_", "_<=_", "_>_", "_>=_"), (_TWO, _looked_at)),
    **dict.fromkeys(("@in", "startsWith", "endsWith"), (_TWO, _looked_at)),
    **dict.fromkeys(("bool", "double", "int", "uint", "timestamp", "duration"), (_ONE, _read)),
    "_+_": (_TWO, _summed),
    "_?_:_": (frozenset({3}), _chosen),
    "_[_]": (_TWO, _indexed),
    "contains": (_TWO, _contained),
    "dyn": (_ONE, _itself),
    "size": (_ONE, _measured),
    "string": (_ONE, _as_text),
    "type": (_ONE, _plain),
}
