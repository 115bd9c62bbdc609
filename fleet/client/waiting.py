"""What differs between the two clients: how they wait, and where blocking work on files is done."""

import asyncio
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

sleep_async = asyncio.sleep
sleep_sync = time.sleep
run_async = asyncio.to_thread


def run_sync(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    return work(*args, **kwargs)
