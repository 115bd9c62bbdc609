"""Schemas that every router documents."""

from typing import Any

from pydantic import BaseModel, Field

Responses = dict[int | str, dict[str, Any]]


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
