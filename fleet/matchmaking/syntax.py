"""The syntax tree of a CEL expression: what the library parsed, comments and macros gone.

The library gives its tree as a protobuf message (cel.expr.ParsedExpr) and brings no classes for it. The few fields are
read here; one that is not known is refused, so that nothing of an expression goes past the estimate of its cost.
"""

from collections.abc import Iterator
from dataclasses import dataclass

Raw = int | bytes
_VARINT, _FIXED64, _BYTES = 0, 1, 2


class UnknownSyntax(ValueError):
    """The tree has something that we cannot account for."""


@dataclass(frozen=True, slots=True)
class Constant:
    """`text`: the value, if it is a string (or bytes, decoded as Latin-1)."""

    text: str | None = None


@dataclass(frozen=True, slots=True)
class Name:
    name: str


@dataclass(frozen=True, slots=True)
class Select:
    """`operand.field`; with `test`, `has(operand.field)`."""

    operand: "Node"
    field: str
    test: bool


@dataclass(frozen=True, slots=True)
class Call:
    """An operator (`_+_`) or function; of a method the target is the first argument."""

    function: str
    arguments: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Listing:
    items: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Mapping:
    entries: tuple[tuple["Node", "Node"], ...]


@dataclass(frozen=True, slots=True)
class Loop:
    """A macro, expanded: for each `variable` of `range`, `total` becomes `step`, as long as `condition` is true."""

    variable: str
    range: "Node"
    total: str
    initial: "Node"
    condition: "Node"
    step: "Node"
    result: "Node"


Node = Constant | Name | Select | Call | Listing | Mapping | Loop


def parsed(serialized: bytes) -> Node:
    """The tree in what the library's `serialize()` gives."""
    wrapped = _fields(serialized, 1, 2)
    message = _fields(_bytes(wrapped, 2), 2, 3)  # the expression, and where in the text its parts are
    return _node(_bytes(message, 2))


def _node(data: bytes) -> Node:
    fields = _fields(data, 2, 3, 4, 5, 6, 7, 8, 9)
    kinds = fields.keys() - {2}  # 2: its number
    if len(kinds) != 1:
        raise UnknownSyntax("an expression of no known kind")
    kind = kinds.pop()
    return _READERS[kind](_bytes(fields, kind))


def _constant(data: bytes) -> Node:
    fields = _fields(data, 1, 2, 3, 4, 5, 6, 7)
    if 6 in fields:
        return Constant(_bytes(fields, 6).decode())
    return Constant(_bytes(fields, 7).decode("latin-1") if 7 in fields else None)


def _name(data: bytes) -> Node:
    return Name(_text(_fields(data, 1), 1))


def _select(data: bytes) -> Node:
    fields = _fields(data, 1, 2, 3)
    return Select(_node(_bytes(fields, 1)), _text(fields, 2), bool(fields.get(3)))


def _call(data: bytes) -> Node:
    fields = _fields(data, 1, 2, 3)
    target = [_node(one) for one in _several(fields, 1)]
    return Call(_text(fields, 2), (*target, *(_node(one) for one in _several(fields, 3))))


def _listing(data: bytes) -> Node:
    return Listing(tuple(_node(one) for one in _several(_fields(data, 1), 1)))


def _mapping(data: bytes) -> Node:
    entries: list[tuple[Node, Node]] = []
    for one in _several(_fields(data, 2), 2):
        fields = _fields(one, 1, 3, 4)  # 1: its number
        entries.append((_node(_bytes(fields, 3)), _node(_bytes(fields, 4))))
    return Mapping(tuple(entries))


def _loop(data: bytes) -> Node:
    fields = _fields(data, 1, 2, 3, 4, 5, 6, 7)
    return Loop(
        variable=_text(fields, 1),
        range=_node(_bytes(fields, 2)),
        total=_text(fields, 3),
        initial=_node(_bytes(fields, 4)),
        condition=_node(_bytes(fields, 5)),
        step=_node(_bytes(fields, 6)),
        result=_node(_bytes(fields, 7)),
    )


_READERS = {3: _constant, 4: _name, 5: _select, 6: _call, 7: _listing, 8: _mapping, 9: _loop}


# The wire format ------------------------------------------------------------------------------------------------------


def _fields(data: bytes, *known: int) -> dict[int, list[Raw]]:
    found: dict[int, list[Raw]] = {}
    for number, value in _wire(data):
        if number not in known:
            raise UnknownSyntax(f"syntax that is not known here ({number})")
        found.setdefault(number, []).append(value)
    return found


def _bytes(fields: dict[int, list[Raw]], number: int) -> bytes:
    several = _several(fields, number)
    if len(several) != 1:
        raise UnknownSyntax(f"syntax that is not complete ({number})")
    return several[0]


def _several(fields: dict[int, list[Raw]], number: int) -> list[bytes]:
    return [value for value in fields.get(number, []) if isinstance(value, bytes)]


def _text(fields: dict[int, list[Raw]], number: int) -> str:
    return _bytes(fields, number).decode()


def _wire(data: bytes) -> Iterator[tuple[int, Raw]]:
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield number, value
        elif kind == _FIXED64:
            yield number, int.from_bytes(data[at : at + 8], "little")
            at += 8
        elif kind == _BYTES:
            size, at = _varint(data, at)
            yield number, data[at : at + size]
            at += size
        else:
            raise UnknownSyntax(f"syntax that is not known here (kind {kind})")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        shift, at = shift + 7, at + 1
        if byte < 128:
            return value, at
