"""A socket in front of the real container engine that can go away: refuse, hang, or cut what is under way.

The engine itself goes on, so nothing else on the machine notices. For a whole fleet it runs as a process of its own
(`python -m tests.engine_proxy <path>`), which takes the methods' names, one a line, on its standard input.
"""

import asyncio
import contextlib
import inspect
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fleet.node.engine import DEFAULT_SOCKET
from fleet.node.listening import stop_accepting


class EngineProxy:
    """`path`: where it listens, for `DockerRuntime(place, socket=…)`. At most 107 bytes long, as sockets are."""

    def __init__(self, path: Path, engine: str = DEFAULT_SOCKET) -> None:
        self.path, self._engine = path, engine
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._flows = asyncio.Event()
        self._flows.set()
        self.asked = 0

    async def back(self) -> None:
        """The engine answers; what hung goes on."""
        self._flows.set()
        if self._server is None:
            self._server = await asyncio.start_unix_server(self._serve, self.path)

    def hang(self) -> None:
        """It takes connections and says nothing, neither to them nor to those that are open."""
        self._flows.clear()

    async def away(self) -> None:
        """Nobody listens, and what was open is cut."""
        if self._server is not None:
            await stop_accepting(self._server)
            self._server = None
            self.path.unlink(missing_ok=True)
        self.cut()

    def cut(self) -> None:
        """Break what is under way; new connections are served."""
        for writer in list(self._open):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked += 1
        self._open.add(writer)
        try:
            there_reader, there_writer = await asyncio.open_unix_connection(self._engine)
            self._open.add(there_writer)
            await asyncio.gather(self._pump(reader, there_writer), self._pump(there_reader, writer))
        except OSError:
            return
        finally:
            for one in (writer, there_writer) if "there_writer" in locals() else (writer,):
                self._open.discard(one)
                one.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            await self._flows.wait()
            writer.write(data)
            await writer.drain()
        with contextlib.suppress(OSError):
            writer.write_eof()


@asynccontextmanager
async def engine_proxy(folder: Path) -> AsyncIterator[EngineProxy]:
    proxy = EngineProxy(folder / "e.sock")
    await proxy.back()
    try:
        yield proxy
    finally:
        await proxy.back()
        await proxy.away()


class ProxyProcess:
    """The same in a process of its own. `order` returns once it is so."""

    def __init__(self, path: Path) -> None:
        self.path = path
        command = [sys.executable, "-m", "tests.engine_proxy", str(path)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.order("back")

    def order(self, name: str) -> None:
        """`back`, `hang`, `away` or `cut`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{name}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline().strip() == name

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


async def _main(path: Path) -> None:
    proxy = EngineProxy(path)
    while name := (await asyncio.to_thread(sys.stdin.readline)).strip():
        done = getattr(proxy, name)()
        if inspect.isawaitable(done):
            await done
        print(name, flush=True)


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1])))
