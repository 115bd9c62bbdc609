"""The HTTP face of the fleet: a Ray Serve application that turns requests into calls of the fleet's services."""
