"""No query of a project's rows without the project: `owned(model, project_id)` begins it, or its place is on a list.

Looked for in the source itself, so that a query which no test runs is found too.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

from fleet.store import tables

ROOT = Path(__file__).parents[2]
TENANT_TABLES = {
    name
    for name, table in vars(tables).items()
    if isinstance(table, type) and "project_id" in getattr(table, "model_fields", {})
} | {"BuildLog"}
STATEMENTS = {"select", "update", "delete", "exists"}
METHODS = {"get", "join", "outerjoin", "select_from", "get_one"}

# Who may look at the rows of every project, and why. A service that answers a project's caller is none of these.
# A whole module, or one function of it.
ACROSS_PROJECTS: dict[str, str] = {
    "fleet.admin": "the operator's scripts",
    "fleet.billing.ledger": "one job computes the usage of all",
    "fleet.billing.budgets:any_budget": "whether that job is needed",
    "fleet.billing.budgets:review_all": "one job looks at the budgets of all",
    "fleet.builds.collect": "what no build of anyone needs",
    "fleet.builds.pipeline": "works on the build that it was given",
    "fleet.builds.service:_expire": "housekeeping: links that ran out",
    "fleet.builds.service:_insert": "numbers within the new build's own project",
    "fleet.builds.service:_received": "the signature of the upload link names the build",
    "fleet.builds.service:_restart": "of a build that `get` found for the caller",
    "fleet.builds.service:_take_upload": "the signature of the upload link names the build",
    "fleet.builds.service:expire_uploads": "housekeeping: links that ran out",
    "fleet.builds.service:logs": "of a build that `get` found for the caller",
    "fleet.builds.service:owner_of": "the signature of the upload link names the build",
    "fleet.builds.service:stored": "called by the object store, which knows no projects",
    "fleet.builds.turns": "builds of all projects take turns",
    "fleet.events.dispatch": "one job sends for all",
    "fleet.events.feed": "one job reads the journals of all",
    "fleet.events.webhooks:any_work": "whether that job is needed",
    "fleet.events.webhooks:create": "the id that this very write would make",
    "fleet.events.webhooks:delete": "of a webhook that `_find` found for the caller",
    "fleet.events.webhooks:resend_dead": "of a webhook that `_find` found for the caller",
    "fleet.lobbies.projects:_read": "of the one project that a keeper serves, named in the statement",
    "fleet.projects.admin_service:audit": "the operator's log",
    "fleet.projects.ending:_delete_rows": "of the project that ends, named in the statement",
    "fleet.projects.ending:_end_builds": "of the project that ends, named in the statement",
    "fleet.projects.ending:_find_stragglers": "servers of projects that are gone",
    "fleet.projects.export:_write_build_logs": "of builds that `owned` found",
    "fleet.projects.service:add_project": "the keys that this very write would make",
    "fleet.projects.service:_look_up": "a key is what tells the project",
    "fleet.region.books": "a manager writes the servers of all projects in its region",
    "fleet.region.build_refs": "of a server that the manager has",
    "fleet.region.client:reached": "of a server that `get` found for the caller",
    "fleet.region.client:_needed": "which regions have anything to do",
    "fleet.region.reconciler": "a manager writes the servers of all projects in its region",
    "fleet.region.pool_store": "a manager keeps the pools of all projects in its region",
    "fleet.region.secrets:_note": "of the one project whose server is launched, named in the statement",
    "fleet.retention.rules": "housekeeping: what has been over for long, of every project",
    "fleet.retention.sweep": "housekeeping: what has been over for long, of every project",
    "fleet.servers.admission:_reservation": "of the caller's start, named in the statement",
    "fleet.servers.admission:_reserve": "rows of reservations that `owned` found; the delete names the project",
    "fleet.simulate.recorded": "the operator's what-if",
    "fleet.telemetry.stored": "how much there is in all, for Prometheus",
}


def queries(path: Path) -> Iterator[tuple[str, str]]:
    """(function, table) of every statement on a tenant's table that does not begin with `owned`."""
    tree = ast.parse(path.read_text())
    for function in _functions(tree):
        for node in _own_nodes(function):
            if isinstance(node, ast.Call) and _makes_statement(node.func):
                for table in _tables_in(node):
                    yield getattr(function, "name", "<module>"), table


def _functions(tree: ast.Module) -> Iterator[ast.AST]:
    yield tree
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def _own_nodes(function: ast.AST) -> Iterator[ast.AST]:
    """Its nodes without those of functions inside it."""
    waiting = list(ast.iter_child_nodes(function))
    while waiting:
        node = waiting.pop()
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
            waiting += ast.iter_child_nodes(node)


def _makes_statement(called: ast.expr) -> bool:
    if isinstance(called, ast.Name):
        return called.id in STATEMENTS
    return isinstance(called, ast.Attribute) and called.attr in METHODS | STATEMENTS


def _tables_in(call: ast.Call) -> set[str]:
    """Tenant tables named directly in the call's arguments: `select(Server.region)`, `session.get(Build, …)`."""
    found: set[str] = set()
    for argument in call.args:
        named = argument
        while (
            isinstance(named, ast.Call) and isinstance(named.func, ast.Name) and named.func.id == "col" and named.args
        ):
            named = named.args[0]
        if isinstance(named, ast.Attribute):
            named = named.value
        if isinstance(named, ast.Name) and named.id in TENANT_TABLES:
            found.add(named.id)
    return found


def sources() -> Iterator[Path]:
    for package in ("fleet", "serve_app"):
        yield from (path for path in sorted((ROOT / package).rglob("*.py")) if "migrations" not in path.parts)


def unscoped() -> dict[str, set[str]]:
    """`module:function` → tables."""
    found: dict[str, set[str]] = {}
    for path in sources():
        module = str(path.relative_to(ROOT).with_suffix("")).replace("/", ".")
        for function, table in queries(path):
            found.setdefault(f"{module}:{function}", set()).add(table)
    return found


def _reason(place: str) -> str | None:
    module = place.partition(":")[0]
    return ACROSS_PROJECTS.get(place) or ACROSS_PROJECTS.get(module)


def test_every_query_of_a_tenants_rows_begins_with_its_owner() -> None:
    wrong = {place: sorted(found) for place, found in unscoped().items() if _reason(place) is None}
    assert wrong == {}, "begin these with owned(Model, project_id) of fleet/projects/scope.py"


def test_the_list_names_nothing_that_is_gone() -> None:
    places = {key for place in unscoped() for key in (place, place.partition(":")[0])}
    assert set(ACROSS_PROJECTS) <= places


def test_a_forgotten_owner_is_found(tmp_path: Path) -> None:
    file = tmp_path / "careless.py"
    file.write_text(
        "async def leak(session, found):\n"
        "    await session.exec(select(Server).where(col(Server.instance_id) == found))\n"
        "    await session.get(Build, found)\n"
        "    await session.exec(delete(ApiKey))\n"
        "    await session.exec(select(func.count(), col(Webhook.id)))\n"
        "def fine(owner):\n"
        "    return owned(Server, owner).where(col(Server.name) == 'x')\n"
    )
    assert set(queries(file)) == {("leak", "Server"), ("leak", "Build"), ("leak", "ApiKey"), ("leak", "Webhook")}
