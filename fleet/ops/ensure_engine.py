"""Have a container engine for the tests: `python -m fleet.ops.ensure_engine`. Says so if there can be none."""

from fleet.ops.engine import ensure_engine
from fleet.ops.home import open_home
from fleet.settings import get_settings

if __name__ == "__main__":
    settings = get_settings()
    home = open_home(settings.home)
    if not ensure_engine(home, settings, lambda step: print(f"· {step}")):
        print("· Tests that need a container engine are skipped")
