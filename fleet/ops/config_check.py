"""Before a fleet starts: every config file is as it must be, or the start stops with file, line and reason."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fleet.billing.meters import read_customers
from fleet.billing.prices import PRICES_FILE, read_prices
from fleet.catalog import load_catalog
from fleet.config_files import read_config
from fleet.errors import FleetError
from fleet.ops.api import SERVE_FILE, serve_of
from fleet.ops.home import OpsError
from fleet.projects.plans import PLANS_FILE, plans_of
from fleet.region.nodes_config import NODES_FILE, nodes_of
from fleet.settings import FleetSettings


def check_configs(settings: FleetSettings) -> None:
    """`OpsError` names everything that is wrong. A fleet that runs already is lenient (`fleet/config_files.py`)."""
    wrong = [said for check in _checks(settings) if (said := _wrong(check)) is not None]
    if wrong:
        raise OpsError("\n".join([*wrong, "Mend it and try again."]), error="Bad configuration")


def _checks(settings: FleetSettings) -> list[Callable[[], object]]:
    def reads(path: Path, validate: Callable[[Any], object]) -> Callable[[], object]:
        return lambda: read_config(path, validate)

    checks: list[Callable[[], object]] = [
        lambda: read_prices(settings.prices_config or PRICES_FILE),
        reads(settings.plans_config or PLANS_FILE, plans_of),
        load_catalog,
        reads(settings.node_config or NODES_FILE, nodes_of),
        reads(settings.serve_config or SERVE_FILE, serve_of),
    ]
    customers = settings.stripe.customers
    return checks if customers is None else [*checks, lambda: read_customers(customers)]


def _wrong(check: Callable[[], object]) -> str | None:
    try:
        check()
    except FleetError as error:
        return error.detail
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return None
