"""Two projects with real things in them, and what a call of each route needs to be a good one.

A new route whose parameters have names that are not known here, or whose body cannot be empty, needs a line in `BODIES`
or `QUERY`; the matrix says so.
"""

import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import jwt
from fastapi.routing import APIRoute, iter_route_contexts
from sqlalchemy import update
from sqlmodel import col

from fleet.store.tables import ApiKey
from serve_app import http
from serve_app.policy import Caller, may_call
from serve_app.v2.document import openapi
from tests import games
from tests.unit.api_kit import Api
from tests.unit.test_api_lobbies import until

SECRET = "a-secret-of-the-studio-that-is-long-enough"
MARK = "owners-own-mark"
CONFIG, QUEUE, VIC, PAL = "arena", "ranked", "vic", "pal"
MODES = {
    "duel": {"teams": 2, "playersPerTeam": 1, "timeout": 60},
    "pairs": {"teams": 2, "playersPerTeam": 2, "timeout": 60},
}
LEGACY_LOBBY = {
    "name": MARK, "maxPlayers": 2, "isPrivate": False, "useInviteCode": True, "allowLateJoin": True,
    "region": "us-east", "settings": {}, "host": VIC,
}  # fmt: skip
TICKET = {"matchmaker_name": QUEUE, "player_id": VIC, "elo": 1000, "regions": ["us-east"]}
POOLS = {"enabled": True, "regions": {"us-east": {"small": 1}}, "policy": {"mode": "fixed"}}


@dataclass(frozen=True)
class Operation:
    """One method of one path in one of our documents."""

    method: str
    path: str
    name: str
    said: dict[str, Any]
    caller: Caller

    @property
    def legacy(self) -> bool:
        return self.path.startswith("/api/v2")

    @property
    def takes_ids(self) -> bool:
        """Whether its path names something that is one project's."""
        return any("{" + name + "}" in self.path for name in IDS)

    def needs(self) -> list[dict[str, Any]]:
        return [one for one in self.said.get("parameters", []) if one.get("required") and one["in"] != "path"]


def operations() -> list[Operation]:
    """Every operation of the documents at /api/doc and /api/v2/doc."""
    routes = {
        (method, found.path_format): found.original_route
        for found in iter_route_contexts(http._api.routes)
        if isinstance(found.original_route, APIRoute)
        for method in found.methods or ()
    }
    return [
        Operation(method.upper(), path, said["operationId"], said, _said(routes[method.upper(), path]))
        for document in (http.document(), openapi())
        for path, methods in document["paths"].items()
        for method, said in methods.items()
    ]


def _said(route: APIRoute) -> Caller:
    found = may_call(route)
    assert found is not None, route.endpoint.__name__
    return found


# Names of path parameters that are one project's things.
IDS = (
    "instance_id",
    "build_id",
    "build",
    "webhook_id",
    "delivery_id",
    "lobby_id",
    "playerId",
    "code",
    "id",
    "secret_name",
)

QUERY = {
    "start_time": "-1h",
    "name": CONFIG,
    "matchmaker_name": QUEUE,
    "matchmaker_id": "m1",
    "requesterId": VIC,
    "player-id": VIC,
    "lobby-config": CONFIG,
    "expires": "9999999999",
    "signature": "0" * 64,
    "timeout": "0.2",
}
SENT = ("matchmaker_name", "lobby-config")  # these too, though they have a default
HEADERS = {"x-player-id": VIC, "X-Server-Status": "running"}


@dataclass
class World:
    """The first project owns all; the second one has nothing of it but the same settings."""

    api: Api
    admin_key: str
    old_keys: dict[str, str] = field(default_factory=dict[str, str])
    ids: dict[str, str] = field(default_factory=dict[str, str])
    third: str = ""
    match_ids: dict[str, str] = field(default_factory=dict[str, str])

    @classmethod
    async def make(cls, api: Api) -> "World":
        world = cls(api, api.app.state.context.admin_keys.rotate(0))
        await world._age_keys()
        auth = {"provider": "custom_jwt", "secret": SECRET}
        configs = [{"name": name, "timeout": 120, "matchmaking": {"modes": MODES}} for name in (CONFIG, QUEUE)]
        mine = {"lobby_configs": configs, "environment_variables": {"MARK": MARK}}
        await world.own("POST", "/api/v3/projects/settings", json=mine | {"auth_config": auth})
        theirs = {"lobby_configs": configs}
        answer = await api.call("POST", "/api/v3/projects/settings", key=api.other.server_key, json=theirs)
        assert answer.status_code == 200, answer.text
        await world._match()
        await world.stock()
        return world

    async def _age_keys(self) -> None:
        """The first keys are rotated away at once, or live on and expire."""
        projects, project_id = self.api.app.state.context.projects, self.api.project.project_id
        first = {"server": self.api.project.server_key, "client": self.api.project.client_key}
        second = {kind: await projects.rotate(project_id, kind, 0) for kind in ("server", "client")}
        third = {kind: await projects.rotate(project_id, kind, 3600) for kind in ("server", "client")}
        async with self.api.store.write() as session:
            late = col(ApiKey.expires_at).is_not(None)
            await session.exec(update(ApiKey).where(late).values(expires_at=1))
        projects.forget()
        self.api.project = replace(self.api.project, server_key=third["server"], client_key=third["client"])
        self.old_keys = {f"rotated {kind} key": key for kind, key in first.items()}
        self.old_keys |= {f"expired {kind} key": key for kind, key in second.items()}

    async def own(self, method: str, path: str, player: str = VIC, expect: int = 0, **said: Any) -> Any:
        answer = await self.api.call(method, path, headers={"x-player-id": player}, **said)
        assert answer.status_code == expect or (not expect and answer.status_code < 300), f"{path}: {answer.text}"
        return answer.json() if answer.content else None

    async def _match(self) -> None:
        for player in ("mia", "max"):
            await self.own("POST", "/api/v2/matchmaker/tickets", json=TICKET | {"player_id": player})
        found = await until(self.api, "mia", config=QUEUE, status="in_game")
        self.match_ids["match"] = found["matchId"]

    async def stock(self) -> None:
        """Everything that a path may name."""
        self.ids = {"config": CONFIG, "region": "us-east", "size": "small", "kind": "client", "playerId": PAL}
        self.ids["project_id"] = self.api.project.project_id
        for fill in self.filling.values():
            await fill()

    async def restock(self, operation: Operation) -> None:
        """What a call before has ended is there again, and is another."""
        for part, fill in self.filling.items():
            if part in operation.path:
                await fill()

    @property
    def filling(self) -> dict[str, Callable[[], Awaitable[None]]]:
        """By a part of the paths that need it."""
        return {
            "/servers": self._server,
            "/builds": self._build,
            "/webhooks": self._webhook,
            "/lobbies": self._lobby,
            "/tickets": self._ticket,
            "/admin/": self._project,
            "/budget": self._budget,
            "/secrets": self._secret,
        }

    async def _server(self) -> None:
        self.ids["instance_id"] = (await self.api.running(name=MARK, custom_data={"mark": MARK}))["instance_id"]

    async def _build(self) -> None:
        build = await self.api.add_build(name=f"{MARK}-{secrets.token_hex(4)}")
        self.ids |= {"build_id": build.build_id, "build": build.build_id}
        self.build_name = build.name

    async def _webhook(self) -> None:
        for hook in (await self.own("GET", "/api/v3/webhooks"))["webhooks"]:
            await self.own("DELETE", f"/api/v3/webhooks/{hook['id']}")
        hook = await self.own("POST", "/api/v3/webhooks", json={"url": f"https://hooks.example/{MARK}"})
        sent = await self.own("POST", f"/api/v3/webhooks/{hook['id']}/test")
        self.ids |= {"webhook_id": hook["id"], "delivery_id": str(sent["id"])}

    async def _lobby(self) -> None:
        lobbies = f"/api/v3/lobbies/{CONFIG}"
        lobby = await self.own("POST", lobbies, json={"name": MARK, "maxPlayers": 4, "forceFresh": True})
        await self.api.call("DELETE", f"{lobbies}/me", headers={"x-player-id": PAL})
        await self.own("POST", f"{lobbies}/join", PAL, json={"lobbyId": lobby["id"]})
        self.ids |= {"lobby_id": lobby["id"], "code": lobby["code"]}

    async def _ticket(self) -> None:
        await self.api.call("DELETE", f"/api/v3/lobbies/{QUEUE}/me", headers={"x-player-id": VIC})
        ticket = await self.own("POST", "/api/v2/matchmaker/tickets", json=TICKET)
        self.match_ids["ticket"] = ticket["ticket_id"]

    async def _project(self) -> None:
        admin = {"admin-key": self.admin_key}
        made = await self.api.client.post("/api/admin/v1/projects", headers=admin, json={"name": "x"})
        self.third = made.json()["project_id"]

    async def _secret(self) -> None:
        name = f"OWNERS_{secrets.token_hex(4)}"
        await self.own("PUT", f"/api/v3/projects/secrets/{name}", json={"value": MARK})
        self.ids["secret_name"] = name
        await self.own("GET", "/api/v3/projects/secrets")

    async def _budget(self) -> None:
        await self.own("PUT", "/api/v3/projects/budget", json={"monthly_limit": 1000})

    def path(self, operation: Operation, *, third: bool) -> str:
        """With real ids; `third`: an admin's call is about a project that may go."""
        ids = self.ids | ({"project_id": self.third} if third else {})
        kind = next((kind for kind in ("ticket", "match") if f"/{kind}" in operation.path), None)
        ids["id"] = self.match_ids[kind] if kind else self.ids["lobby_id"]
        if operation.name == "put_secret":  # a name that the caller chooses, of a secret of its own
            ids["secret_name"] = "CHOSEN"
        path = operation.path
        for name, value in ids.items():
            path = path.replace("{" + name + "}", value)
        assert "{" not in path, f"{operation.path}: give World.ids a real id for it"
        return path

    def said(self, operation: Operation) -> dict[str, Any]:
        """Query, headers and body of a good call, as keyword arguments of `Api.call`."""
        query: dict[str, str] = {}
        headers: dict[str, str] = {}
        for one in operation.needs():
            known = HEADERS if one["in"] == "header" else QUERY
            assert one["name"] in known, f"{operation.path}: give QUERY or HEADERS a good {one['name']}"
            (headers if one["in"] == "header" else query)[one["name"]] = known[one["name"]]
        if operation.path.endswith("/events") and "{instance_id}" not in operation.path:
            query["timeout"] = QUERY["timeout"]
        query |= {
            one["name"]: QUERY[one["name"]] for one in operation.said.get("parameters", []) if one["name"] in SENT
        }
        if operation.name == "process_build":
            query["name"] = self.build_name
        said: dict[str, Any] = {"params": query, "headers": headers}
        body = self.bodies().get(operation.name)
        if body is not None:
            said["json"] = body
        elif operation.name == "legacy_upload":
            said |= {"files": {"file": ("game.zip", games.demo_zip())}, "data": {"name": "up"}}
        elif operation.name == "upload":
            said["content"] = b"PK"
        return said

    def bodies(self) -> dict[str, Any]:
        start = {"name": "started", "region": "us-east"}
        image = {"image_url": "registry.example.com/game:1", "name": f"i-{secrets.token_hex(4)}"}
        return {
            "start_server": start,
            "claim_server": start,
            "update_server": {"custom_data": {"a": 1}},
            "restart_server": {},
            "change_settings": {"port_configs": []},
            "docker_image": image,
            "put_secret": {"value": MARK},
            "put_budget": {"monthly_limit": 10},
            "create_webhook": {"url": "https://hooks.example/more"},
            "change_webhook": {"enabled": True},
            "create_lobby": {"name": "mine", "forceFresh": True},
            "join_lobby": {"lobbyId": self.ids["lobby_id"]},
            "set_my_state": {"state": {}},
            "change_lobby": {"maxPlayers": 3},
            "start_matchmaking": {"mode": "pairs"},
            "create_project": {"name": "new"},
            "change_project": {"name": "renamed"},
            "storage_hook": {},
            "legacy_start_server": start,
            "legacy_restart_server": {},
            "legacy_create_lobby": LEGACY_LOBBY,
            "legacy_update_lobby": {"requesterId": VIC, "playerState": {}},
            "legacy_delete_lobby": {"playerId": VIC},
            "legacy_join_by_code": {"playerId": VIC},
            "legacy_join_lobby": {"playerId": VIC},
            "legacy_heartbeat": {"playerId": VIC},
            "legacy_create_ticket": TICKET,
        }

    def secrets_of_mine(self) -> Iterator[str]:
        """What only the owner may ever read."""
        yield MARK
        yield self.api.project.project_id
        yield from (
            self.ids[name] for name in ("instance_id", "build_id", "webhook_id", "lobby_id", "code", "secret_name")
        )
        yield from self.match_ids.values()


def token(player: str) -> str:
    return jwt.encode({"sub": player, "exp": int(time.time()) + 600}, SECRET, "HS256")
