"""Players: whether somebody is the player that they say (docs/lobbies-api.md)."""
