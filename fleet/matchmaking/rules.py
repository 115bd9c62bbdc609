"""The rules of a mode, as data. Each has a type; what loosens with waiting time says so itself.

A rule binds two lobbies only as far as both still insist on it: a window is the narrower of their two (mutual consent).
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel

from fleet.matchmaking.expressions import MAX_TEXT

FieldName = Annotated[str, StringConstraints(min_length=1, max_length=100)]
Seconds = Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)]
Width = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]


class Data(BaseModel):
    """Names as in the API. Unknown ones are kept aside, not refused: configs made elsewhere carry more than we know."""

    model_config = ConfigDict(frozen=True, extra="allow", alias_generator=to_camel, populate_by_name=True)


class Relax(Data):
    """From `after` seconds of waiting on, the limit grows by `perSecond`, up to `max`."""

    after: Seconds = 0.0
    per_second: Width
    max: Width | None = None

    def grown(self, limit: float, waited: float) -> float:
        """The limit after so long a wait."""
        wide = limit + max(0.0, waited - self.after) * self.per_second
        return wide if self.max is None else min(wide, max(self.max, limit))


class DifferenceRule(Data):
    """The mean of `field` in two lobbies differs by at most `maxDifference`, which grows with waiting."""

    type: Literal["difference"] = "difference"
    field: FieldName
    max_difference: Width
    relax: Relax | None = None

    @property
    def growth(self) -> Relax:
        """Unless told otherwise: a thirtieth of the limit more per second, up to five times the limit."""
        return self.relax or usual_growth(self.max_difference)


class SkillRule(Data):
    """Like difference, on openskill's mu; and the teams' chances stay within `maxImbalance` of even."""

    type: Literal["skill"] = "skill"
    max_difference: Width = 4.0
    relax: Relax | None = None
    max_imbalance: Annotated[float, Field(gt=0, le=0.5)] = 0.2
    relax_imbalance: Relax = Relax(after=10.0, per_second=0.005)

    @property
    def growth(self) -> Relax:
        return self.relax or usual_growth(self.max_difference)


class EqualsRule(Data):
    """All lobbies of a match have the same value; dropped for lobbies that have waited `dropAfter` seconds."""

    type: Literal["equals"] = "equals"
    field: FieldName
    drop_after: Seconds | None = None


class NotEqualsRule(Data):
    """No two lobbies of a match share a value, for example the last match. No value fits with all."""

    type: Literal["not_equals"] = "not_equals"
    field: FieldName
    drop_after: Seconds | None = None


class OverlapRule(Data):
    """One value of the list `field` is common to all lobbies of a match."""

    type: Literal["overlap"] = "overlap"
    field: FieldName


class RegionRule(Data):
    """One region suits all: each named it, and where `maxLatency` is set, measured no more milliseconds to it."""

    type: Literal["region"] = "region"
    field: FieldName = "regions"
    max_latency: Annotated[float, Field(gt=0, le=10_000)] | None = None
    relax: Relax | None = None

    @property
    def growth(self) -> Relax:
        return self.relax or usual_growth(self.max_latency or 0.0)


class ExpressionRule(Data):
    """A CEL expression over two lobbies, `a` the one that waits longer and `b`; it must be true for each pair."""

    type: Literal["expression"] = "expression"
    expression: Annotated[str, StringConstraints(min_length=1, max_length=MAX_TEXT)]
    drop_after: Seconds | None = None


def usual_growth(limit: float) -> Relax:
    return Relax(per_second=limit / 30, max=limit * 5)


OLD_NAMES = {"intersection": "overlap", "notEquals": "not_equals", "notequals": "not_equals", "cel": "expression"}


def _modern(rule: Any) -> Any:
    """The oldest spelling, `{attribute, operator, ...}`, in today's words. Its overlap of regions picks the region."""
    if not isinstance(rule, Mapping):
        return rule
    given = dict(cast(Mapping[str, Any], rule))
    if "type" not in given and "operator" in given:
        given["type"] = given.pop("operator")
    if "field" not in given and "attribute" in given:
        given["field"] = given.pop("attribute")
    kind = given.get("type")
    if isinstance(kind, str):
        given["type"] = OLD_NAMES.get(kind, kind)
    if given.get("type") == "overlap" and given.get("field") == "regions":
        given["type"] = "region"
    return given


Rule = Annotated[
    Annotated[
        DifferenceRule | SkillRule | EqualsRule | NotEqualsRule | OverlapRule | RegionRule | ExpressionRule,
        Field(discriminator="type"),
    ],
    BeforeValidator(_modern),
]
