"""Calls into Ray that may block (to its head, for one) from processes with an event loop: off the loop, with an end.

They have threads of their own. A head that hangs fills these, and then such calls are refused at once; everything else
that goes to threads (uploads, disks, the database) goes on.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import structlog

from fleet.errors import Unavailable

log = structlog.get_logger(__name__)
Found = TypeVar("Found")

RAY_CALL_S = 10.0
_THREADS = 8

_threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="ray-call")


async def ray_call(what: str, work: Callable[[], Found], limit_s: float = RAY_CALL_S) -> Found:
    """What `work` gives. `Unavailable` after `limit_s`; the call itself may yet go on in its thread."""
    try:
        async with asyncio.timeout(limit_s):
            return await asyncio.get_running_loop().run_in_executor(_threads, work)
    except TimeoutError:
        log.warning("ray_does_not_answer", call=what, limit_s=limit_s)
        raise Unavailable(f"The fleet's cluster does not answer now ({what}). Try again.") from None
