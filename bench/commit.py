"""Durable claims per second through a manager's books and group commit: `make bench-commit`. No Ray, no API.

A claim is what it is in the manager: nine columns of one server's row, and one entry of the journal. Batches of 100 are
what replicas send; "two under way" is how they send them. Beside it: the same batch by the session's door, statement
by statement, and a bare append with fsync of as many bytes, to know the disk.
"""

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from sqlalchemy import insert
from sqlmodel import col, select

from fleet.region.books import Books
from fleet.store import migrate
from fleet.store.commit import GroupCommit, row_values, take_epoch
from fleet.store.engine import Store
from fleet.store.tables import Project, Server
from fleet.telemetry.logs import setup_logging

REGION, BATCH = "benchmark", 100
Figures = dict[str, Any]


def _row(number: int) -> dict[str, Any]:
    port = {"name": "game", "internal_port": 7777, "protocol": "udp", "tls_enabled": False}
    return row_values(
        Server(
            instance_id=f"{number:08d}-0000-4000-8000-000000000000",
            project_id="p",
            region=REGION,
            name="pool",
            status="running",
            step="running",
            compute_size="small",
            build_id="b",
            version_tag="default",
            is_pool_server=True,
            environment={"MODE": "duel"},
            port_configs=[port],
            network_ports=[{**port, "external_port": 20000, "host": "127.0.0.1"}],
            created_at=1,
            updated_at=1,
            launched_at=1,
            step_at=1,
        )
    )


@asynccontextmanager
async def region(folder: Path, servers: int) -> AsyncIterator[tuple[Books, GroupCommit, Store]]:
    """Books and commits of a region with that many warm servers."""
    url = f"sqlite+aiosqlite:///{folder / 'fleet.db'}"
    await asyncio.to_thread(migrate.upgrade, url)
    store = Store(url)
    async with store.write_connection() as connection:
        await connection.execute(insert(Project), [{"id": "p", "name": "p", "created_at": 1, "updated_at": 1}])
        await connection.execute(insert(Server), [_row(number) for number in range(servers)])
    books = Books()
    async with store.read() as session:
        books.load(list((await session.exec(select(Server).where(col(Server.region) == REGION))).all()))

    def fatal(error: BaseException) -> None:
        raise SystemExit(f"commit failed: {error!r}")

    commits = GroupCommit(store, REGION, await take_epoch(store, REGION), fatal)
    try:
        yield books, commits, store
    finally:
        await commits.close()
        await store.close()


def claim(books: Books, servers: list[Server], at: int) -> None:
    """The changes that `fleet/region/pool_keeper.py` makes."""
    for server in servers:
        op = f"op-{server.instance_id}"
        books.change(
            server,
            at,
            pool_claimed_at=at,
            start_kind="hot",
            name="match",
            custom_data={"mode": "duel", "map": "dust", "players": ["alice", "bob"]},
            match_id=op,
            ttl=3600,
            auto_restart=False,
            last_op=op,
        )
        books.note(server, at, "claimed", {"op": op})


async def claims(books: Books, commits: GroupCommit, rounds: int, under_way: int) -> Figures:
    """Batches of 100 over all servers, `rounds` times; each batch is awaited, `under_way` of them at once."""
    servers = list(books.live.values())
    batches = [servers[n : n + BATCH] for n in range(0, len(servers), BATCH)] * rounds
    took: list[float] = []
    waiting = iter(enumerate(batches, 2))

    async def replica() -> None:
        for at, batch in waiting:
            begun = time.perf_counter()
            claim(books, batch, at)
            await commits.submit(books.take().statements)
            took.append(time.perf_counter() - begun)

    commits_before, begun, cpu = commits.batches, time.perf_counter(), time.process_time()
    await asyncio.gather(*(replica() for _ in range(under_way)))
    seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
    done = sum(map(len, batches))
    took.sort()
    return {
        "claims_per_s": round(done / seconds),
        "batch_p50_ms": round(took[len(took) // 2] * 1000, 2),
        "batch_p99_ms": round(took[int(len(took) * 0.99)] * 1000, 2),
        "cpu_us_per_claim": round(cpu / done * 1e6, 1),
        "claims_per_commit": round(done / (commits.batches - commits_before)),
    }


async def one_by_one(store: Store, books: Books) -> Figures:
    """The same batch as the session writes it: a hop for each statement."""
    servers = list(books.live.values())[: BATCH * 10]
    begun = time.perf_counter()
    for n in range(0, len(servers), BATCH):
        async with store.write() as session:
            for server in servers[n : n + BATCH]:
                row = await session.get(Server, server.instance_id)
                assert row is not None
                row.match_id = "again"
    return {"claims_per_s": round(len(servers) / (time.perf_counter() - begun))}


async def disk(folder: Path) -> Figures:
    """An append of a batch's bytes (about 100 KB of write-ahead log) with fsync."""
    took, block = [], os.urandom(100_000)
    with (folder / "append").open("wb") as file:
        for _ in range(100):
            begun = time.perf_counter()
            file.write(block)
            file.flush()
            os.fdatasync(file.fileno())
            took.append(time.perf_counter() - begun)
    return {"batch_p50_ms": round(statistics.median(took) * 1000, 2)}


async def run(folder: Path, servers: int, rounds: int) -> dict[str, Figures]:
    setup_logging("bench", folder)
    async with region(folder, servers) as (books, commits, store):
        cases: dict[str, Callable[[], Awaitable[Figures]]] = {
            "batches of 100, one under way": lambda: claims(books, commits, rounds, 1),
            "batches of 100, two under way": lambda: claims(books, commits, rounds, 2),
            "batches of 100, eight under way": lambda: claims(books, commits, rounds, 8),
            "one statement a hop": lambda: one_by_one(store, books),
            "bare append + fsync": lambda: disk(folder),
        }
        return {name: await case() for name, case in cases.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--servers", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path.cwd(), help="on the disk to measure")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=arguments.folder) as folder:
        figures = asyncio.run(run(Path(folder), arguments.servers, arguments.rounds))
    names = list(figures["batches of 100, one under way"])
    table = Table("commit", *names)
    for name, row in figures.items():
        table.add_row(name, *(str(row.get(key, "")) for key in names))
    Console(width=140).print(table)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
