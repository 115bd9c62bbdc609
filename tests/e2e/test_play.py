"""Two people in two browsers, from the lobby to an answer of the same game server, on a real fleet."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fleet.cli_demo import LOBBIES, ensure_lobbies, play_url
from fleet.client import FleetClient
from fleet.ops.home import Access
from tests import games
from tests.chromium import Chromium, Tab, chromium
from tests.conftest import RunningFleet
from tests.player import Studio

pytestmark = [pytest.mark.fleet, pytest.mark.docker]

ASKING = "demo that asks"
EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def url(fleet: RunningFleet, studio: Studio) -> Iterator[str]:
    """The page's address as `fleet demo` tells it, with the lobby config that it makes; what was there comes back."""
    assert studio.push(games.demo_zip(), "demo")["status"] == "ready"
    before = studio.call("GET", "/projects/settings")["lobby_configs"]
    asking = {"1v1": {"matchConfirmation": {"enabled": True, "timeout": 60}}}
    studio.call(
        "POST",
        "/projects/settings",
        json={"lobby_configs": [{**LOBBIES, "name": ASKING, "matchmaking": {"modes": asking}}]},
    )
    with FleetClient(fleet.url, fleet.server_key) as client:
        assert ensure_lobbies(client)
    yield play_url(Access(fleet.url, fleet.server_key, fleet.client_key, fleet.project_id))
    studio.call("POST", "/projects/settings", json={"lobby_configs": before})


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Chromium]:
    with chromium(tmp_path) as found:
        yield found


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """Where screenshots go: FLEET_TEST_SCREENSHOTS for people who want to look at them."""
    folder = Path(os.environ.get("FLEET_TEST_SCREENSHOTS", tmp_path / "screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def player(browser: Chromium, url: str, name: str) -> Tab:
    tab = browser.tab(url)
    tab.until("h2", "Open lobbies")
    tab.type("#name", name)
    return tab


def plays(tab: Tab, name: str) -> str:
    """The address of the server that this browser is connected to and has been welcomed by."""
    tab.until("#link", "Connected to ws://127.0.0.1:")
    tab.until("#log", f"welcome {name}")
    return tab.text("#address")


def said(tab: Tab, word: str) -> str:
    """The game's answer to a word of the player, sent by the Enter key."""
    tab.type("#word", f"ping {word}")
    tab.enter()
    found = re.search(rf"pong (\S+) {word}$", tab.until("#log li:last-child", "pong"))
    assert found, tab.text("#log")
    return found[1]


def test_a_friend_joins_by_code_and_both_play(browser: Chromium, url: str, album: Path) -> None:
    anna, ben = player(browser, url, "Anna"), player(browser, url, EVIL)
    anna.picture(album / "1-home.png")
    anna.click("#create")
    anna.until("#title", "Anna's lobby")
    anna.picture(album / "1-lobby-made.png")
    ben.until("#lobbies", "Anna's lobby")
    ben.picture(album / "2-open-lobbies.png")
    code = anna.text("#lobby-code")
    ben.type("#code", code)
    ben.enter()
    anna.until("#players", EVIL[:24])
    ben.until("#players", "Anna")
    ben.click("#ready")
    anna.until("#players li:nth-child(2) .good", "ready")
    anna.picture(album / "3-lobby-of-the-host.png")
    assert ben.text("#start") == "", "only the host starts"
    anna.click("#start")
    addresses = {plays(anna, "Anna"), plays(ben, EVIL[:24])}
    assert len(addresses) == 1
    assert said(anna, "1") == said(ben, "2"), "the same server"
    for tab in (anna, ben):
        tab.until("#arena", "Anna")
        tab.until("#arena", EVIL[:24])
    anna.picture(album / "4-game-of-the-host.png")
    ben.picture(album / "5-game-of-the-friend.png")
    ben.go("about:blank")
    ben.go(url)
    plays(ben, EVIL[:24])
    anna.click("#end")
    ben.until("#news", "Waiting for the host")
    anna.click("#players button")
    ben.until("h2", "Open lobbies")
    anna.click("#leave")
    anna.until("h2", "Open lobbies")
    assert anna.faults == []
    assert all("404" in fault for fault in ben.faults), "how a kicked player's stream learns of it"


def test_two_strangers_are_matched(browser: Chromium, url: str, album: Path) -> None:
    cleo, dan = player(browser, url, "Cleo"), player(browser, url, "Dan")
    cleo.click("#quick")
    cleo.until("#news", "Looking for opponents … 1 searching")
    cleo.picture(album / "6-queue.png")
    dan.click("#quick")
    assert plays(cleo, "Cleo") == plays(dan, "Dan")
    assert said(cleo, "3") == said(dan, "4")
    cleo.until("#arena", "Dan")
    cleo.picture(album / "7-match.png")
    for tab in (cleo, dan):
        tab.click("#leave")
        tab.until("h2", "Open lobbies")
        assert tab.faults == []


def test_a_match_may_have_to_be_accepted(browser: Chromium, url: str, album: Path) -> None:
    gil, hana = (player(browser, f"{url}&config={ASKING.replace(' ', '+')}", name) for name in ("Gil", "Hana"))
    for tab in (gil, hana):
        tab.click("#quick")
    gil.until("#news", "A match was found")
    gil.picture(album / "10-confirmation.png")
    gil.click("#confirm")
    hana.click("#decline")
    hana.until("#status", "waiting")
    gil.until("#status", "in queue")
    hana.click("#queue")
    for tab in (gil, hana):
        tab.click("#confirm")
    assert plays(gil, "Gil") == plays(hana, "Hana")
    for tab in (gil, hana):
        tab.click("#leave")
        tab.until("h2", "Open lobbies")
        assert tab.faults == []


def test_what_goes_wrong_is_told(browser: Chromium, url: str, album: Path) -> None:
    eve = player(browser, url, "Eve")
    eve.type("#code", "NO-SUCH")
    eve.enter()
    eve.until("#fault", "lobby")
    eve.picture(album / "8-fault.png")
    frank = browser.tab(url.split("#", maxsplit=1)[0])
    frank.type("#key", "pf_a_server_key")
    frank.click("#create")
    frank.until("#fault", "client key is needed")
    assert frank.text("#open") == ""
    frank.picture(album / "9-no-key.png")


def test_the_demos_config_is_made_once_and_others_stay(studio: Studio, fleet: RunningFleet, url: str) -> None:
    def configs() -> list[dict[str, Any]]:
        return studio.call("GET", "/projects/settings")["lobby_configs"]

    before = configs()
    own = [*(one for one in before if one["name"] != "demo"), {**LOBBIES, "maxPlayers": 7}]
    studio.call("POST", "/projects/settings", json={"lobby_configs": own})
    with FleetClient(fleet.url, fleet.server_key) as client:
        assert ensure_lobbies(client)
    assert configs() == own
    studio.call("POST", "/projects/settings", json={"lobby_configs": before})
