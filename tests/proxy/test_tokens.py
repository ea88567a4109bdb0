"""Claims of tokens that are verified: only of those that somebody known has signed, and in their time."""

from __future__ import annotations

import base64
import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from core.http import RequestHead
from proxy.claims import LEEWAY, REMEMBERED, BadKeyError, TokenReader
from proxy.config import TokenKey, Tokens
from proxy.head import parse_request
from tests.proxy.flags import ROUTES, one_flag
from tests.support.world import World, echo, get

NOW = 1_800_000_000.0
SECRET = "a secret of thirty-two bytes, or more"
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()
HS = TokenKey("HS256", SECRET)


def pem(key: Any) -> str:
    encoding, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    return str(key.public_key().public_bytes(encoding, form).decode())


def with_fields(*fields: str) -> RequestHead:
    more = "".join(f"{field}\r\n" for field in fields).encode()
    parsed = parse_request(get(b"/", more), max_head=99999, max_target=9999, max_fields=99)
    assert isinstance(parsed, RequestHead)
    return parsed


def bearer(claims: dict[str, Any], key: Any = SECRET, algorithm: str = "HS256", **header: str) -> RequestHead:
    return with_fields(f"Authorization: Bearer {jwt.encode(claims, key, algorithm, headers=header or None)}")


@pytest.mark.parametrize(("algorithm", "key"), [
    ("RS256", RSA), ("PS384", RSA), ("ES256", EC), ("EdDSA", ED),
])  # fmt: skip
def test_who_signs_with_the_key_is_believed(algorithm: str, key: Any) -> None:
    tokens = TokenReader(Tokens(keys=(HS, TokenKey(algorithm, pem(key)))))
    for _ in range(2):  # the second time from memory
        assert tokens.claims(bearer({"sub": "ada"}, key, algorithm), NOW) == {"sub": "ada"}
    assert tokens.claims(bearer({"sub": "bea"}), NOW) == {"sub": "bea"}


def test_who_signs_with_another_key_is_not() -> None:
    tokens = TokenReader(Tokens(keys=(HS, TokenKey("RS256", pem(RSA)))))
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    assert tokens.claims(bearer({"sub": "ada"}, other, "RS256"), NOW) == {}
    assert tokens.claims(bearer({"sub": "ada"}, SECRET + "!"), NOW) == {}
    long = TokenReader(Tokens(keys=(TokenKey("HS256", SECRET * 2),)))
    assert long.claims(bearer({"sub": "ada"}, SECRET * 2), NOW) == {"sub": "ada"}
    assert long.claims(bearer({"sub": "ada"}, SECRET * 2, "HS512"), NOW) == {}, "only the key's algorithm"


def test_who_signs_with_nothing_or_with_a_public_key_as_secret_is_not() -> None:
    tokens = TokenReader(Tokens(keys=(TokenKey("RS256", pem(RSA)),)))

    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    for algorithm in ("none", "HS256", "RS256"):
        text = f"{part({'alg': algorithm})}.{part({'sub': 'ada'})}."
        for signature in ("", "AAAA"):
            assert tokens.claims(with_fields(f"Authorization: Bearer {text}{signature}"), NOW) == {}


def test_a_key_with_an_id_is_for_tokens_that_name_it() -> None:
    keys = (TokenKey("HS256", SECRET, "one"), TokenKey("HS256", SECRET + "2", "two"))
    tokens = TokenReader(Tokens(keys=keys))
    assert tokens.claims(bearer({"sub": "a"}, SECRET + "2", kid="two"), NOW) == {"sub": "a"}
    assert tokens.claims(bearer({"sub": "a"}, SECRET + "2", kid="one"), NOW) == {}
    assert tokens.claims(bearer({"sub": "a"}), NOW) == {}


def test_a_token_counts_in_its_time_only_also_from_memory() -> None:
    tokens = TokenReader(Tokens(keys=(HS,)))
    head = bearer({"sub": "ada", "exp": NOW + 10, "nbf": NOW - 10})
    assert tokens.claims(head, NOW)["sub"] == "ada"
    assert tokens.claims(head, NOW + 10 + LEEWAY + 1) == {}
    assert tokens.claims(head, NOW - 10 - LEEWAY - 1) == {}
    assert tokens.claims(head, NOW)["sub"] == "ada"
    assert tokens.claims(bearer({"exp": "soon"}), NOW) == {}


def test_issuer_and_audience_must_be_the_right_ones() -> None:
    tokens = TokenReader(Tokens(keys=(HS,), issuer="us", audience="shop"))
    assert tokens.claims(bearer({"iss": "us", "aud": ["shop", "b"]}), NOW)["iss"] == "us"
    for claims in ({"iss": "us"}, {"aud": "shop"}, {"iss": "them", "aud": "shop"}, {"iss": "us", "aud": "b"}):
        assert tokens.claims(bearer(claims), NOW) == {}
    assert TokenReader(Tokens(keys=(HS,))).claims(bearer({"aud": "any"}), NOW) == {"aud": "any"}


def test_a_token_may_come_in_another_field() -> None:
    token = jwt.encode({"sub": "ada"}, SECRET, "HS256")
    tokens = TokenReader(Tokens(header="x-token", keys=(HS,)))
    assert tokens.claims(with_fields(f"X-Token: {token}"), NOW) == {"sub": "ada"}
    assert tokens.claims(with_fields(f"x-token: Bearer {token}"), NOW) == {"sub": "ada"}
    assert tokens.claims(with_fields(f"Authorization: Bearer {token}"), NOW) == {}


@pytest.mark.parametrize("value", ["", "Bearer", "Bearer ", "Bearer a.b.c", "Bearer ..", "a.b.c"])
def test_whatever_is_no_token_has_no_claims(value: str) -> None:
    head = with_fields(f"Authorization: {value}")
    assert TokenReader(Tokens(keys=(HS,))).claims(head, NOW) == {}
    assert TokenReader(Tokens()).claims(head, NOW) == {}


def test_what_is_remembered_is_bounded() -> None:
    tokens = TokenReader(Tokens(keys=(HS,)))
    for number in range(REMEMBERED + 5):
        assert tokens.claims(bearer({"sub": str(number)}), NOW) == {"sub": str(number)}
    assert tokens._verifier is not None
    assert len(tokens._verifier._known) == REMEMBERED


@pytest.mark.parametrize("key", [
    TokenKey("RS256", "no PEM"), TokenKey("ES256", pem(RSA)), TokenKey("HS256", "short"),
    TokenKey("HS512", SECRET), TokenKey("HS256", pem(RSA)),
])  # fmt: skip
def test_a_key_that_verifies_nothing_is_refused(key: TokenKey) -> None:
    with pytest.raises(BadKeyError):
        TokenReader(Tokens(keys=(key,)))


@pytest.mark.parametrize(("secret", "reason"), [(SECRET, "weight"), (SECRET + "!", "no_key")])
async def test_only_verified_claims_decide(secret: str, reason: str) -> None:
    flags, tokens = one_flag(500_000, by=("claim:sub",)), Tokens(keys=(HS,))
    token = jwt.encode({"sub": "ada"}, secret, "HS256").encode()
    async with World.of(ROUTES, flags=flags, tokens=tokens, legacy=echo, new=echo) as world:
        await world.ask(get(b"/", b"Authorization: Bearer " + token + b"\r\n"))
        assert world.count("crossfade_requests_total", reason=reason) == 1
