"""The client for asyncio; the other one is made of it (scripts/make_client.py)."""
