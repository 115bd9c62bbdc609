"""One reader's way through the journals: what it missed, then what comes, nothing twice and nothing left out."""

import asyncio
from collections.abc import AsyncGenerator

from fleet.events.model import Cursor, Event
from fleet.events.read import backlog
from fleet.events.tail import Tail
from fleet.store.engine import Store


async def follow(
    store: Store, tail: Tail, project_id: str, after: Cursor | None, most_s: float
) -> AsyncGenerator[tuple[Event | None, Cursor]]:
    """Events of the project after a position, or from now on, each with the position after it.

    First comes (None, where it begins). It ends when the reader was too slow for what comes, or with a `TimeoutError`
    after `most_s` seconds, wherever it is then.
    """
    until = asyncio.get_running_loop().time() + most_s
    cursor, begun = after, False
    while True:
        place = tail.subscribe(project_id)
        try:
            async with asyncio.timeout_at(until):
                live = await place.live_from
            cursor = live if cursor is None else cursor
            if not begun:
                begun = True
                yield None, cursor
            async for event, at in backlog(store, project_id, cursor, live):
                cursor = at
                yield event, at
            cursor = cursor.joined(live)
            caught_up = not place.full  # if not, more came meanwhile than fits: that is a backlog again
            while events := await place.take(until):
                for event in events:
                    if not cursor.covers(event):
                        cursor = cursor.past(event)
                        yield event, cursor
        finally:
            tail.leave(place)
        if caught_up:
            return
