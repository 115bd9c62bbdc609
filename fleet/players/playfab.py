"""`playfab`: session tickets, checked by PlayFab; the player id is the PlayFabId, or the title player's entity id.

With the title's `secret_key` the ticket is authenticated as a server does it. Without, the account that the ticket
opens is asked for, which only its owner can.
"""

import re
from typing import Any

from fleet.players.model import Proof, bad_token
from fleet.players.outside import Outside, field
from fleet.servers.limits import Unprocessable

URL = "https://{title}.playfabapi.com"
_TITLE = re.compile(r"[A-Za-z0-9]{1,32}\Z")


class PlayFab:
    def __init__(self, auth: dict[str, Any], outside: Outside, url: str = URL) -> None:
        title = str(auth["title_id"])
        if not _TITLE.match(title):  # it becomes part of a host's name
            raise Unprocessable("A PlayFab title_id has letters and digits only.", field="auth_config")
        self._url = url.format(title=title.lower())
        self._secret: str | None = auth.get("secret_key")
        self._outside = outside

    async def proof(self, token: str) -> Proof:
        if not token.isascii() or not token.isprintable():
            raise bad_token("a session ticket is plain ASCII")
        user = await (self._as_server(token) if self._secret else self._as_player(token))
        ids = (field(user, "PlayFabId"), field(user, "TitleInfo", "TitlePlayerAccount", "Id"))
        known = tuple(one for one in ids if isinstance(one, str))
        if not known:
            raise bad_token("PlayFab does not accept it")
        return Proof(known)

    async def _as_server(self, token: str) -> Any:
        headers = {"X-SecretKey": self._secret or ""}
        answer = await self._call("/Server/AuthenticateSessionTicket", headers, {"SessionTicket": token})
        if field(answer, "data", "IsSessionTicketExpired"):
            raise bad_token("it has expired")
        return field(answer, "data", "UserInfo")

    async def _as_player(self, token: str) -> Any:
        answer = await self._call("/Client/GetAccountInfo", {"X-Authorization": token}, {})
        return field(answer, "data", "AccountInfo")

    async def _call(self, path: str, headers: dict[str, str], body: dict[str, Any]) -> Any:
        status, answer = await self._outside.ask("PlayFab", "POST", self._url + path, headers=headers, json=body)
        if status != 200:
            why = field(answer, "errorMessage")
            raise bad_token(f"PlayFab says '{str(why)[:100]}'" if why else "PlayFab does not accept it")
        return answer
