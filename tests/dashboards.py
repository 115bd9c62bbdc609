"""The dashboards of configs/grafana: their panels' queries, as Prometheus gets them."""

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from tests.prometheus import CONFIGS

RATE_INTERVAL = "1m"


class Query(NamedTuple):
    dashboard: str
    panel: str
    expression: str


def dashboards() -> dict[str, dict[str, Any]]:
    return {file.name: json.loads(file.read_text()) for file in sorted((CONFIGS / "grafana").glob("*.json"))}


def queries() -> Iterator[Query]:
    """Each query of each panel and variable, with "All" chosen wherever there is a choice."""
    for name, dashboard in dashboards().items():
        for panel in dashboard["panels"]:
            for target in panel.get("targets", []):
                yield Query(name, panel["title"], chosen(target["expr"]))
        for variable in dashboard["templating"]["list"]:
            if variable["type"] == "query":
                metric, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["definition"]).groups()  # type: ignore[union-attr]
                yield Query(name, f"${variable['name']}", chosen(f"count by ({label}) ({metric})"))


def chosen(expression: str) -> str:
    expression = expression.replace("$__rate_interval", RATE_INTERVAL)
    return re.sub(r'"\$(region|size|build)"', '".*"', expression)
