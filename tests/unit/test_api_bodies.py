"""JSON as engines, shells and serializers send it is taken as it was meant, or refused with what to change."""

import gzip
import json
from typing import Any

import pytest

from tests.unit.api_kit import Api

START = "/api/v3/servers/start"


@pytest.mark.parametrize(
    "named",
    [
        None,
        "application/octet-stream",
        "application/x-www-form-urlencoded",
        "text/plain; charset=utf-8",
        "text/json",
        "Application/JSON",
        "application/json; charset=utf-8",
        "application/vnd.game+json",
    ],
)
async def test_json_is_taken_whatever_it_is_called(api: Api, named: str | None) -> None:
    headers = {} if named is None else {"content-type": named}
    answer = await api.call("POST", START, content=json.dumps(api.start_body).encode(), headers=headers)
    assert answer.status_code == 201, answer.text


async def test_what_is_no_json_is_told_with_the_type_that_it_has(api: Api) -> None:
    form = {"content-type": "application/x-www-form-urlencoded"}
    answer = await api.call("POST", START, content=b"name=a&region=us-east", headers=form)
    assert answer.status_code == 400
    assert "'application/x-www-form-urlencoded'" in answer.json()["detail"]


async def test_a_byte_order_mark_is_skipped_and_utf_16_is_named(api: Api) -> None:
    body = json.dumps(api.start_body)
    assert (await api.call("POST", START, content=b"\xef\xbb\xbf" + body.encode())).status_code == 201
    answer = await api.call("POST", START, content=body.encode("utf-16"))
    assert answer.status_code == 400
    assert "UTF-16" in answer.json()["detail"]


async def test_null_means_the_default(api: Api) -> None:
    nulls: dict[str, Any] = dict.fromkeys(
        ["startup_args", "compute_size", "version_tag", "version", "ttl", "auto_restart", "custom_data", "match_id"]
    )
    ports = [{"name": "game", "internal_port": 7777, "protocol": "udp", "tls_enabled": None}]
    answer = await api.call("POST", START, json=api.start_body | nulls | {"port_configs": ports})
    assert answer.status_code == 201, answer.text
    assert answer.json()["compute_size"] == "small"
    missing = await api.call("POST", START, json=api.start_body | {"region": None})
    assert missing.status_code == 422


async def test_a_compressed_body_is_refused_with_a_word(api: Api) -> None:
    packed = gzip.compress(json.dumps(api.start_body).encode())
    answer = await api.call("POST", START, content=packed, headers={"content-encoding": "gzip"})
    assert (answer.status_code, answer.json()["error"]) == (415, "Unsupported media type")
    assert "gzip" in answer.json()["detail"]


async def test_a_compressed_upload_is_refused_and_may_come_again(api: Api) -> None:
    made = (await api.call("POST", "/api/v3/builds/upload-url?name=packed")).json()
    path = made["upload_url"].split("/", 3)[3]
    answer = await api.call("PUT", f"/{path}", content=gzip.compress(b"zip"), headers={"content-encoding": "gzip"})
    assert answer.status_code == 415
    build = (await api.call("GET", f"/api/v3/builds/{made['build_id']}")).json()
    assert build["status"] == "uploading"


async def test_what_belongs_into_a_legacy_lobbys_settings_is_taken_beside_them(api: Api) -> None:
    lobby = {"name": "lobby", "maxPlayers": 2, "isPrivate": False, "useInviteCode": True, "allowLateJoin": True}
    lobby |= {"region": "us-east", "settings": {}, "host": "ann"}
    await api.call("POST", "/api/v3/projects/settings", json={"lobby_configs": [{"name": "default", "maxPlayers": 8}]})
    made = await api.call("POST", "/v2/lobbies?name=default", json=lobby)
    assert made.status_code == 201, made.text
    change = {"requesterId": "ann", "maxPlayers": 6, "settings": {"name": "inside"}}
    answer = await api.call("PUT", f"/v2/lobbies/{made.json()['id']}?name=default", json=change | {"name": "beside"})
    assert answer.status_code == 200, answer.text
    assert (answer.json()["maxPlayers"], answer.json()["name"]) == (6, "inside")
