"""Schemas that every router documents."""

from typing import Annotated, Any, cast

from fastapi.routing import APIRoute
from pydantic import BaseModel, BeforeValidator, Field, GetJsonSchemaHandler, Strict, model_validator
from pydantic.fields import FieldInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

Responses = dict[int | str, dict[str, Any]]


def _number(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("true and false are no numbers")
    return value


# In JSON bodies: 0 and "no" are no booleans, true is no number. 3600.0 is 3600, as Godot sends it, and so is "3600".
Flag = Annotated[bool, Strict()]
NUMBER = BeforeValidator(_number)  # after the bounds, or the document would not name them


class Body(BaseModel):
    """A JSON body. Null for a field that has a default means the default: many serializers write all fields."""

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        given = cast("dict[str, Any]", data)
        names = {key for name, field in cls.model_fields.items() if _has_default(field) for key in (name, field.alias)}
        return {key: value for key, value in given.items() if value is not None or key not in names}

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        found = handler(core_schema)
        properties = handler.resolve_ref_schema(found).get("properties", {})
        for name, said in properties.items():
            if said.get("default") is not None:
                kept = {key: said.pop(key) for key in ("title", "description", "default") if key in said}
                properties[name] = {"anyOf": [said, {"type": "null"}], **kept}
        return found


def _has_default(field: FieldInfo) -> bool:
    """One that null could not mean."""
    return not field.is_required() and field.get_default() is not None


class ErrorOut(BaseModel):
    """The shape of every error but a 422."""

    error: str = Field(description="The error's name", examples=["Not found"])
    detail: str = Field(description="What to do about it")
    status: int = Field(description="The HTTP status again")


class Issue(BaseModel):
    loc: list[str | int] = Field(description='Where, e.g. `["body","ttl"]`')
    msg: str
    type: str = Field(description="An issue code such as `invalid_type`, `too_small`, `custom`")


class ValidationErrorOut(BaseModel):
    """A 422: what is wrong, field by field."""

    error: str = Field(examples=["Validation error"])
    detail: list[Issue]
    status: int


_TEXTS = {
    400: "The request cannot be understood, or names something that does not exist",
    401: "The key is missing or unknown",
    403: "The key, or the plan, does not allow this",
    404: "Unknown here, or not of this project",
    409: "Not possible in the present state",
    410: "The position is too old: events after it are not kept any more",
    413: "The body, or a field of it, is too large",
    415: "The body is compressed",
    429: "Too many requests; wait as Retry-After says",
    500: "A fault inside the fleet; the detail holds the request's id",
    503: "A part of the fleet does not answer now; try again",
}


def errors(*statuses: int) -> Responses:
    """Documentation of the error answers of a route; the ones that any route may give are included."""
    known: Responses = {
        status: {"model": ErrorOut, "description": _TEXTS[status]} for status in sorted({*statuses, 429, 500, 503})
    }
    known[422] = {"model": ValidationErrorOut, "description": "A field is missing, malformed or out of bounds"}
    return known


def operation_id(route: APIRoute) -> str:
    """The function's name, which generated clients then have too."""
    return route.name


def links(field: str, *operations: str) -> dict[str, Any]:
    """What may be done next with the `field` of an answer."""
    parameters = {field: f"$response.body#/{field}"}
    return {"links": {name: {"operationId": name, "parameters": parameters} for name in operations}}
