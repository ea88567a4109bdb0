"""What the token of a request says of itself: the claims of a JSON Web Token.

A claim chooses a backend and gives no right; the backend that answers verifies the token as ever. So
claims are believed unverified, unless the configuration names keys: then only those of a token whose
signature, time, issuer and audience are right. Whatever is no such token has no claims.
"""

from __future__ import annotations

import binascii
import json
from base64 import urlsafe_b64decode
from collections import OrderedDict
from collections.abc import Mapping
from types import MappingProxyType

from core.http import RequestHead, field_values
from proxy.config import TokenKey, Tokens

ALGORITHMS = (
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA",
    "HS256", "HS384", "HS512",
)  # fmt: skip
SHORTEST_SECRET = {"HS256": 32, "HS384": 48, "HS512": 64}
"""Bytes of a secret that signs tokens; a shorter one can be guessed (RFC 7518, 3.2)."""
LONGEST = 8192
"""Bytes of a token that are looked at."""
REMEMBERED = 1024
"""Verified tokens that are known again: a signature costs more than everything else in a request."""
LEEWAY = 30.0
"""Seconds by which the clocks of this machine and of the issuer may differ."""
NONE: Mapping[str, object] = MappingProxyType({})


class BadKeyError(ValueError):
    """A key that cannot verify anything."""


class TokenReader:
    """Reads claims as `settings` say. Raises `BadKeyError` for a key that cannot be used."""

    def __init__(self, settings: Tokens) -> None:
        self._name = settings.header.encode()
        self._verifier = _Verifier(settings) if settings.keys else None

    def claims(self, head: RequestHead, now: float) -> Mapping[str, object]:
        """The claims of the request's token; `now` is Unix time."""
        values = field_values(head.fields, self._name)
        if not values:
            return NONE
        token = _token_in(values[0], bearer=self._name == b"authorization")
        if token is None:
            return NONE
        return _unverified(token) if self._verifier is None else self._verifier.claims(token, now)


def unverified_claims(authorization: bytes) -> Mapping[str, object]:
    """The claims in the value of an Authorization field; empty if there is no readable token in it."""
    token = _token_in(authorization, bearer=True)
    return NONE if token is None else _unverified(token)


class _Verifier:
    """Verifies signatures once per token, and times whenever it is asked."""

    def __init__(self, settings: Tokens) -> None:
        import jwt  # noqa: PLC0415  (only who verifies pays for it)

        self._jwt = jwt
        self._settings = settings
        self._keys = [(key, check_key(key)) for key in settings.keys]
        self._known: OrderedDict[bytes, Mapping[str, object]] = OrderedDict()

    def claims(self, token: bytes, now: float) -> Mapping[str, object]:
        claims = self._known.get(token)
        if claims is None:
            claims = self._known[token] = self._verified(token)
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        else:
            self._known.move_to_end(token)
        return claims if _is_timely(claims, now) else NONE

    def _verified(self, token: bytes) -> Mapping[str, object]:
        jwt = self._jwt
        try:
            header = jwt.get_unverified_header(token)
        except jwt.PyJWTError:
            return NONE
        # Times are looked at on each use, not when the token is first seen.
        options = {"verify_exp": False, "verify_nbf": False, "verify_iat": False}
        options["verify_aud"] = self._settings.audience is not None
        for key, loaded in self._keys:
            if key.id not in (None, header.get("kid")) or key.algorithm != header.get("alg"):
                continue
            try:
                claims: dict[str, object] = jwt.decode(
                    token,
                    loaded,
                    algorithms=[key.algorithm],
                    audience=self._settings.audience,
                    issuer=self._settings.issuer,
                    options=options,
                )
            except jwt.PyJWTError:
                continue
            return claims
        return NONE


def check_key(key: TokenKey) -> object:
    """What verifies with `key`. Raises `BadKeyError`."""
    import jwt  # noqa: PLC0415

    shortest = SHORTEST_SECRET.get(key.algorithm, 0)
    if len(key.key.encode()) < shortest:
        raise BadKeyError(f"a secret of at least {shortest} bytes is needed")
    try:
        return jwt.get_algorithm_by_name(key.algorithm).prepare_key(key.key)
    except (NotImplementedError, ValueError, TypeError, jwt.PyJWTError) as error:
        raise BadKeyError(f"a PEM key for {key.algorithm} is needed") from error


def _is_timely(claims: Mapping[str, object], now: float) -> bool:
    expires, begins = claims.get("exp"), claims.get("nbf")
    in_time = expires is None or (isinstance(expires, int | float) and now < expires + LEEWAY)
    return in_time and (begins is None or (isinstance(begins, int | float) and now >= begins - LEEWAY))


def _token_in(value: bytes, *, bearer: bool) -> bytes | None:
    scheme, blank, token = value.partition(b" ")
    if scheme.lower() == b"bearer":
        token = token.strip()
    elif not bearer and not blank:
        token = value
    else:
        return None
    return token if len(token) <= LONGEST and token.count(b".") == 2 else None


def _unverified(token: bytes) -> Mapping[str, object]:
    text = token.split(b".")[1]
    try:
        claims = json.loads(urlsafe_b64decode(text + b"=" * (-len(text) % 4)))
    except (binascii.Error, ValueError, RecursionError):
        return NONE
    return claims if isinstance(claims, dict) else NONE
