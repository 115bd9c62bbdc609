"""No expression that is saved costs more than was estimated, whatever the lobbies that it sees within their bounds."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from cel_expr_python import cel
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fleet.matchmaking import Ticket, match, parse_mode
from fleet.matchmaking.budget import LEAST, LOOK, MOST, expressions_of, nearest, pair_limit
from fleet.matchmaking.cost import COMPARED, Bound, estimate, listing, text
from fleet.matchmaking.expressions import BadExpression, fits, prepared
from fleet.matchmaking.patterns import BadPattern, instructions
from fleet.matchmaking.syntax import UnknownSyntax, parsed
from fleet.servers.limits import Unprocessable
from tests.unit.match_kit import duel, lobby

LOBBY = Bound(
    fields={
        "n": Bound(),
        "s": text(300),
        "l": listing(40, text(300)),
        "m": listing(30, Bound()),
    }
)
WORST: dict[str, Any] = {"n": 7.0, "s": "x" * 300, "l": ["x" * 300] * 40, "m": list(range(30))}


def cost(expression: str) -> int:
    return prepared(expression, LOBBY).steps


def refusal(expression: str, **mode: Any) -> str:
    with pytest.raises(Unprocessable) as caught:
        parse_mode({"rules": [{"type": "expression", "expression": expression}], **mode})
    assert caught.value.field == "mode.rules.0.expression"
    return str(caught.value.detail)


def nested(depth: int, count: int, between: str = "") -> str:
    """Loops within loops, over lists that stand in the text."""
    expression = "true"
    for _ in range(depth):
        expression = f"[{','.join('1' * count)}].{between}all(b,{expression})"
    return expression


@pytest.mark.parametrize("between", ["", "//\n", " ", "\t\n ", "// all(\n"])
def test_loops_multiply_however_they_are_written(between: str) -> None:
    """Neither a comment nor a loop variable's name hides a loop."""
    detail = refusal(nested(5, 20, between))
    assert "may cost" in detail
    assert f"the limit is {MOST:,}" in detail
    plain, hidden = (prepared(nested(3, 5, one), LOBBY).steps for one in ("", between))
    assert plain == hidden
    assert plain > 5**3


def test_the_refusal_names_the_estimate_and_the_limit_of_the_mode() -> None:
    rule = "a.players.exists(x, b.players.exists(y, x == y))"
    detail = refusal(rule, playersPerTeam=20)
    steps = expressions_of(parse_mode({"rules": [{"type": "expression", "expression": rule}]}))[0].program
    assert steps is not None
    assert steps.steps < MOST, "parties of one are cheap"
    assert f"the limit is {pair_limit(40):,} for a mode of 40 players" in detail


def test_expressions_of_a_mode_count_together() -> None:
    rule = {"type": "expression", "expression": "[1,2,3,4,5,6,7,8,9].all(x, [1,2,3,4,5,6,7,8,9].all(y, x + y > 0))"}
    parse_mode({"rules": [rule]})
    with pytest.raises(Unprocessable, match=r"beside .* of the mode's other expressions") as caught:
        parse_mode({"rules": [rule] * 20})
    assert caught.value.field is not None
    assert caught.value.field.startswith("mode.rules.")


def test_what_a_look_asks_stays_within_its_budget() -> None:
    for players in range(1, 201):
        assert pair_limit(players) in (LEAST, MOST) or pair_limit(players) * nearest(players) * (players - 1) <= LOOK


@pytest.mark.parametrize(
    "expression",
    [
        "a.mmr - b.mmr < 100.0 || a.waited > 20.0",
        "a.size == b.size && a.skill - b.skill < 3.0",
        "!('beginner' in a.tags) || b.waited > 10.0",
        "a.last.exists(x, x in b.last)",
        "a.regions.filter(r, r in b.regions).size() >= 2",
        "a.version.startsWith('1.') && b.version.matches('^1[.][0-9]+$')",
        "has(a.mmr) ? a.mmr > 10.0 : size(b.players) == 1",
        "int(a.version) == int(b.version) && type(a.mmr) == type(b.mmr)",
        "a.regions[0] == b.regions[0] || {'x': 1}['x'] == 2",
    ],
)
def test_what_studios_write_is_taken(expression: str) -> None:
    fields = [{"type": "difference", "field": "mmr", "maxDifference": 9}, {"type": "equals", "field": "version"}]
    more = [{"type": "overlap", "field": "tags"}, {"type": "not_equals", "field": "last"}]
    parse_mode({"rules": [*fields, *more, {"type": "expression", "expression": expression}]})


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("c.mmr > 1", "unknown name 'c'"),
        ("[1].all(x, y == x)", "unknown name 'y'"),
        ("[1].all(x, true) && x == 1", "unknown name 'x'"),
        ("foo(a.mmr) == 1", "unknown function 'foo'"),
        ("a.s.foo()", "unknown function 'foo'"),
        ("size(a.l, b.l) == 1", "with 2 arguments"),
        ("'x'.matches(a.s)", "should be a text that stands in the expression"),
        ("a.s.matches('\\\\pL')", "is not taken in a pattern"),
        ("a.s.matches('(?i)x')", "'(?' is not taken"),
        ("a.s.matches('((((.{9}){9}){9}){9}){9}')", "may cost"),
        ("a.mmr >", "not a CEL expression"),
        ("google.protobuf.Int32Value{value: 1} == 1", "not taken here"),
        ("(" * 40 + "true" + ")" * 40, "not a CEL expression"),
        ("[1,2].map(x, [x, x])" + ".map(x, [x, x])" * 12 + " == []", "may cost"),
        ("['" + "x" * 99 + "']" + ".map(x, x + x)" * 20 + ".size() == 1", "may cost"),
    ],
)
def test_what_is_not_known_or_grows_is_refused(expression: str, why: str) -> None:
    assert why in refusal(expression)


def test_a_tree_with_a_field_that_is_not_known_is_refused() -> None:
    """A newer library may have more syntax: it is not overlooked."""
    whole = cel.NewEnv().compile("1 == 1", disable_check=True).serialize()
    parsed(whole)
    with pytest.raises(UnknownSyntax):
        parsed(whole + b"\x4a\x00")
    with pytest.raises(UnknownSyntax):
        parsed(whole[:0])


# Counted ----------------------------------------------------------------------------------------------------------


@dataclass
class Counted:
    """The library itself counts: each part of an expression is wrapped in a call of `s`, which lets a value through."""

    steps: int = 0
    environment: cel.Env = field(init=False)

    def __post_init__(self) -> None:
        lobby_type = cel.Type.Map(cel.Type.STRING, cel.Type.DYN)
        kinds = [getattr(cel.Type, kind) for kind in ("BOOL", "INT", "DOUBLE", "STRING", "NULL", "LIST", "MAP")]
        functions = [
            cel.FunctionDecl(
                name,
                [cel.Overload(f"{name}_{kind.name()}", cel.Type.DYN, [kind], False, count) for kind in kinds],
            )
            for name, count in {"s": self._one, "w": self._all}.items()
        ]
        self.environment = cel.NewEnv(variables={"a": lobby_type, "b": lobby_type}, functions=functions)

    def _one(self, value: Any) -> Any:
        self.steps += 1
        return value

    def _all(self, value: Any) -> Any:
        """For what an operator goes through, or copies."""
        self.steps += 1 + weight(value)
        return value

    def run(self, expression: str) -> int:
        self.steps = 0
        self.environment.compile(expression, disable_check=True).eval(data={"a": WORST, "b": WORST})
        return self.steps


def weight(value: Any) -> int:
    if isinstance(value, cel.Value):
        return weight(value.plain_value())
    if isinstance(value, str):
        return 1 + len(value) // COMPARED
    if isinstance(value, list):
        return 1 + sum(weight(one) for one in value)
    if isinstance(value, dict):
        return 1 + sum(weight(key) + weight(one) for key, one in value.items())
    return 1


Pair = tuple[str, str]  # an expression, and the same with its parts counted


def both(form: str, *parts: Pair, through: bool = False) -> Pair:
    wrap = "w" if through else "s"
    return form.format(*(plain for plain, _ in parts)), f"s({form.format(*(f'{wrap}({one})' for _, one in parts))})"


def _leaf(names: tuple[str, ...]) -> st.SearchStrategy[Pair]:
    fixed = ["1", "2.5", "true", "'x'", "null", "a.n", "b.s", "a.l", "b.l", "a.m", "b.m", "a", *names]
    return st.sampled_from(fixed).map(lambda one: (one, f"s({one})"))


def trees(depth: int, names: tuple[str, ...] = ()) -> st.SearchStrategy[Pair]:
    """Expressions of any type, right or wrong, over the names there are."""
    if depth == 0:
        return _leaf(names)
    inner = trees(depth - 1, names)
    name = f"v{depth}"
    within = trees(depth - 1, (*names, name))

    def loops(macro: str) -> st.SearchStrategy[Pair]:
        return st.tuples(inner, within).map(lambda two: both(f"{{0}}.{macro}({name}, {{1}})", *two))

    def through(form: str) -> Callable[[tuple[Pair, Pair]], Pair]:
        return lambda two: both(form, *two, through=True)

    return st.one_of(
        _leaf(names),
        *(st.tuples(inner, inner).map(through(form)) for form in ("({0} == {1})", "({0} in {1})", "({0} < {1})")),
        st.tuples(inner, inner).map(lambda two: both("({0} + {1})", *two)),
        st.tuples(inner, inner).map(lambda two: both("[{0}, {1}]", *two)),
        st.tuples(inner, inner).map(lambda two: both("({0} || {1})", *two)),
        st.tuples(inner, inner).map(lambda two: both("{{'k': {0}, 'l': {1}}}", *two)),
        st.tuples(inner, inner).map(lambda two: both("{0}[{1}]", *two)),
        st.tuples(inner, inner, inner).map(lambda three: both("({0} ? {1} : {2})", *three)),
        inner.map(lambda one: both("size({0})", one)),
        inner.map(lambda one: both("string({0})", one)),
        *(loops(macro) for macro in ("all", "exists", "exists_one", "map", "filter")),
    )


def leaf(name: str) -> Pair:
    return name, f"s({name})"


MAPPED = both("{0}.map(x, {1})", leaf("a.l"), both("{0}.map(y, {1})", leaf("b.m"), leaf("y")))
ALL = both("{0}.all(z, {1})", MAPPED, both("{0}.all(w, {1})", leaf("z"), both("({0} == {1})", leaf("w"), leaf("w"))))
LISTED = both("[{0}, {1}]", MAPPED, MAPPED)
CHAINED = both("({0} == {1})", both("({0} + {1})", LISTED, MAPPED), LISTED, through=True)


@settings(max_examples=300, deadline=None)
@given(trees(4))
@example(ALL)
@example(CHAINED)
def test_what_is_really_evaluated_is_never_more_than_the_estimate(pair: Pair) -> None:
    plain, counted = pair
    try:
        steps = prepared(plain[:500], LOBBY).steps
    except BadExpression:
        return
    if steps <= 10 * MOST:
        assert Counted().run(counted) <= steps, plain


def test_the_counting_sees_loops() -> None:
    """Or else the property above would hold for nothing."""
    plain, counted = "a.l.map(x, b.m.map(y, y)).size() > 0", "s(s(a.l).map(x, s(s(b.m).map(y, s(y)))).size() > 0)"
    assert 1200 <= Counted().run(counted) <= cost(plain)
    _, through = both("({0} in {1})", ("b.s", "b.s"), ("a.l", "a.l"), through=True)
    assert Counted().run(through) > 80


@settings(max_examples=200, deadline=None)
@given(trees(3))
@example(MAPPED)
@example(both("({0} + {1})", LISTED, MAPPED))
@example(both("({0} + {1})", both("string({0})", leaf("a.s")), leaf("b.s")))
@example(both("{{'k': {0}, 'l': {1}}}", MAPPED, leaf("a.l")))
def test_no_value_is_larger_than_its_bound(pair: Pair) -> None:
    """Sizes of what is in between decide over the cost of what comes after."""
    environment = cel.NewEnv(
        variables=dict.fromkeys("ab", cel.Type.Map(cel.Type.STRING, cel.Type.DYN)),
    )
    try:
        compiled = environment.compile(pair[0], disable_check=True)
        bound = estimate(parsed(compiled.serialize()), {"a": LOBBY, "b": LOBBY})
    except (RuntimeError, ValueError):
        return
    if bound.steps > 100 * MOST:
        return
    result = compiled.eval(data={"a": WORST, "b": WORST})
    if result.type() != cel.Type.ERROR:
        value = result.plain_value()
        assert weight(value) <= bound.value.weight, pair[0]
        if isinstance(value, str | list | dict):
            assert len(value) <= max(bound.value.chars, bound.value.size), pair[0]


@pytest.mark.parametrize(
    ("pattern", "least"), [("abc", 3), ("a{50}", 50), ("(a{9}){9}", 81), ("[^a]{100}", 1000), ("x.*y", 12)]
)
def test_repetition_multiplies_a_pattern(pattern: str, least: int) -> None:
    assert instructions(pattern) >= least


@pytest.mark.parametrize("pattern", ["\\pL", "(?i)x", "[[:alpha:]]", "[]a]", "\\x41", "\\Qa\\E", "a" * 201, "[a"])
def test_a_pattern_that_may_be_more_than_it_looks_is_refused(pattern: str) -> None:
    with pytest.raises(BadPattern):
        instructions(pattern)


# Run ----------------------------------------------------------------------------------------------------------------


def test_an_expression_that_was_saved_before_is_not_run_and_the_project_hears_why() -> None:
    rules = [{"type": "expression", "expression": nested(5, 20, "//\n"), "dropAfter": 60}]
    mode = parse_mode({"rules": rules}, stored=True)
    pair = [lobby(mode, "a"), lobby(mode, "b")]
    assert match(pair, mode, 5.0) == [], "it is not met"
    assert len(match(pair, mode, 61.0)) == 1, "and binds no longer than it would"
    assert "may cost" in expressions_of(mode)[0].fault


def test_a_lobby_larger_than_its_bounds_is_not_looked_at() -> None:
    mode = duel(rules=[{"type": "overlap", "field": "maps"}, {"type": "expression", "expression": "a.maps == b.maps"}])
    fair = [lobby(mode, name, maps=["sand"]) for name in "ab"]
    assert len(match(fair, mode, 1.0)) == 1
    large = [Ticket(one.ticket_id, one.players, one.created_at, {"maps": ("sand",) * 65}) for one in fair]
    assert match(large, mode, 1.0) == []


def test_values_within_and_beyond_a_bound() -> None:
    assert fits(["x" * 10], listing(1, text(10)))
    for value in (["x", "y"], ["x" * 11], "x", [["x"]], {"x": 1}, object()):
        assert not fits(value, listing(1, text(10)))
    assert all(fits(value, Bound()) for value in (None, True, 1, 2.5))
