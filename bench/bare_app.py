"""The same application as in the fleet, for bare uvicorn: reads only, so without region managers and housekeeping."""

from typing import cast

from fastapi import FastAPI

from fleet.builds.service import BuildService
from fleet.catalog import load_catalog
from fleet.servers.service import Regions
from fleet.settings import get_settings
from fleet.store.engine import Store
from serve_app.context import AppContext
from serve_app.http import create_app


def make() -> FastAPI:
    """For `uvicorn --factory bare_app:make`; FLEET_HOME says whose database."""
    settings = get_settings()
    store = Store(settings.database)
    builds = BuildService(store, settings)
    return create_app(AppContext.make(settings, store, load_catalog(), builds, cast(Regions, None)))
