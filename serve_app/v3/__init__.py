"""Version 3 of the API: a router and its schemas per noun."""
