"""`custom_jwt`: the studio's own login gives its players signed tokens.

The algorithm is never the token's choice. A shared secret verifies HMAC only, a public key only what its type signs, so
a token "signed" with the public key as if it were a secret is refused.
"""

import warnings
from typing import Any

import jwt

from fleet.players.jwks import KeySet
from fleet.players.model import Proof, bad_token
from fleet.players.outside import Outside

HMAC = ("HS256", "HS384", "HS512")
_BY_TYPE = {
    "RSA": ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    "EC": ("ES256", "ES384", "ES512", "ES256K"),
    "OKP": ("EdDSA",),
}
LEEWAY_S = 30
# A studio's secret may be shorter than it should; that is for the settings to say, not for each token.
warnings.filterwarnings("ignore", category=jwt.InsecureKeyLengthWarning)


class CustomJwt:
    def __init__(self, auth: dict[str, Any], outside: Outside) -> None:
        self._secret = str(auth["secret"]) if auth.get("secret") else None
        self._keys = KeySet(str(auth["jwks_url"]), outside) if auth.get("jwks_url") else None
        self._issuer: str | None = auth.get("issuer")
        self._audience: str | list[str] | None = auth.get("audience")
        self._subject = str(auth.get("subject_claim") or "sub")

    async def proof(self, token: str) -> Proof:
        try:
            header = jwt.get_unverified_header(token)
            key, algorithms = await self._key(header)
            claims = self._claims(token, key, algorithms)
        except jwt.PyJWTError as error:
            raise bad_token(str(error)[:200].rstrip(".") or "it cannot be read") from None
        subject = claims.get(self._subject)
        if not isinstance(subject, str | int) or isinstance(subject, bool):
            raise bad_token(f"its claim '{self._subject[:64]}' names nobody")
        return Proof((str(subject),), float(claims["exp"]))

    async def _key(self, header: dict[str, Any]) -> tuple[Any, tuple[str, ...]]:
        if header.get("alg") in HMAC:
            if self._secret is None:
                raise bad_token("it is signed with a shared secret, and the project checks public keys")
            return self._secret, HMAC
        if self._keys is None:
            raise bad_token("it is not signed with the project's shared secret")
        key_id = header.get("kid")
        found = await self._keys.find(str(key_id) if key_id is not None else None)
        if found is None:
            raise bad_token("nobody knows the key that signed it")
        named: Any = found._jwk_data.get("alg")  # pyright: ignore[reportPrivateUsage]
        kinds = _BY_TYPE.get(str(found.key_type), ())
        return found.key, (str(named),) if named in kinds else kinds

    def _claims(self, token: str, key: Any, algorithms: tuple[str, ...]) -> dict[str, Any]:
        return jwt.decode(
            token,
            key,
            algorithms=list(algorithms),
            issuer=self._issuer,
            audience=self._audience,
            leeway=LEEWAY_S,
            options={"require": ["exp"], "verify_aud": self._audience is not None, "verify_sub": False},
        )
