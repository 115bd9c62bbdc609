"""An asyncio loop in virtual time, whose tasks and timers belong to processes that can be killed or stopped.

The clock jumps to the next timer whenever nothing is runnable, so an hour costs what happens in it. Executors run
inline. What a process has begun, and what that began, carries the process in its context: killed, none of it ever runs
again, not even a `finally`, as after kill -9; stopped, it waits until it is continued, as after SIGSTOP.
"""

import asyncio
import contextlib
import heapq
import os
import random
import selectors
import time
from asyncio import events
from collections.abc import Callable, Generator
from contextvars import Context, ContextVar, copy_context
from itertools import count
from typing import Any
from unittest import mock

WALL_S = 1_790_000_000.0  # some day in 2026


class Clock:
    """Seconds. `now` never jumps; the wall clock may be stepped."""

    def __init__(self) -> None:
        self.now = 0.0
        self.wall_offset = WALL_S

    def wall(self) -> float:
        return self.now + self.wall_offset

    def wall_ns(self) -> int:
        return int(self.wall() * 1e9)

    def steady(self) -> float:
        return self.now + 1000.0

    def steady_ns(self) -> int:
        return int(self.steady() * 1e9)


class Exited(BaseException):
    """The process that ran this has ended itself (`os._exit`)."""


class Process:
    """What lives and dies together. `exited` is called once it has ended by itself."""

    def __init__(self, name: str, loop: "VirtualLoop") -> None:
        self.name = name
        self._loop = loop
        self.dead = self.stopped = False
        self.held: list[events.Handle] = []
        self.steps_left: int | None = None  # it is killed after so many
        self.on_end: list[Callable[[], None]] = []

    def kill(self) -> None:
        if not self.dead:
            self.dead = True
            self.held.clear()
            for end in self.on_end:
                end()

    def stop(self) -> None:
        self.stopped = True

    def go_on(self) -> None:
        self.stopped = False
        held, self.held = self.held, []
        if not self.dead:
            self._loop._ready.extend(held)  # type: ignore[attr-defined]

    def context(self) -> Context:
        """For what this process does first."""
        context = Context()
        context.run(PROCESS.set, self)
        return context

    def admits(self, handle: events.Handle) -> bool:
        """Whether it may take another step; one that stands still takes it later."""
        if self.dead:
            return False
        if self.stopped:
            self.held.append(handle)
            return False
        if self.steps_left is not None:
            self.steps_left -= 1
            if self.steps_left < 0:
                self.kill()
                return False
        return True


PROCESS: ContextVar[Process | None] = ContextVar("process", default=None)


def nobodys_context() -> Context:
    """For what outlives whoever begins it."""
    context = Context()
    context.run(PROCESS.set, None)
    return context


class _Owned:
    def _run(self) -> None:
        process = self._context.get(PROCESS)  # type: ignore[attr-defined]
        if process is None or process.admits(self):  # type: ignore[arg-type]
            super()._run()  # type: ignore[misc]


class _Handle(_Owned, events.Handle): ...


class _Timer(_Owned, events.TimerHandle): ...


_numbers = count()


class _Task(asyncio.Task):  # type: ignore[type-arg]
    """Sets of tasks are walked in the order in which the tasks began, whatever their addresses."""

    def __init__(self, *args: Any, **named: Any) -> None:
        self._number = next(_numbers)
        context: Context | None = named.get("context")
        self.process = PROCESS.get() if context is None else context.get(PROCESS)
        super().__init__(*args, **named)
        self._log_destroy_pending = False  # those of a killed process never end

    def __hash__(self) -> int:
        return self._number


class _Future(asyncio.Future):  # type: ignore[type-arg]
    def __init__(self, *args: Any, **named: Any) -> None:
        self._number = next(_numbers)
        super().__init__(*args, **named)

    def __hash__(self) -> int:
        return self._number


class Deadlock(Exception):
    """Nothing is runnable, and no timer will change that."""


class _Jump(selectors.SelectSelector):
    """Waits by moving the clock. No file descriptor is ever ready."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise Deadlock
        self._clock.now += max(0.0, timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self, clock: Clock, chance: random.Random) -> None:
        super().__init__(_Jump(clock))
        self.clock, self._chance = clock, chance
        self._clock_resolution = 1e-6
        self.errors: list[dict[str, Any]] = []
        self.set_task_factory(_begin)
        self.set_exception_handler(lambda _loop, context: self.errors.append(context))

    def time(self) -> float:
        return self.clock.now

    def create_future(self) -> Any:
        return _Future(loop=self)

    def _call_soon(self, callback: Any, args: Any, context: Context | None) -> events.Handle:
        handle = _Handle(callback, args, self, copy_context() if context is None else context)
        self._ready.append(handle)  # type: ignore[attr-defined]
        return handle

    def call_at(self, when: float, callback: Any, *args: Any, context: Context | None = None) -> events.TimerHandle:
        timer = _Timer(when, callback, args, self, copy_context() if context is None else context)
        heapq.heappush(self._scheduled, timer)  # type: ignore[attr-defined]
        timer._scheduled = True
        return timer

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:
        """Done a moment later, by the same process."""
        future = self.create_future()

        def run() -> None:
            if future.cancelled():
                return
            try:
                result = func(*args)
            except Exception as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        self.call_later(self._chance.uniform(0, 0.002), run)
        return future


def _begin(loop: Any, coro: Any, context: Context | None = None) -> Any:
    """A task is of the process that begins it, also where it is given a context that names none."""
    if context is not None and PROCESS not in context:
        context.run(PROCESS.set, PROCESS.get())
    return _Task(coro, loop=loop, context=context)


def _exit(_code: int) -> None:
    process = PROCESS.get()
    assert process is not None, "only simulated processes may exit"
    process.kill()
    raise Exited


@contextlib.contextmanager
def virtual(clock: Clock, seed: int) -> Generator[None]:
    """Time and chance of this process are the simulation's."""
    entropy = random.Random(f"entropy/{seed}")
    random.seed(seed)
    with contextlib.ExitStack() as stack:
        for name, value in {
            "time": clock.wall,
            "time_ns": clock.wall_ns,
            "monotonic": clock.steady,
            "monotonic_ns": clock.steady_ns,
            "perf_counter": clock.steady,
        }.items():
            stack.enter_context(mock.patch.object(time, name, value))
        stack.enter_context(mock.patch.object(os, "urandom", entropy.randbytes))
        stack.enter_context(mock.patch.object(random, "_urandom", entropy.randbytes))
        stack.enter_context(mock.patch.object(os, "_exit", _exit))
        yield
