"""Version 2 of the API, for clients that have not moved on: a thin translation onto the services of version 3.

The `face` gives every answer what version 2 promises, whichever layer it comes from; the routers name the paths and
fields. Nothing is decided here.
"""
