"""How a region comes to its agents, while Ray's head fails or changes under its hands."""

import asyncio
from typing import Any

import pytest
import ray
import ray.util

from fleet.node.model import Hello, NodeShare
from fleet.region.agents import AskedAgent, RayAgents

SHARE = NodeShare(4096, 4.0, 20_000, 20_100, "127.0.0.1", "127.0.0.1")


def agents() -> RayAgents:
    return RayAgents("us-east", {}, {}, None)  # type: ignore[arg-type]


def test_an_agent_that_ends_while_they_are_listed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The manager's start must not fail with it."""
    names = ["agent:us-east:shared:1", "agent:us-east:shared:2", "agent:eu-west:shared:3"]
    listed = [{"name": name, "namespace": "fleet"} for name in names]

    def get(name: str, namespace: str) -> str:
        if name.endswith("1"):
            raise ValueError(f"Failed to look up actor with name '{name}' in {namespace}.")
        return name

    monkeypatch.setattr(ray.util, "list_named_actors", lambda all_namespaces: listed)
    monkeypatch.setattr(ray, "get_actor", get)
    assert agents().known() == {"agent:us-east:shared:2": "agent:us-east:shared:2"}


@pytest.mark.parametrize(("reason", "gone"), [(0, False), (1, False), (2, False), (3, True), (4, True)])
def test_only_the_autoscaler_knows_that_a_machine_is_gone(
    monkeypatch: pytest.MonkeyPatch, reason: int, gone: bool
) -> None:
    """A raylet that ended, or was killed, says nothing of the games beside it."""
    nodes = [{"NodeID": "one", "Alive": False, "DeathReason": reason}, {"NodeID": "two", "Alive": True}]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    hello = Hello("boot", 0, "us-east@a", "h", SHARE, "process", (), "one")
    assert agents().dead(hello) is gone


class Handle:
    def __init__(self) -> None:
        self.heard: list[str] = []

    def __getattr__(self, method: str) -> Any:
        heard = self.heard

        class Method:
            @staticmethod
            async def remote(*arguments: Any) -> Any:
                heard.append(method)
                return arguments

        return Method


async def test_an_agent_is_asked_for_until_ray_takes_the_order() -> None:
    """Asking blocks nobody; the first call does it, once, and fails as long as Ray's head does."""
    made: list[Handle] = []
    refuse = [ConnectionError("GCS does not answer")]

    def make() -> Handle:
        if refuse:
            raise refuse.pop()
        made.append(Handle())
        return made[-1]

    asked = AskedAgent(make)
    with pytest.raises(ConnectionError):
        await asked.hello.remote(1)
    assert await asyncio.gather(asked.hello.remote(1), asked.poll.remote(2)) == [(1,), (2,)]
    assert await asked.hello.remote(3) == (3,)
    assert len(made) == 1
    assert sorted(made[0].heard) == ["hello", "hello", "poll"]
