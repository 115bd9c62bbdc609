"""The moment at which a pool server gets an owner."""

from fleet.pools.claim import ClaimCall
from fleet.region.books import Books
from fleet.store.tables import Server


def mark_claimed(books: Books, server: Server, call: ClaimCall, now: int) -> None:
    """The server belongs to the caller from now on: its row, and the journal's entry that usage is split at."""
    idle_ms = now - (server.started_at or now)
    books.change(
        server,
        now,
        name=call.name or server.name,
        custom_data=call.custom_data,
        match_id=call.match_id,
        ttl=call.ttl,
        auto_restart=call.auto_restart,
        pool_claimed_at=now,
        start_kind="hot",
        last_op=call.op_id,
    )
    books.note(server, now, "claimed", {"op": call.op_id, "idle_ms": idle_ms}, call.request_id)
