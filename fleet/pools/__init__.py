"""Warm pools: servers that already run when a player asks for one.

`config.py` what a project wishes, `shelf.py` what stands ready, `plan.py` what to order and retire, `stock.py` how much
to keep. All of it is pure or in memory; `fleet.region.pool_keeper` is the shell around it inside the manager.
"""
