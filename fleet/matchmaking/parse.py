"""Modes from JSON, as projects save them and as they are stored."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from pydantic import ValidationError

from fleet.matchmaking.budget import expressions_of
from fleet.matchmaking.config import ModeConfig
from fleet.servers.limits import Unprocessable

MAX_MODES = 50


def parse_mode(given: object, path: str = "mode", *, stored: bool = False) -> ModeConfig:
    """A mode from its JSON; Unprocessable with the path of the first fault. One that is `stored` already may have
    expressions that would be refused now: those rules are never met (`expressions_of` says why)."""
    try:
        mode = ModeConfig.model_validate(given)
    except ValidationError as error:
        raise _fault(error, path) from None
    for one in () if stored else expressions_of(mode):
        if one.program is None:
            where = f"{path}.rules.{one.place}.expression"
            raise Unprocessable(f"{where}: {one.fault}.", field=where)
    return mode


def parse_modes(
    lobby_config: Mapping[str, Any], path: str = "lobby_configs", *, stored: bool = False
) -> dict[str, ModeConfig]:
    """All modes of one lobby config by name; none if it has no matchmaking."""
    matchmaking = _mapping(lobby_config.get("matchmaking"), f"{path}.matchmaking")
    modes = _mapping(matchmaking.get("modes"), f"{path}.matchmaking.modes")
    if len(modes) > MAX_MODES:
        raise Unprocessable(f"{path}.matchmaking.modes: at most {MAX_MODES} modes, not {len(modes)}.", field=path)
    where = f"{path}.matchmaking.modes"
    return {name: parse_mode(mode, f"{where}.{name}", stored=stored) for name, mode in modes.items()}


def parse_lobby_configs(configs: Sequence[Mapping[str, Any]]) -> None:
    """Check every mode of a project's setting `lobby_configs`."""
    for number, config in enumerate(configs):
        parse_modes(config, f"lobby_configs.{number}")


def _mapping(given: object, path: str) -> Mapping[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise Unprocessable(f"{path} should be an object.", field=path)
    return cast(Mapping[str, Any], given)


def _fault(error: ValidationError, path: str) -> Unprocessable:
    first = error.errors(include_url=False, include_input=False)[0]
    kinds = {"difference", "skill", "equals", "not_equals", "overlap", "region", "expression"}
    # A rule's type is in pydantic's path, but not in the caller's JSON.
    steps = [
        str(step)
        for place, step in enumerate(first["loc"])
        if not (step in kinds and place and isinstance(first["loc"][place - 1], int))
    ]
    where = ".".join([path, *steps])
    text = first["msg"].removeprefix("Value error, ")
    return Unprocessable(f"{where}: {text}.", field=where)
