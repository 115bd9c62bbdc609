"""What is asked when a start may be served by a warm server."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class ClaimCall:
    """A start that a warm server may serve. `op_id` makes it one effect however often it is sent; `request_id` is for
    the journal. `once`: others may send the same op and go cold with it meanwhile, so look for that too."""

    op_id: str
    project_id: str
    compute_size: str
    build_name: str
    spec: str
    name: str | None = None
    custom_data: dict[str, Any] | None = field(default=None, repr=False)
    match_id: str | None = None
    ttl: int | None = None
    auto_restart: bool = False
    request_id: str = ""
    once: bool = False
