"""Which names say that their value is secret, and which texts look like a secret by themselves."""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import pairwise
from typing import Final

WORDS: Final = frozenset(
    {
        "apikey", "auth", "authorization", "bearer", "cookie", "cookies", "credential", "credentials", "csrf",
        "cvc", "cvv", "iban", "jwt", "nonce", "otp", "passcode", "passphrase", "passwd", "password",
        "passwords", "pin", "pwd", "secret", "secrets", "session", "sessionid", "sid", "signature", "ssn",
        "token", "tokens", "totp", "xsrf",
    }
)  # fmt: skip
"""A name is secret when one of these is a whole word in it: `accessToken`, `X-Csrf`, not `tokenizer`."""
PAIRS: Final = frozenset(
    {
        ("api", "key"), ("access", "key"), ("account", "number"), ("card", "number"), ("credit", "card"),
        ("encryption", "key"), ("private", "key"), ("session", "id"), ("set", "cookie"), ("signing", "key"),
    }
)  # fmt: skip
"""The same for two words, one after the other."""
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")


@lru_cache(maxsize=4096)
def says_secret(name: str) -> bool:
    words = [word.lower() for word in _WORD.findall(name)]
    return any(word in WORDS for word in words) or any(pair in PAIRS for pair in pairwise(words))


LOOKS: Final = re.compile(
    r"(?P<token><secret:[a-z]+:[0-9a-f]{16}>)"
    r"|(?P<pem>-----BEGIN [A-Z ]+-----[\s\S]*?(?:-----END [A-Z ]+-----|\Z))"
    r"|(?P<jwt>\beyJ[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]{5,}(?:\.[A-Za-z0-9_-]*)?)"
    r"|(?:(?<=://)(?P<userinfo>[^/\s:@\"']{1,200}:[^/\s@\"']{1,200})(?=@))"
    r"|(?:\b(?:[Bb]earer|[Bb]asic|[Tt]oken)\s+(?P<bearer>[A-Za-z0-9._~+/=-]{6,}))"
    r"|(?P<email>\b[A-Za-z0-9._%+-]{1,64}+@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63})+)"
    r"|(?P<card>\b(?:[0-9][ -]?){12,18}[0-9]\b)"
    r"|(?:\b(?P<name>[A-Za-z][A-Za-z0-9_.-]{0,63}+)[\"']?\s*+[:=]\s*+[\"']?"
    r"(?![Bb]earer\b|[Bb]asic\b|[Tt]oken\b)(?P<value>[^\s\"'&;,<>(){}\[\]]{2,}))"
)
"""What looks like a secret wherever it stands. `name` and `value`: secret if the name says so."""


SHORTEST_CARD: Final = 13
"""Digits."""


def is_card_number(text: str) -> bool:
    """Whether the digits in `text` are a card's by their check digit (Luhn)."""
    digits = [int(sign) for sign in text if sign.isdigit()]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return SHORTEST_CARD <= len(digits) <= 19 and (sum(doubled) + sum(digits[-1::-2])) % 10 == 0
