"""Virtual time: replays demand through the production policies and through what others do.

`arrivals.py` reads recorded demand, `shapes.py` makes synthetic weeks, `replay.py` is the simulated pool, `ours.py`
asks the production policy, `baselines.py` has the others, `compare.py` puts them side by side, `show.py` shows.
"""
