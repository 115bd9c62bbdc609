"""The published v2 descriptions, boiled down to what can be checked, and answers held against them.

    python -m tests.contract.playflow_v2.describe FOLDER_OF_THE_ORIGINALS

rewrites the YAML files beside this one: methods, paths, names, types, what is required. No text of the originals.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator, FormatChecker

HERE = Path(__file__).parent
NAMES = ("servers_builds_v2", "lobby_builds_upload_v2")
LOBBIES = "legacy_matchmaker_lobbies"
_FACTS = ("type", "format", "enum", "minimum", "maximum", "maxLength", "required")
_REF = "#/components/schemas/"
_formats = FormatChecker()


@_formats.checks("date-time", raises=ValueError)
def _is_time(value: object) -> bool:
    return not isinstance(value, str) or datetime.fromisoformat(value).tzinfo is not None


@dataclass(frozen=True)
class Description:
    """One file: `operations` by "METHOD /path", with each answer's schema, which may refer to `shapes`."""

    name: str
    operations: dict[str, Any]
    shapes: dict[str, Any]

    def check_answer(self, operation: str, status: int, body: object) -> None:
        """Raises unless `body` is what the file says of this status; it must say something of it."""
        schema = {**self.shapes, **self.operations[operation]["answers"][status]}
        Draft202012Validator(schema, format_checker=_formats).validate(body)

    def says(self, operation: str, status: int) -> bool:
        return status in self.operations[operation]["answers"]


def read(name: str) -> dict[str, Any]:
    """The boiled-down file."""
    return yaml.safe_load((HERE / f"{name}.yaml").read_text())


def boiled_down(name: str) -> Description:
    content = read(name)
    return Description(name, content["operations"], {"shapes": content["shapes"]})


def original(name: str, document: dict[str, Any]) -> Description:
    document = plain(document)
    operations = {
        operation: {"answers": {int(status): _content(answer) for status, answer in found["responses"].items()}}
        for operation, found in _operations(document)
    }
    return Description(f"published {name}", operations, {"components": document["components"]})


def originals() -> Path | None:
    """Where the published files are, if they are beside this repository."""
    return next((found for parent in HERE.parents if (found := parent / "shared" / "playflow-v2").is_dir()), None)


def boil_down(document: dict[str, Any]) -> dict[str, Any]:
    document = plain(document)
    operations = {operation: _operation(found) for operation, found in _operations(document)}
    shapes = {name: _shape(schema) for name, schema in document["components"]["schemas"].items()}
    return {"operations": operations, "shapes": shapes}


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def _content(answer: dict[str, Any]) -> dict[str, Any]:
    """Its schema; one that anything fits if the file names none."""
    return answer.get("content", {}).get("application/json", {}).get("schema", {})


def plain(part: Any) -> Any:
    """OpenAPI 3.0 in words of JSON Schema. A nullable object without properties is what the file's generator wrote for
    anything that may be null; and of its `oneOf`s several fit a matched ticket, so one is enough."""
    if isinstance(part, list):
        return [plain(one) for one in part]
    if not isinstance(part, dict):
        return part
    part = {("anyOf" if name == "oneOf" else name): plain(value) for name, value in part.items()}
    if part.pop("nullable", False) is not True:
        return part
    if part.get("type") == "object" and "properties" not in part:
        return {name: value for name, value in part.items() if name != "type"}
    return {"anyOf": [part, {"type": "null"}]}


def _operation(operation: dict[str, Any]) -> dict[str, Any]:
    boiled: dict[str, Any] = {"answers": {}}
    for status, answer in operation["responses"].items():
        boiled["answers"][int(status)] = _shape(_content(answer))
    if parameters := operation.get("parameters"):
        boiled["parameters"] = [
            {"name": one["name"], "in": one["in"], "required": one["required"], **_shape(one["schema"])}
            for one in parameters
        ]
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        boiled["body"] = {"content": kind, **_shape(content["schema"])}
    return boiled


def _shape(schema: dict[str, Any]) -> dict[str, Any]:
    boiled = {name: schema[name] for name in _FACTS if name in schema}
    if "$ref" in schema:
        boiled["$ref"] = "#/shapes/" + schema["$ref"].removeprefix(_REF)
    if "items" in schema:
        boiled["items"] = _shape(schema["items"])
    for several in ("anyOf", "allOf"):
        if several in schema:
            boiled[several] = [_shape(one) for one in schema[several]]
    if "properties" in schema:
        boiled["properties"] = {name: _shape(one) for name, one in schema["properties"].items()}
    return boiled


def main(folder: Path) -> None:
    for name in (*NAMES, LOBBIES):
        boiled = boil_down(json.loads((folder / f"{name}.json").read_text()))
        text = yaml.safe_dump(boiled, sort_keys=False, width=120, default_flow_style=None)
        (HERE / f"{name}.yaml").write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
