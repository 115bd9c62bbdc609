"""What clients give us to keep: it must be writable as JSON, and it must not grow for ever."""

from typing import Any

import orjson

from fleet.errors import BadRequest, PayloadTooLarge


def check_json(data: Any, name: str, most: int) -> None:
    """`BadRequest` for whole numbers beyond 64 bits, lone surrogates and too deep nesting, which are valid JSON all the
    same; `PayloadTooLarge` over `most` bytes."""
    try:
        size = len(orjson.dumps(data))
    except orjson.JSONEncodeError as error:
        raise BadRequest(f"{name} cannot be stored: {error}.") from error
    if size > most:
        raise PayloadTooLarge(f"{name} takes {size} bytes; at most {most} are kept.")
