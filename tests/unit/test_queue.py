"""Who waits for a node: players before pools, the oldest first, and nobody who fits is held up by one who does not."""

from fleet.region.placement import Demand
from fleet.region.queue import Queue
from fleet.store.tables import Server


def server(name: str, size: str = "small", at: int = 0, *, pool: bool = False) -> Server:
    times = {"created_at": at, "updated_at": at, "launched_at": at, "step_at": at}
    return Server(
        instance_id=name,
        project_id="p",
        region="us-east",
        name=name,
        status="launching",
        step="queued",
        compute_size=size,
        build_id="b",
        version_tag="default",
        is_pool_server=pool,
        **times,
    )


def demand(one: Server) -> Demand:
    pool = "p" if one.is_pool_server else None
    return Demand(one.instance_id, {"small": 1024, "large": 4096}[one.compute_size], pool=pool)


def test_players_come_before_pools_and_the_oldest_first() -> None:
    queue = Queue(demand, lambda one: one.step == "queued")
    for one in (server("pool", at=0, pool=True), server("a", at=1), server("b", "large", at=2), server("c", at=3)):
        queue.append(one)
    order: list[str] = []
    while (one := queue.take(lambda _: "n")) is not None:
        order.append(one.instance_id)
    assert order == ["a", "b", "c", "pool"]


def test_who_does_not_fit_holds_nobody_else_up() -> None:
    queue = Queue(demand, lambda one: one.step == "queued")
    for one in (server("big", "large", at=0), server("little", at=1)):
        queue.append(one)
    asked: list[int] = []

    def find(what: Demand) -> str | None:
        asked.append(what.memory_mb)
        return "n" if what.memory_mb <= 1024 else None

    first = queue.take(find)
    assert first is not None
    assert first.instance_id == "little"
    assert queue.take(find) is None
    assert [one.instance_id for one in queue.servers()] == ["big"]


def test_looking_for_room_asks_once_for_a_thousand_equals() -> None:
    queue = Queue(demand, lambda one: one.step == "queued")
    for number in range(1000):
        queue.append(server(f"s{number}", at=number))
    asked: list[Demand] = []
    assert queue.take(lambda what: asked.append(what)) is None  # type: ignore[func-returns-value]
    assert len(asked) == 1
    assert len(queue) == 1000


def test_who_was_stopped_meanwhile_is_passed_over() -> None:
    queue = Queue(demand, lambda one: one.step == "queued")
    gone, stays = server("gone"), server("stays", at=1)
    queue.append(gone)
    queue.append(stays)
    queue.append(stays)
    gone.step = "stopped"
    assert queue.take(lambda _: "n") is stays
    assert not queue
