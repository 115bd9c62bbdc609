"""Settings and pools through the API: what is kept, what is refused, and whom a warm server goes to."""

from typing import Any

import pytest

from fleet.pools.spec import pool_spec
from fleet.projects.model import project_ports
from fleet.projects.settings import opened_auth
from fleet.sealing import Sealer
from fleet.store.tables import Server
from fleet.times import now_ms
from tests.unit.api_kit import Api

SETTINGS = "/api/v3/projects/settings"
PORTS = [{"name": "game", "internal_port": 7777, "protocol": "udp", "tls_enabled": False}]
POOL = {"enabled": True, "regions": {"us-east": {"small": 2}}}


async def set_to(api: Api, **parts: Any) -> dict[str, Any]:
    answer = await api.call("POST", SETTINGS, json=parts)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def warm(api: Api, **values: Any) -> str:
    """An idle pool server of the project as its settings are now."""
    settings = (await api.app.state.context.projects.settings(api.project.project_id)).settings or {}
    build_id = f"build-default-1-{api.project.project_id[-12:]}"
    environment, ports = settings.get("environment_variables") or {}, project_ports(settings)
    row = Server(
        **{
            "instance_id": f"warm-{len(api.regions.warm)}",
            "project_id": api.project.project_id,
            "region": "us-east",
            "name": "pool-1",
            "status": "running",
            "step": "running",
            "compute_size": "small",
            "build_id": build_id,
            "version_tag": "default",
            "version": 1,
            "is_pool_server": True,
            "pool_spec": pool_spec(api.project.project_id, "small", build_id, environment, list(ports)),
            "network_ports": [],
            "created_at": now_ms(),
            "updated_at": now_ms(),
            "launched_at": now_ms(),
            "step_at": now_ms(),
            "started_at": now_ms(),
            **values,
        }
    )
    async with api.store.write() as session:
        session.add(row)
    api.regions.warm.append(row.instance_id)
    return row.instance_id


async def test_settings_are_empty_at_first_and_kept_part_by_part(api: Api) -> None:
    first = (await api.call("GET", SETTINGS)).json()
    assert first.pop("updated_at")
    assert first == {
        "port_configs": [],
        "auth_config": {"provider": "none"},
        "environment_variables": {},
        "pool_config": None,
        "lobby_configs": [],
        "unique_match": False,
        "allowed_origins": [],
    }
    await set_to(api, port_configs=PORTS, environment_variables={"A": "1"})
    await set_to(api, pool_config=POOL, lobby_configs=[{"name": "ranked"}])
    kept = await set_to(api, environment_variables={"B": "2"})
    assert kept["port_configs"] == PORTS
    assert kept["pool_config"] == POOL
    assert kept["environment_variables"] == {"B": "2"}
    assert (await api.call("GET", SETTINGS)).json() == kept
    assert (await set_to(api, pool_config=None))["pool_config"] is None


async def test_secrets_go_in_and_do_not_come_out(api: Api) -> None:
    shown = await set_to(api, auth_config={"provider": "custom_jwt", "secret": "s3cret", "issuer": "me"})
    assert shown["auth_config"] == {"provider": "custom_jwt", "secret": "********", "issuer": "me"}
    await set_to(api, auth_config={**shown["auth_config"], "issuer": "you"})
    stored = (await api.app.state.context.projects.settings(api.project.project_id)).settings or {}
    assert "s3cret" not in str(stored)
    sealer = Sealer(api.settings.home, "auth")
    assert opened_auth(stored, sealer) == {"provider": "custom_jwt", "secret": "s3cret", "issuer": "you"}
    await set_to(api, auth_config={"provider": "steam", "app_id": 480, "web_api_key": "k"})
    assert (await set_to(api, auth_config=None))["auth_config"] == {"provider": "none"}


async def test_each_provider_says_what_it_needs(api: Api) -> None:
    for auth in (
        {"provider": "custom_jwt"},
        {"provider": "custom_jwt", "secret": "********"},
        {"provider": "custom_jwt", "jwks_url": "file:///etc/passwd"},
        {"provider": "playfab", "secret_key": "x"},
        {"provider": "steam", "app_id": "480"},
    ):
        answer = await api.call("POST", SETTINGS, json={"auth_config": auth})
        assert answer.status_code == 422, auth
    for auth in (
        {"provider": "custom_jwt", "jwks_url": "https://keys.example/jwks.json", "audience": ["a", "b"]},
        {"provider": "playfab", "title_id": "ABCD"},
        {"provider": "steam", "app_id": "480", "web_api_key": "x"},
        {"provider": "none"},
    ):
        await set_to(api, auth_config=auth)


async def test_extensions_are_settings_like_the_others(api: Api) -> None:
    await set_to(api, unique_match=True, allowed_origins=["https://game.example", "http://localhost:8080", "*"])
    kept = await set_to(api, environment_variables={"A": "1"})
    assert (kept["unique_match"], len(kept["allowed_origins"])) == (True, 3)
    first = await api.start(match_id="m1")
    assert (await api.start(match_id="m1"))["instance_id"] == first["instance_id"]
    for wrong in ("game.example", "https://game.example/", "https://*.example", "javascript:alert(1)", "https://a b"):
        assert (await api.call("POST", SETTINGS, json={"allowed_origins": [wrong]})).status_code == 422, wrong


@pytest.mark.parametrize(
    "wrong",
    [
        {"pool_config": {"enabled": True, "regions": {"us-east": {"small": -1}}}},
        {"pool_config": {"enabled": True, "regions": {"us-east": {"small": 10**9}}}},
        {"pool_config": {"enabled": True, "regions": {"moon": {"small": 1}}}},
        {"pool_config": {"enabled": True, "regions": {"us-east": {"colossal": 1}}}},
        {"pool_config": {"regions": {}}},
        {"port_configs": [PORTS[0] | {"name": f"p{i}", "internal_port": 7000 + i} for i in range(11)]},
        {"port_configs": [PORTS[0], PORTS[0]]},
        {"environment_variables": {"": "x"}},
        {"auth_config": {"provider": "magic"}},
        {"lobby_configs": [{}] * 21},
    ],
)
async def test_wrong_settings_change_nothing(api: Api, wrong: dict[str, Any]) -> None:
    before = await set_to(api, pool_config=POOL)
    api.regions.told.clear()
    answer = await api.call("POST", SETTINGS, json=wrong)
    assert answer.status_code == 422, answer.text
    assert answer.json()["error"] == "Validation error"
    assert (await api.call("GET", SETTINGS)).json() == before
    assert api.regions.told == []


async def test_settings_are_for_the_server_key(api: Api) -> None:
    for method, path in (
        ("GET", SETTINGS),
        ("POST", SETTINGS),
        ("GET", "/api/v3/pools"),
        ("POST", "/api/v3/servers/claim"),
    ):
        answer = await api.call(method, path, api.project.client_key, json={"region": "us-east"})
        assert answer.status_code == 403, path


async def test_old_and_new_regions_hear_of_a_change(api: Api) -> None:
    await set_to(api, pool_config=POOL)
    await set_to(api, pool_config={"enabled": True, "regions": {"eu-west": {"small": 1}}})
    assert api.regions.told == ["us-east", "eu-west", "us-east"]


async def test_a_start_takes_a_warm_server_and_the_next_goes_cold(api: Api) -> None:
    await set_to(api, pool_config=POOL, port_configs=PORTS)
    name = await warm(api)
    hot = await api.start(name="mine", match_id="m1", custom_data={"map": "dust"}, ttl=600)
    assert hot["instance_id"] == name
    assert (hot["status"], hot["start_kind"], hot["is_pool_server"]) == ("running", "hot", True)
    assert (hot["name"], hot["match_id"], hot["custom_data"], hot["ttl"]) == ("mine", "m1", {"map": "dust"}, 600)
    assert hot["pool_claimed_at"]
    cold = await api.start(name="other")
    assert (cold["status"], cold["is_pool_server"]) == ("launching", False)


@pytest.mark.parametrize(
    "own",
    [
        {"startup_args": "-map dust"},
        {"environment_variables": {"MODE": "hard"}},
        {"port_configs": [PORTS[0] | {"internal_port": 9999}]},
        {"compute_size": "medium"},
        {"region": "eu-west"},
    ],
)
async def test_a_start_of_its_own_kind_goes_cold(api: Api, own: dict[str, Any]) -> None:
    await set_to(api, pool_config=POOL, port_configs=PORTS)
    await warm(api)
    assert (await api.start(**own))["status"] == "launching"
    assert len(api.regions.warm) == 1


async def test_a_start_that_repeats_the_projects_ports_is_hot(api: Api) -> None:
    await set_to(api, pool_config=POOL, port_configs=PORTS)
    await warm(api)
    assert (await api.start(port_configs=PORTS))["start_kind"] == "hot"


async def test_idle_ones_are_hidden_until_claimed(api: Api) -> None:
    await set_to(api, pool_config=POOL)
    name = await warm(api)
    assert (await api.call("GET", "/api/v3/servers")).json()["total"] == 0
    shown = (await api.call("GET", "/api/v3/servers?include_pool=true")).json()["servers"]
    assert [(s["instance_id"], s["start_kind"], s["pool_claimed_at"]) for s in shown] == [(name, None, None)]
    claimed = await api.call("POST", "/api/v3/servers/claim", json={"region": "us-east", "match_id": "m"})
    assert claimed.status_code == 200
    assert claimed.json()["match_id"] == "m"
    assert (await api.call("GET", "/api/v3/servers")).json()["total"] == 1
    restart = await api.call("POST", f"/api/v3/servers/{name}/restart")
    assert restart.status_code == 409


async def test_a_claim_never_starts_anything(api: Api) -> None:
    empty = await api.call("POST", "/api/v3/servers/claim", json={"region": "us-east"})
    assert (empty.status_code, empty.json()["error"]) == (409, "No pool")
    await set_to(api, pool_config=POOL)
    empty = await api.call("POST", "/api/v3/servers/claim", json={"region": "us-east"})
    assert (empty.status_code, empty.json()["error"]) == (409, "Pool empty")
    unknown = await api.call("POST", "/api/v3/servers/claim", json={"region": "moon"})
    assert unknown.status_code == 400


async def test_pools_are_shown_by_region_and_size(api: Api) -> None:
    assert (await api.call("GET", "/api/v3/pools")).json() == {"pools": [], "total": 0}
    assert (await api.call("GET", "/api/v3/pools/us-east/small")).status_code == 404
    await set_to(api, pool_config=POOL)
    api.regions.shown = [{"region": "us-east", "compute_size": "small", "build": "default"}]
    assert (await api.call("GET", "/api/v3/pools")).json()["total"] == 1
    assert (await api.call("GET", "/api/v3/pools/us-east/small")).json()["build"] == "default"
    assert (await api.call("GET", "/api/v3/pools/us-east/small?build=other")).status_code == 404
    assert (await api.call("GET", "/api/v3/pools/moon/small")).status_code == 400
