"""Config files of the operator: read again when they change, and never worse than their last good text.

At the fleet's start a broken file stops it, with file, line and reason (`read_config`). Later, a broken edit is logged
once (`config_rejected`) and what the file said before holds, also in processes that begin anew meanwhile: the last good
text is kept in the fleet's home. What is taken out of a file while something still uses it stays known by its last
definition (`KnownDefinitions`); who reads it decides what that still may be used for.
"""

import fcntl
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import structlog
import yaml
from pydantic import ValidationError

from fleet.errors import Unavailable
from fleet.settings import get_settings

log = structlog.get_logger(__name__)

Content = TypeVar("Content")
Place = tuple[str | int, ...]
_SHOWN = 3


class Invalid(ValueError):
    """What `validate` raises for content that cannot be. `place`: keys and positions that lead to it."""

    def __init__(self, reason: str, *place: str | int) -> None:
        super().__init__(reason)
        self.reason = reason
        self.place: Place = place


class BadConfig(Unavailable):
    """A config file that cannot be used; `line` counts from 1, None if the file cannot be read at all."""

    error = "Bad configuration"

    def __init__(
        self, detail: str, *, error: str | None = None, status: int | None = None, line: int | None = None
    ) -> None:
        super().__init__(detail, error=error, status=status)
        self.line = line


def read_config(path: Path, validate: Callable[[Any], Content]) -> Content:
    """What `validate` makes of the file's YAML. `BadConfig` names file, line and reason.

    `validate` may raise whatever it likes; `Invalid` and pydantic's `ValidationError` tell the place.
    """
    return _parsed(path, _text_of(path), validate)


def _text_of(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise BadConfig(f"{path}: it cannot be read: {error}") from error


def _parsed(path: Path, text: str, validate: Callable[[Any], Content]) -> Content:
    try:
        return validate(yaml.safe_load(text))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line, reason = (mark.line + 1 if mark else 1), getattr(error, "problem", None) or str(error)
    except ValidationError as error:
        line, reason = _line_of(text, error.errors()[0]["loc"]), _said(error)
    except Invalid as error:
        line, reason = _line_of(text, error.place), error.reason
    except Exception as error:
        line, reason = 1, f"{type(error).__name__}: {error}"
    raise BadConfig(f"{path}, line {line}: {reason}", line=line)


def validated(model: Callable[[Any], Content], values: Any, *place: str | int) -> Content:
    """`model(values)`, for a part of the file: an error tells its place in the whole."""
    try:
        return model(values)
    except ValidationError as error:
        raise Invalid(_at(place) + _said(error), *place, *error.errors()[0]["loc"]) from error
    except (ValueError, TypeError, AttributeError, ArithmeticError) as error:
        raise Invalid(_at(place) + str(error), *place) from error


def section(content: Any, name: str) -> dict[str, Any]:
    """The mapping of that name at the file's top, with at least one entry; `Invalid` else."""
    found: Any = cast("dict[Any, Any]", content).get(name) if isinstance(content, dict) else None
    if not isinstance(found, dict) or not found:
        raise Invalid(f"it must have '{name}:' with at least one entry", name)
    return {str(key): value for key, value in cast("dict[Any, Any]", found).items()}


class ConfigFile(Generic[Content]):
    """A file as it is now, or as it last was good. One per process and file; asking costs one `stat`.

    `kept`: a file of the fleet's own with the last good text, for a process that begins while the file is broken.
    """

    def __init__(self, path: Path, validate: Callable[[Any], Content], kept: Path | None = None) -> None:
        self.path = path
        self._kept = kept
        self.version = 0
        """Goes up with every good reading, so that who derives something from it knows when to do so again."""
        self._validate = validate
        self._seen: tuple[int, int, int] | None = None
        self._good: list[Content] = []
        self._refused: BadConfig | None = None

    def now(self) -> Content:
        """`BadConfig` only if it was never good."""
        seen = _stamp(self.path)
        if seen != self._seen:
            self._read_again()
            self._seen = seen
        if not self._good:
            raise self._refused or BadConfig(f"{self.path}: it is not there.")
        return self._good[0]

    @property
    def refused(self) -> BadConfig | None:
        """Why the present text of the file is not used; None if it is."""
        return self._refused

    def _read_again(self) -> None:
        try:
            text = _text_of(self.path)
            self._good = [_parsed(self.path, text, self._validate)]
        except BadConfig as error:
            self._refused = error
            if not self._good:
                self._good = self._last_good()
            log.error(
                "config_rejected", file=str(self.path), line=error.line, reason=error.detail, kept=bool(self._good)
            )
            return
        if self._seen is not None:
            log.info("config_taken", file=str(self.path))
        self._refused = None
        self.version += 1
        self._keep(text)

    def _last_good(self) -> list[Content]:
        if self._kept is None:
            return []
        try:
            return [read_config(self._kept, self._validate)]
        except BadConfig:
            return []

    def _keep(self, text: str) -> None:
        if self._kept is None:
            return
        try:
            if not self._kept.exists() or self._kept.read_text() != text:
                _replace(self._kept, text)
        except OSError as error:  # a full disk: the next good reading keeps it
            log.warning("config_not_kept", file=str(self._kept), error=repr(error))


class KnownDefinitions:
    """Every definition that a file has had, by name, in a file of the fleet's own: what is taken out of the operator's
    file is still known after a restart. Values are JSON."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._seen: dict[str, Any] = {}

    def remember(self, present: Mapping[str, Any]) -> dict[str, Any]:
        """All that was ever known, the present ones as they are now. Without a disk (or a path) it still gives what
        this process has seen; what cannot be written now is written when the file is next read."""
        self._seen |= present
        if self._path is None:
            return dict(self._seen)
        try:
            with self._path.with_suffix(".lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                known = self._read()
                every = known | json.loads(json.dumps(self._seen))
                if every != known:
                    _replace(self._path, json.dumps(every, indent=1, sort_keys=True))
                return every
        except OSError as error:
            log.warning("definitions_not_kept", file=str(self._path), error=repr(error))
            return self._read() | self._seen

    def _read(self) -> dict[str, Any]:
        try:
            found: Any = json.loads(self._path.read_text()) if self._path is not None else {}
        except (OSError, ValueError):
            return {}
        return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


def kept_file(name: str) -> Path | None:
    """A place of that name in the home of this process's fleet, for last good texts and known definitions. None where
    there is no fleet's home, as in tests and simulations."""
    home = get_settings().home
    if not (home / "fleet-id").exists():
        return None
    folder = home / "known"
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        log.warning("config_not_kept", file=str(folder), error=repr(error))
    return folder / name


def _replace(path: Path, text: str) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(text)
    part.replace(path)


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError:
        return (0, 0, 0)
    return (found.st_mtime_ns, found.st_size, found.st_ino)


def _at(place: Place) -> str:
    return "".join(f"{part}: " for part in place)


def _said(error: ValidationError) -> str:
    """The first few issues in one line."""
    issues = error.errors()
    shown = [f"{'.'.join(str(part) for part in issue['loc']) or 'it'}: {issue['msg']}" for issue in issues[:_SHOWN]]
    return "; ".join(shown) + (f"; and {len(issues) - _SHOWN} more" if len(issues) > _SHOWN else "")


def _line_of(text: str, place: Place) -> int:
    """The line of the deepest part of `place` that the text has."""
    node = cast("Any", yaml.compose(text, Loader=yaml.SafeLoader))
    line: int = node.start_mark.line + 1 if node is not None else 1
    for part in place:
        if isinstance(node, yaml.MappingNode):
            pair = next((pair for pair in node.value if str(pair[0].value) == str(part)), None)
            if pair is None:
                return line
            line, node = pair[0].start_mark.line + 1, pair[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            return line
    return line
