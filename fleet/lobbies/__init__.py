"""Lobbies: players who wait and play together, and how they come to a server (docs/lobbies.md)."""
