"""What the token of a request says of itself: the claims of a JSON Web Token, not verified.

A claim chooses a backend and gives no right; the backend that answers verifies the token as ever. So
nothing is verified here unless the configuration names a key, and whatever is no token has no claims.
"""

from __future__ import annotations

import binascii
import json
from base64 import urlsafe_b64decode
from collections.abc import Mapping
from types import MappingProxyType

LONGEST = 8192
"""Bytes of a token that are looked at."""
NONE: Mapping[str, object] = MappingProxyType({})


def unverified_claims(authorization: bytes) -> Mapping[str, object]:
    """The claims in the value of an Authorization field; empty if there is no readable token in it."""
    scheme, _, token = authorization.partition(b" ")
    parts = token.strip().split(b".")
    if scheme.lower() != b"bearer" or len(parts) != 3 or len(token) > LONGEST:
        return NONE
    try:
        text = urlsafe_b64decode(parts[1] + b"=" * (-len(parts[1]) % 4))
        claims = json.loads(text)
    except (binascii.Error, ValueError, RecursionError):
        return NONE
    return claims if isinstance(claims, dict) else NONE
