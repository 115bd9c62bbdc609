"""How strictly the clients read: an answer must have these fields, of these types."""

from typing import Any

Shape = dict[str, Any]


class Optional:
    """A field that may be null or missing."""

    def __init__(self, kind: Any) -> None:
        self.kind = kind


class Absent:
    """A field that may be missing, but not null: the reader takes it without looking."""

    def __init__(self, kind: Any) -> None:
        self.kind = kind


def read(shape: Any, value: Any, where: str = "answer") -> Any:
    """`value` if it can be read as `shape`: a type, `[shape]`, or a dict of shapes; AssertionError says what cannot."""
    if isinstance(shape, Optional):
        return value if value is None else read(shape.kind, value, where)
    if isinstance(shape, Absent):
        return read(shape.kind, value, where)
    if isinstance(shape, list):
        assert isinstance(value, list), f"{where} is no list: {value!r}"
        for index, item in enumerate(value):
            read(shape[0], item, f"{where}[{index}]")
    elif isinstance(shape, dict):
        assert isinstance(value, dict), f"{where} is no object: {value!r}"
        for name, inner in shape.items():
            if name not in value and isinstance(inner, Optional | Absent):
                continue
            assert name in value, f"{where} has no {name}: {value!r}"
            read(inner, value[name], f"{where}.{name}")
    else:
        assert type(value) is shape, f"{where} is no {shape.__name__}: {value!r}"
    return value
