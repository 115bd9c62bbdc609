"""`steam`: tickets of the Steam client (GetAuthTicketForWebApi), checked by Steam; the player id is the SteamID64."""

import string
from typing import Any

from fleet.players.model import Proof, bad_token
from fleet.players.outside import Outside, field

URL = "https://partner.steam-api.com"


class Steam:
    def __init__(self, auth: dict[str, Any], outside: Outside, url: str = URL) -> None:
        self._key = str(auth["web_api_key"])
        self._app = str(auth["app_id"])
        self._identity: str | None = auth.get("identity")
        self._outside = outside
        self._url = f"{url}/ISteamUserAuth/AuthenticateUserTicket/v1/"

    async def proof(self, token: str) -> Proof:
        if not token or set(token) - set(string.hexdigits):
            raise bad_token("a Steam ticket is written in hexadecimal digits")
        asked = {"key": self._key, "appid": self._app, "ticket": token}
        if self._identity:
            asked["identity"] = str(self._identity)
        status, answer = await self._outside.ask("Steam", "GET", self._url, params=asked)
        found = field(answer, "response", "params")
        steam_id = field(found, "steamid")
        if status != 200 or field(found, "result") != "OK" or not isinstance(steam_id, str):
            why = field(answer, "response", "error", "errordesc")
            raise bad_token(f"Steam says '{str(why)[:100]}'" if why else "Steam does not accept it")
        if field(found, "publisherbanned"):
            raise bad_token("the player is banned from this publisher's games")
        return Proof((steam_id,))
