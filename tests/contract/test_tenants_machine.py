"""Two projects on one fleet, each with whatever ids it can get hold of: nothing of the other's is shown or changed.

Every operation that the API's own description names is called with every kind of id, so an operation that is added is
called too.
"""

import asyncio
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from fleet.projects.model import NewProject
from fleet.projects.scope import owned
from fleet.store import tables
from fleet.store.commit import row_values
from tests.unit.api_kit import Api, open_api

TENANT_TABLES = [
    table
    for table in vars(tables).values()
    if isinstance(table, type) and "project_id" in getattr(table, "model_fields", {}) and table.__name__ != "AdminEvent"
]
MARKS = ("alpha-mark", "beta-mark")
# Operations without an end, or that are no project's.
LEFT_OUT = ("/api/v3/events", "/api/admin/", "/metrics", "/api/doc", "/api/reference", "/upload/")


BODIES: dict[str, Callable[[str], dict[str, Any] | None]] = {
    "none": lambda _: None,
    "empty": lambda _: {},
    "start": lambda mark: {"name": mark, "region": "us-east", "match_id": f"{mark}-0"},
    "another": lambda mark: {"name": mark, "region": "eu-west"},
    "settings": lambda mark: {"port_configs": [], "environment_variables": {"SECRET": mark}},
    "data": lambda mark: {"custom_data": {"mark": mark}},
}


class Tenants(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.runner = asyncio.Runner()
        self.api: Api = self.run(open_api(Path(self.folder.name)))
        document = self.run(self.api.call("GET", "/api/doc")).json()
        named = [(method.upper(), path) for path, methods in document["paths"].items() for method in methods]
        old = [("GET", "/api/v2/servers/{id}"), ("DELETE", "/v2/servers/{id}"), ("GET", "/v2/builds/builds")]
        self.operations = sorted(one for one in named if not one[1].startswith(LEFT_OUT)) + old
        self.projects: tuple[NewProject, NewProject] = (self.api.project, self.api.other)
        self.ids: list[list[str]] = [[], []]

    def run(self, work: Any) -> Any:
        return self.runner.run(work)

    def teardown(self) -> None:
        self.run(self.api.close())
        self.runner.close()
        self.folder.cleanup()

    @initialize()
    def both_have_something(self) -> None:
        for who, project in enumerate(self.projects):
            mark = MARKS[who]
            body = {"environment_variables": {"SECRET": mark}, "unique_match": True}
            self.call(who, "POST", "/api/v3/projects/settings", body)
            for number in range(2):
                body = {"name": f"{mark}-{number}", "region": "us-east", "match_id": f"{mark}-{number}"}
                server = self.call(who, "POST", "/api/v3/servers/start", body).json()
                self.ids[who].append(server["instance_id"])
            rows = self.run(self.rows(project))
            self.ids[who] += [row["build_id"] for row in rows["Build"]]
            hook = {"url": "https://hooks.example/x", "description": mark}
            made = self.call(who, "POST", "/api/v3/webhooks", hook)
            if made.status_code < 300:
                self.ids[who] += [value for name, value in made.json().items() if name in ("id", "webhook_id")]

    @rule(
        who=st.sampled_from([0, 1]),
        whose=st.sampled_from([0, 1]),
        pick=st.integers(0, 10**6),
        which=st.integers(0, 10**6),
        client=st.sampled_from([False, False, False, True]),
        body=st.sampled_from(sorted(BODIES)),
    )
    def somebody_calls_something(self, who: int, whose: int, pick: int, which: int, client: bool, body: str) -> None:
        method, template = self.operations[which % len(self.operations)]
        sent = self.ids[whose][pick % len(self.ids[whose])]
        self.try_id(who, whose, method, template, sent, BODIES[body](MARKS[who]), client=client)

    def try_id(
        self, who: int, whose: int, method: str, template: str, sent: str, body: dict[str, Any] | None, *, client: bool
    ) -> None:
        # The name of a lobby config is no id: whatever it is, the caller's own lobbies are meant.
        path = re.sub(r"\{[^}]*\}", sent, template.replace("{config}", "default"))
        answer = self.call(who, method, path, body, client=client)
        assert answer.status_code < 500, answer.text
        if who != whose and sent in path:
            assert answer.status_code >= 400, f"{method} {path}: {answer.text}"

    def call(
        self, who: int, method: str, path: str, body: dict[str, Any] | None = None, *, client: bool = False
    ) -> httpx.Response:
        """As one of them; the other's rows are the same after as before, and none of the other's marks is shown."""
        mine, theirs = self.projects[who], self.projects[1 - who]
        before = self.run(self.rows(theirs))
        key = mine.client_key if client else mine.server_key
        query = {"start_time": "-1h"} if path.endswith("/logs") else {}
        sent: dict[str, Any] = {} if body is None or method == "GET" else {"json": body}
        answer: httpx.Response = self.run(self.api.call(method, path, key, params=query, **sent))
        assert self.run(self.rows(theirs)) == before, f"{method} {path} changed what is another project's"
        shown = answer.text.replace(MARKS[who], "")
        assert MARKS[1 - who] not in shown, f"{method} {path} shows what is another project's"
        assert theirs.project_id not in shown
        for one in self.ids[1 - who]:
            assert one in path or one not in shown
        return answer

    async def rows(self, project: NewProject) -> dict[str, list[dict[str, Any]]]:
        found: dict[str, list[dict[str, Any]]] = {}
        async with self.api.store.read() as session:
            for table in TENANT_TABLES:
                rows = (await session.exec(owned(table, project.project_id))).all()
                values = [row_values(row) for row in rows]
                found[table.__name__] = sorted(values, key=lambda row: json.dumps(row, default=str))
            mine = await session.get(tables.Project, project.project_id)
            found["Project"] = [row_values(mine)] if mine else []
        return found


Tenants.TestCase.settings = settings(
    max_examples=4,
    stateful_step_count=30,
    deadline=None,
    phases=[Phase.generate],  # making an example smaller takes minutes, and the test below gives the smallest
    suppress_health_check=list(HealthCheck),
)
TestTenants = Tenants.TestCase


def test_every_operation_refuses_every_id_of_the_other() -> None:
    machine = Tenants()
    try:
        machine.both_have_something()
        for method, template in machine.operations:
            if "{" in template:
                for sent in machine.ids[1]:
                    machine.try_id(0, 1, method, template, sent, BODIES["data"](MARKS[0]), client=False)
    finally:
        machine.teardown()
