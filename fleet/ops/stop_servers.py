"""Stops every game server through the managers, so that the database tells why: `python -m fleet.ops.stop_servers`.

A process of its own, so that the caller can bound the time even if the cluster hangs.
"""

from fleet.admin import Fleet

if __name__ == "__main__":
    Fleet("auto").stop_all(reason="fleet_down")
