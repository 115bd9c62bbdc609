"""How often a key may ask. `windows.py` counts, `leases.py` counts from afar, `limiter.py` says who may how much."""
