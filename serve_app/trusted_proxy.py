"""Who may tell us who called: our own proxy, which proves itself with this fleet's secret (`fleet/proxy_secret.py`)."""

import hmac

from starlette.responses import Response
from starlette.types import Scope

from fleet.proxy_secret import PREFIX, SECRET_HEADER
from serve_app.errors import error_response

_PREFIX, _SECRET = PREFIX.encode(), SECRET_HEADER.encode()


class TrustedProxy:
    """`secret`: None where no proxy of ours stands before this process; then nobody is believed."""

    def __init__(self, secret: str | None) -> None:
        self._secret = secret.encode() if secret else None

    def check(self, scope: Scope) -> Response | None:
        """The refusal of a request that claims to come from our proxy and does not. The secret is taken out of the
        request, so that nothing behind can tell it."""
        claims = [(name, value) for name, value in scope["headers"] if name.startswith(_PREFIX)]
        if not claims:
            return None
        secrets = [value for name, value in claims if name == _SECRET]
        if len(secrets) == 1 and self._secret is not None and hmac.compare_digest(secrets[0], self._secret):
            scope["headers"] = [(name, value) for name, value in scope["headers"] if name != _SECRET]
            return None
        told = (
            "Headers that begin with x-fleet- are for the fleet's own proxy. Leave them out, and ask the API's address."
        )
        return error_response(403, "Forbidden", told)
