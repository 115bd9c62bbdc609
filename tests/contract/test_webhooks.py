"""Webhooks: signed, tried again, never to places inside, and nobody waits for another's receiver."""

import asyncio
import base64
import hashlib
import hmac
import json
import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_network
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import update
from sqlmodel import col, select
from standardwebhooks.webhooks import Webhook as Verifier

from fleet.errors import BadRequest
from fleet.events import dispatch
from fleet.events.deliveries import MAX_ATTEMPTS, message, retry_ms
from fleet.events.dispatch import Dispatcher
from fleet.events.journal import project_event
from fleet.events.targets import check_url, may_connect
from fleet.jobs import run_once
from fleet.sealing import Sealer
from fleet.store.engine import Store
from fleet.store.tables import Job, Webhook, WebhookDelivery
from tests.receiver import WAIT_S, receiver
from tests.unit.api_kit import Api

PATH = "/api/v3/webhooks"
DAY_MS = 24 * 3_600_000


@pytest.fixture
async def hooks(api: Api) -> Api:
    """The API of an operator who allows receivers on this machine, and wants second attempts soon."""
    allowed = {"allow_http": True, "allowed_networks": ["127.0.0.0/8"], "retry_first_s": 0.05, "timeout_s": 5}
    for name, value in allowed.items():
        setattr(api.settings.webhooks, name, value)
    return api


@asynccontextmanager
async def dispatching(api: Api) -> AsyncIterator[None]:
    """As in a replica, beside the API."""
    store = Store(api.settings.database)
    sealer = Sealer(api.settings.home, "webhook")
    work = Dispatcher(store, sealer, api.settings.webhooks).work
    task = asyncio.create_task(run_once(store, dispatch.JOB, work))
    try:
        yield
        assert not task.done(), task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await store.close()


async def make(api: Api, url: str, events: list[str] | None = None, key: str = "") -> dict[str, Any]:
    answer = await api.call("POST", PATH, key=key, json={"url": url, "events": events})
    assert answer.status_code == 201, answer.text
    return answer.json()


async def happen(api: Api, number: int, project_id: str = "") -> None:
    async with api.store.write() as session:
        project = project_id or api.project.project_id
        session.add(project_event(project, "build", f"b{number}", "build.ready", {"n": number}))


async def settled(api: Api, webhook_id: str, wanted: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
    """The webhook's deliveries once they are as wanted."""
    async with asyncio.timeout(WAIT_S):
        while True:
            found = (await api.call("GET", f"{PATH}/{webhook_id}/deliveries")).json()["deliveries"]
            if wanted(found):
                return found
            await api.store.changed(1.0)


async def test_what_happens_is_sent_signed_and_to_nobody_else(hooks: Api) -> None:
    async with receiver() as mine, receiver() as strangers:
        hook = await make(hooks, mine.url, ["build", "server.running"])
        await make(hooks, strangers.url, key=hooks.other.server_key)
        async with dispatching(hooks):
            await happen(hooks, 1)
            await hooks.running()  # server.accepted, which nobody wants, and server.running
            await mine.has(2)
            await settled(hooks, hook["id"], lambda all: [one["state"] for one in all] == ["delivered"] * 2)
        assert sorted(mine.types()) == ["build.ready", "server.running"]
        assert strangers.got == []
        headers, body = mine.got[mine.types().index("build.ready")]
        sent = json.loads(body)
        assert (sent["id"], sent["data"], sent["subject"]) == (headers["webhook-id"], {"n": 1}, "b1")
        assert Verifier(hook["secret"]).verify(body, headers) == sent
        # and the same by the standard's own words
        key = base64.b64decode(hook["secret"].removeprefix("whsec_"))
        signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
        expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
        assert headers["webhook-signature"] == f"v1,{expected}"


async def test_a_failing_receiver_is_tried_again_with_the_same_id(hooks: Api) -> None:
    async with receiver() as flaky:
        flaky.answers = [500, 302, 429]
        hook = await make(hooks, flaky.url)
        async with dispatching(hooks):
            await happen(hooks, 1)
            [sent] = await settled(hooks, hook["id"], lambda all: [one["state"] for one in all] == ["delivered"])
        assert (sent["attempts"], sent["last_status"], sent["last_error"]) == (4, 204, None)
        assert len({headers["webhook-id"] for headers, _ in flaky.got}) == 1
        assert len(flaky.got) == 4, "a redirect is a failure, not followed"


async def test_a_receiver_that_hangs_delays_no_other(hooks: Api) -> None:
    async with receiver() as stuck, receiver() as quick:
        stuck.hold = asyncio.Event()
        first = await make(hooks, stuck.url)
        await make(hooks, quick.url)
        async with dispatching(hooks):
            for number in range(12):
                await happen(hooks, number)
            await stuck.has(1)
            await quick.has(12)
            waiting = await settled(hooks, first["id"], lambda all: len(all) == 12)
        assert {one["state"] for one in waiting} == {"pending"}
        assert len(stuck.got) <= hooks.settings.webhooks.at_once


async def test_what_was_given_up_is_shown_and_sent_again(hooks: Api) -> None:
    hooks.settings.webhooks.retry_first_s = 60
    async with receiver() as poor:
        poor.answers = [503] * 2
        hook = await make(hooks, poor.url)
        path = f"{PATH}/{hook['id']}/deliveries"
        async with dispatching(hooks):
            await hooks.call("POST", f"{PATH}/{hook['id']}/test")
            await settled(hooks, hook["id"], lambda all: all[0]["attempts"] == 1)
            async with hooks.store.write() as session:  # a day later
                await session.exec(update(WebhookDelivery).values(attempts=MAX_ATTEMPTS - 1, next_at=0))
            [dead] = await settled(hooks, hook["id"], lambda all: all[0]["state"] == "dead")
            assert (dead["last_error"], dead["next_at"]) == ("The receiver answered 503.", None)
            assert (await hooks.call("GET", f"{path}?state=dead")).json()["total"] == 1
            again = await hooks.call("POST", f"{path}/{dead['id']}/resend")
            assert (again.status_code, again.json()["state"]) == (202, "pending")
            await settled(hooks, hook["id"], lambda all: all[0]["state"] == "delivered")
        assert poor.types() == ["webhook.test"] * 3


async def test_what_happens_while_it_is_disabled_waits(hooks: Api) -> None:
    async with receiver() as mine:
        hook = await make(hooks, mine.url)
        await hooks.call("PATCH", f"{PATH}/{hook['id']}", json={"enabled": False})
        await happen(hooks, 1)
        await hooks.call("PATCH", f"{PATH}/{hook['id']}", json={"enabled": True})
        async with dispatching(hooks):
            await mine.has(1)
        assert mine.types() == ["build.ready"]


async def test_all_dead_ones_are_sent_again_at_once(hooks: Api) -> None:
    async with receiver() as mine:
        hook = await make(hooks, mine.url)
        for _ in range(3):
            await hooks.call("POST", f"{PATH}/{hook['id']}/test")
        async with hooks.store.write() as session:
            await session.exec(update(WebhookDelivery).values(state="dead"))
        assert (await hooks.call("POST", f"{PATH}/{hook['id']}/resend-dead")).json() == {"resent": 3}
        async with dispatching(hooks):
            await mine.has(3)


async def test_a_receiver_that_says_gone_is_left_alone(hooks: Api) -> None:
    async with receiver() as gone:
        gone.answers = [410]
        hook = await make(hooks, gone.url)
        store = Store(hooks.settings.database)
        work = Dispatcher(store, Sealer(hooks.settings.home, "webhook"), hooks.settings.webhooks).work
        await hooks.call("POST", f"{PATH}/{hook['id']}/test")
        async with asyncio.timeout(WAIT_S):
            await run_once(store, dispatch.JOB, work)  # ends by itself: no webhook is left
        await store.close()
        shown = (await hooks.call("GET", f"{PATH}/{hook['id']}")).json()
        assert (shown["enabled"], shown["disabled_reason"]) == (False, "its receiver answered 410 Gone")
        assert (await hooks.call("POST", f"{PATH}/{hook['id']}/test")).status_code == 409


async def test_killed_between_sending_and_writing_down_it_is_sent_again(hooks: Api, tmp_path: Path) -> None:
    """kill -9 in the worst moment: the receiver has it, nobody else knows."""
    faults = tmp_path / "faults"
    faults.mkdir()
    (faults / "webhook.sent").touch()
    program = textwrap.dedent(
        """
        import asyncio, sys
        from pathlib import Path
        from fleet.events.dispatch import JOB, Dispatcher
        from fleet.jobs import run_once
        from fleet.sealing import Sealer
        from fleet.settings import FleetSettings
        from fleet.store.engine import Store
        settings = FleetSettings(home=Path(sys.argv[1]))
        store = Store(settings.database)
        asyncio.run(run_once(store, JOB, Dispatcher(store, Sealer(settings.home, "webhook"), settings.webhooks).work))
        """
    )
    own = {"FLEET_FAULTS": str(faults), "FLEET_WEBHOOKS__ALLOW_HTTP": "true"}
    environment = os.environ | own | {"FLEET_WEBHOOKS__ALLOWED_NETWORKS": '["127.0.0.0/8"]'}
    async with receiver() as mine:
        hook = await make(hooks, mine.url)
        await hooks.call("POST", f"{PATH}/{hook['id']}/test")
        killed = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, str(tmp_path), env=environment, stderr=subprocess.DEVNULL
        )
        async with asyncio.timeout(WAIT_S):
            assert await killed.wait() == -9
        assert len(mine.got) == 1
        [sent] = await settled(hooks, hook["id"], lambda _: True)
        assert (sent["state"], sent["attempts"]) == ("pending", 0)
        async with hooks.store.write() as session:  # its lease has run out
            await session.exec(update(Job).where(col(Job.name) == dispatch.JOB).values(lease_until=1))
        async with dispatching(hooks):
            await settled(hooks, hook["id"], lambda all: all[0]["state"] == "delivered")
        assert len({headers["webhook-id"] for headers, _ in mine.got}) == 1
        assert len(mine.got) == 2


def rebound(patch: pytest.MonkeyPatch, name: str) -> None:
    """A public name that says a loopback address when it is used."""
    look_up = socket.getaddrinfo

    def found(host: Any, *more: Any, **named: Any) -> Any:
        return look_up("127.0.0.1" if host == name else host, *more, **named)

    patch.setattr(socket, "getaddrinfo", found)


async def test_without_leave_nothing_inside_is_reached_whatever_name_it_has(
    hooks: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    hooks.settings.webhooks.allowed_networks = []
    async with receiver() as inside:
        assert (await hooks.call("POST", PATH, json={"url": inside.url})).status_code == 400
        for name in (
            "localhost",
            "LOCALHOST.",
            "a.localhost",
            "127.1",
            "0x7f000001",
            "2130706433",
            socket.gethostname(),
        ):
            refused = await hooks.call("POST", PATH, json={"url": inside.url.replace("127.0.0.1", name)})
            assert (refused.status_code, refused.json()["error"]) == (400, "Bad URL"), name
        hook = await make(hooks, inside.url.replace("127.0.0.1", "rebound.example"))
        rebound(monkeypatch, "rebound.example")
        async with dispatching(hooks):
            await hooks.call("POST", f"{PATH}/{hook['id']}/test")
            [sent] = await settled(hooks, hook["id"], lambda all: all[0]["attempts"] > 0)
        assert sent["last_error"] == "The URL leads to an address that is not public."
        assert inside.got == []


async def test_a_name_that_says_another_address_at_the_second_question_is_not_followed(
    hooks: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The address that is connected to counts, each time: what a name said before is worth nothing."""
    hooks.settings.webhooks.allowed_networks = ["127.0.0.2/32"]  # stands for the public address that it says first
    real, answers, asked = socket.getaddrinfo, ["127.0.0.2", "127.0.0.1"], list[str]()

    def rebinding(host: Any, *arguments: Any, **named: Any) -> Any:
        if host != "rebind.example.com":
            return real(host, *arguments, **named)
        asked.append(answers[min(len(asked), 1)])
        return real(asked[-1], *arguments, **named)

    async with receiver() as inside:
        port = urlsplit(inside.url).port
        monkeypatch.setattr(socket, "getaddrinfo", rebinding)
        hook = await make(hooks, f"http://rebind.example.com:{port}/hook")
        asked.clear()
        async with dispatching(hooks):
            await hooks.call("POST", f"{PATH}/{hook['id']}/test")
            [sent] = await settled(hooks, hook["id"], lambda all: all[0]["attempts"] > 1)
        assert asked[:2] == answers
        assert sent["last_error"] == "The URL leads to an address that is not public."
        assert inside.got == []


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.9.1", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "224.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1", "::1", "::", "fe80::1%eth0", "fc00::1", "ff02::1",
        "::ffff:127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1", "2002:7f00:1::", "2001:db8::1", "x", "",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address: str) -> None:
    assert not may_connect(address, [])


def test_public_addresses_and_those_the_operator_allows() -> None:
    assert may_connect("93.184.216.34", [])
    assert may_connect("2606:2800:220:1::1", [])
    assert may_connect("10.1.2.3", [ip_network("10.0.0.0/8")])
    assert not may_connect("10.1.2.3", [ip_network("10.0.0.0/16")])


@pytest.mark.parametrize(
    "url",
    [
        "http://studio.example/x", "ftp://studio.example", "https://", "https:///x", "https://user:pw@studio.example",
        "https://studio.example/#x", "https://127.0.0.1/", "https://[::1]/", "https://[::1", "https://a b.example/",
        "https://studio.example:99999/", "https://studio.example:0/", "https://stüdio.example/", "javascript:alert(1)",
        "https://studio.example/\n", "//studio.example/", "https://" + "a" * 2048,
    ],
)  # fmt: skip
def test_urls_that_are_refused(url: str) -> None:
    with pytest.raises(BadRequest):
        check_url(url, [], http=False)
    check_url("https://studio.example:8443/fleet?x=1", [], http=False)


@given(st.floats(0, 0.999), st.data())
def test_attempts_spread_over_about_a_day(chance: float, data: st.DataObject) -> None:
    waits = [retry_ms(number, chance) for number in range(1, MAX_ATTEMPTS + 1)]
    assert waits[-1] is None
    known = [wait for wait in waits if wait is not None]
    assert len(known) == MAX_ATTEMPTS - 1
    assert known == sorted(known)
    assert 0.7 * DAY_MS < sum(known) < 1.3 * DAY_MS
    asked = data.draw(st.floats(0, 10**9))
    assert (retry_ms(1, chance, asked) or 0) <= DAY_MS / 4
    assert (retry_ms(1, chance, asked) or 0) >= min(asked * 1000 - 1, DAY_MS / 4)


def test_a_message_is_verified_by_the_standards_library_and_tampering_is_seen() -> None:
    from fleet.times import now_ms

    secret = "whsec_" + base64.b64encode(b"k" * 32).decode()
    body, headers = message(secret, "evt_1", {"type": "x", "data": {"ü": 1}}, now_ms())
    assert Verifier(secret).verify(body, headers) == {"type": "x", "data": {"ü": 1}}
    for changed in (body.replace(b"1", b"2"), body + b" "):
        with pytest.raises(Exception, match="signature"):
            Verifier(secret).verify(changed, headers)


async def test_webhooks_are_made_shown_changed_and_deleted(hooks: Api) -> None:
    hook = await make(hooks, "https://studio.example/hook", ["server", "build.ready"])
    assert hook["secret"].startswith("whsec_")
    async with hooks.store.read() as session:
        [row] = (await session.exec(select(Webhook))).all()
    assert hook["secret"] not in row.secret, "sealed at rest"
    shown = (await hooks.call("GET", f"{PATH}/{hook['id']}")).json()
    assert shown == {name: value for name, value in hook.items() if name != "secret"}
    assert (await hooks.call("GET", PATH)).json() == {"webhooks": [shown], "total": 1}
    off = (await hooks.call("PATCH", f"{PATH}/{hook['id']}", json={"enabled": False, "events": None})).json()
    assert (off["enabled"], off["events"], off["url"]) == (False, None, hook["url"])
    rotated = (await hooks.call("POST", f"{PATH}/{hook['id']}/rotate-secret")).json()
    assert rotated["secret"] != hook["secret"]
    await hooks.call("PATCH", f"{PATH}/{hook['id']}", json={"enabled": True})
    await hooks.call("POST", f"{PATH}/{hook['id']}/test")
    assert (await hooks.call("DELETE", f"{PATH}/{hook['id']}")).status_code == 204
    assert (await hooks.call("DELETE", f"{PATH}/{hook['id']}")).status_code == 404
    async with hooks.store.read() as session:
        assert (await session.exec(select(WebhookDelivery))).all() == []


async def test_nobody_reaches_anothers_webhooks(hooks: Api) -> None:
    hook = await make(hooks, "https://studio.example/hook")
    sent = (await hooks.call("POST", f"{PATH}/{hook['id']}/test")).json()
    calls = [
        ("GET", ""), ("PATCH", ""), ("DELETE", ""), ("POST", "/test"), ("POST", "/rotate-secret"),
        ("GET", "/deliveries"),
        ("POST", f"/deliveries/{sent['id']}/resend"), ("POST", "/resend-dead"),
    ]  # fmt: skip
    for method, rest in calls:
        for key, status in ((hooks.other.server_key, 404), (hooks.project.client_key, 403), (None, 401)):
            kwargs = {"json": {"enabled": False}} if method == "PATCH" else {}
            answer = await hooks.call(method, f"{PATH}/{hook['id']}{rest}", key=key, **kwargs)
            assert answer.status_code == status, (method, rest)
    assert (await hooks.call("GET", PATH, key=hooks.other.server_key)).json()["total"] == 0


async def test_bad_webhooks(hooks: Api) -> None:
    for body in ({"url": "https://studio.example", "events": ["servers"]}, {"url": "gopher://studio.example"}):
        assert (await hooks.call("POST", PATH, json=body)).status_code == 400, body
    for body in (
        {},
        {"url": 5},
        {"url": "https://x.example", "more": 1},
        {"url": "https://x.example", "enabled": "no"},
    ):
        assert (await hooks.call("POST", PATH, json=body)).status_code == 422, body
    hooks.settings.webhooks.max_per_project = 2
    for _ in range(2):
        await make(hooks, "https://studio.example")
    answer = await hooks.call("POST", PATH, json={"url": "https://studio.example"})
    assert (answer.status_code, answer.json()["error"]) == (409, "Too many webhooks")


async def test_one_project_with_many_slow_receivers_delays_no_other(hooks: Api) -> None:
    """Its webhooks could have more sends under way than there are places; the other is heard at once all the same."""
    limits = hooks.settings.webhooks
    limits.at_once_in_all, limits.at_once_per_project, limits.timeout_s = 8, 6, 60
    async with receiver() as slow, receiver() as mine:
        slow.hold = asyncio.Event()
        for _ in range(4):
            await make(hooks, slow.url, key=hooks.other.server_key)
        await make(hooks, mine.url)
        async with dispatching(hooks):
            for number in range(8):
                await happen(hooks, number, hooks.other.project_id)
            await slow.has(6)
            async with asyncio.timeout(10):
                await happen(hooks, 100)
                await mine.has(1)
            assert len(slow.got) == 6
            slow.hold.set()
            await slow.has(4 * 8)
