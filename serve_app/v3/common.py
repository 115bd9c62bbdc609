"""Schemas that every router documents."""

from typing import Annotated, Any

from fastapi.routing import APIRoute
from pydantic import BaseModel, BeforeValidator, Field, Strict

Responses = dict[int | str, dict[str, Any]]


def _number(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("true and false are no numbers")
    return value


# In JSON bodies: 0 and "no" are no booleans, true is no number. 3600.0 is 3600, as Godot sends it, and so is "3600".
Flag = Annotated[bool, Strict()]
NUMBER = BeforeValidator(_number)  # after the bounds, or the document would not name them


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
