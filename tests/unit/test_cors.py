"""Web pages that call: preflights, whose answers they may read, and which may not call at all."""

import pytest

from tests.unit.api_kit import Api, by_proxy

PATH = "/api/v3/servers"
GAME, OTHER = "https://game.example", "https://other.example"


async def name_origins(api: Api, *origins: str) -> None:
    answer = await api.call("POST", "/api/v3/projects/settings", json={"allowed_origins": list(origins)})
    assert answer.status_code == 200, answer.text


async def test_a_preflight_is_answered_without_a_key_for_all(api: Api) -> None:
    asked = {
        "origin": GAME,
        "access-control-request-method": "POST",
        "access-control-request-headers": "api-key,content-type,x-player-id",
    }
    for path in (f"{PATH}/start", "/api/v3/lobbies/any/join", "/v2/servers/start"):
        answer = await api.call("OPTIONS", path, key=None, headers=asked)
        assert answer.status_code == 204
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "POST" in answer.headers["access-control-allow-methods"]
        allowed = answer.headers["access-control-allow-headers"]
        assert all(name in allowed for name in ("api-key", "content-type", "x-player-id", "x-player-token"))
        assert answer.content == b""


async def test_a_client_key_may_be_used_from_any_page_unless_origins_are_named(api: Api) -> None:
    key = api.project.client_key
    answer = await api.call("GET", PATH, key=key, headers={"origin": OTHER})
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "x-ratelimit-remaining" in answer.headers["access-control-expose-headers"]

    await name_origins(api, GAME)
    named = await api.call("GET", PATH, key=key, headers={"origin": GAME})
    assert (named.status_code, named.headers["access-control-allow-origin"]) == (200, GAME)
    assert named.headers["vary"] == "origin"
    for method, path in (("GET", PATH), ("POST", f"{PATH}/start")):
        refused = await api.call(method, path, key=key, headers={"origin": OTHER}, json=api.start_body)
        assert refused.status_code == 403
        assert set(refused.json()) == {"error", "detail", "status"}
        assert "access-control-allow-origin" not in refused.headers
    assert (await api.call("GET", PATH, key=key)).status_code == 200  # no page: a game, a back end

    await name_origins(api, "*")
    assert (await api.call("GET", PATH, key=key, headers={"origin": OTHER})).status_code == 200


async def test_no_page_may_read_what_a_server_key_gets(api: Api) -> None:
    answer = await api.call("GET", PATH, headers={"origin": GAME})
    assert answer.status_code == 200
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(("path", "key", "status"), [("/api/health", None, 200), (PATH, "pf_nobodys", 401)])
async def test_what_tells_nothing_may_be_read_by_all(api: Api, path: str, key: str | None, status: int) -> None:
    answer = await api.call("GET", path, key=key, headers={"origin": GAME})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (status, "*")


async def test_kept_answers_have_the_headers_of_who_asks(api: Api) -> None:
    await name_origins(api, GAME, OTHER)
    for origin in (GAME, OTHER, GAME):
        answer = await api.call("GET", PATH, key=api.project.client_key, headers={"origin": origin})
        assert answer.headers["access-control-allow-origin"] == origin
    plain = await api.call("GET", PATH, key=api.project.client_key)
    assert "access-control-allow-origin" not in plain.headers


async def test_every_answer_has_the_safe_headers(api: Api) -> None:
    for path, key in ((PATH, ""), (PATH, ""), ("/nowhere", None), (PATH, None), ("/api/reference", None)):
        headers = (await api.call("GET", path, key=key)).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "no-referrer"
        assert "strict-transport-security" not in headers


async def test_behind_tls_browsers_are_told_to_stay_there(api: Api) -> None:
    over_tls = by_proxy(scheme="https")
    answer = await api.call("GET", PATH, headers=over_tls)
    assert answer.headers["strict-transport-security"].startswith("max-age=")
    upload = await api.call("POST", "/api/v3/builds/upload-url", headers=over_tls)
    assert upload.json()["upload_url"].startswith("https://fleet.test/upload/")
