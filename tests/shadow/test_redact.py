"""No secret leaves the process, and what was equal stays equal."""

from __future__ import annotations

import gzip
import json
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.mirrored import Leg, Mirrored
from shadow import wire
from shadow.exhibit import Exhibit, Kind
from shadow.exhibits import exhibit
from shadow.redact import Known, Policy, Redactor
from shadow.secret_words import is_card_number, says_secret

REDACTOR = Redactor(b"a key of this installation")
JSON = b"Content-Type: application/json\r\n"


def leg(body: bytes, fields: bytes = JSON, *, side: str = "legacy", status: int = 200) -> Leg:
    return Leg(side, 1000.0, 0.01, status, fields, body)


def shown(
    legacy: Leg,
    new: Leg | None = None,
    *,
    target: bytes = b"/items",
    fields: bytes = b"",
    body: bytes = b"",
    redactor: Redactor = REDACTOR,
) -> Exhibit:
    other = new or Leg("new", 1000.1, 0.01, 200, legacy.fields, legacy.body)
    pair = Mirrored("items", "/items", "shadow", 1, "POST", target, fields, body, (legacy, other))
    return exhibit(pair, "id", redactor, 100_000)


def body_of(found: Exhibit) -> object:
    return json.loads(found.legacy.body.text)


@pytest.mark.parametrize("name", [
    "password", "Password", "user_password", "accessToken", "X-Api-Key", "apiKey", "sessionId", "SESSION_ID",
    "csrf-token", "cardNumber", "private_key", "client_secret", "IBAN", "refresh_tokens", "XSRF-TOKEN",
])  # fmt: skip
def test_names_that_say_secret(name: str) -> None:
    assert says_secret(name)


@pytest.mark.parametrize("name", [
    "tokenizer", "secretary", "passenger", "author", "key", "keyboard", "pinned", "updated_at", "id", "name",
    "monkey", "spinner", "assessment",
])  # fmt: skip
def test_names_that_only_look_like_it(name: str) -> None:
    assert not says_secret(name)


def test_a_json_body_keeps_all_but_its_secrets() -> None:
    start = b'{"id": 1.50, "big": 12345678901234567890, "user": {"name": "ada"'
    text = start + b', "password": "hunter22"}, "a": 1, "a": 2}'
    found = shown(leg(text))
    assert found.legacy.body.text.startswith(
        '{"id": 1.50, "big": 12345678901234567890, "user": {"name": "ada"'
    )
    assert "hunter22" not in found.legacy.body.text
    assert '"a": 1, "a (2)": 2' in found.legacy.body.text
    assert found.legacy.body.kind is Kind.JSON


def test_equal_secrets_are_equal_and_others_are_others() -> None:
    one = shown(leg(b'{"token": "abcdefgh"}'), leg(b'{"token": "abcdefgh"}', side="new"))
    assert one.legacy.body == one.new.body
    two = shown(leg(b'{"token": "abcdefgh"}'), leg(b'{"token": "abcdefgi"}', side="new"))
    assert two.legacy.body.text != two.new.body.text
    other = shown(leg(b'{"token": "abcdefgh"}'), redactor=Redactor(b"another key"))
    assert other.legacy.body.text != one.legacy.body.text


def test_what_is_no_secret_still_differs() -> None:
    found = shown(leg(b'{"price": 10, "pin": 1234}'), leg(b'{"price": 11, "pin": 1234}', side="new"))
    assert found.legacy.body.text.replace("10", "11") == found.new.body.text


def test_headers_and_cookies() -> None:
    fields = (
        b"Authorization: Bearer abc.def\r\nCookie: theme=dark; sid=s3cr3tvalue\r\nX-Api-Key: k-123456\r\n"
        b"Accept: */*\r\n"
    )
    answer = b"Set-Cookie: sid=fresh-s3cr3t; Path=/; HttpOnly\r\nLocation: /in?token=tok-123456&a=b\r\n"
    found = shown(leg(b"", answer), fields=fields)
    headers = dict(found.asked.headers)
    assert headers["accept"] == "*/*"
    assert "abc.def" not in headers["authorization"]
    assert headers["cookie"].startswith("theme=<secret:")
    answered = dict(found.legacy.headers)
    assert answered["set-cookie"].endswith("; Path=/; HttpOnly")
    assert answered["set-cookie"].startswith("sid=<secret:")
    assert answered["location"].startswith("/in?token=<secret:")
    assert answered["location"].endswith("&a=b")


def test_an_error_text_that_repeats_the_password_does_not_give_it_away() -> None:
    secret = 'p&ss "wörd"/1'
    asked = json.dumps({"password": secret}).encode()
    text = f"no user with {secret} or {quote(secret)} or {quote_plus(secret)} or {json.dumps(secret)}"
    found = shown(leg(text.encode(), b"Content-Type: text/plain\r\n", status=401), fields=JSON, body=asked)
    assert found.legacy.body.text.count("<secret:") == 4
    assert found.legacy.body.text.startswith("no user with <secret:value:")


@pytest.mark.parametrize(("text", "secret"), [
    ("Authorization: Bearer abcdef123456", "abcdef123456"),
    ("see https://ada:hunter22@db.test/x", "hunter22"),
    ("eyJhbGciOiJub25lIn0.eyJzdWIiOiIxIn0.sig", "eyJzdWIiOiIxIn0"),
    ("-----BEGIN RSA PRIVATE KEY-----\nMIIabc\n-----END RSA PRIVATE KEY-----", "MIIabc"),
    ("paid with 4111 1111 1111 1111 today", "4111 1111"),
    ("mail to ada.l@example.org now", "ada.l"),
    ("failed: password=hunter22; retry", "hunter22"),
    ('{"api_key": "k-99887766", broken', "k-99887766"),
    ("X-Session-Id: 0123456789", "0123456789"),
])  # fmt: skip
def test_what_looks_like_a_secret_in_any_text(text: str, secret: str) -> None:
    found = REDACTOR.in_text(text, Known(REDACTOR, ()))
    assert secret not in found
    assert "<secret:" in found


@pytest.mark.parametrize("text", [
    "order 4111111111111112 of today", "version 1.2.3 at 12:30:45", "name=ada&limit=20", "a plain sentence.",
    "https://shop.test/items?page=2", "2026-11-23T20:00:00Z",
])  # fmt: skip
def test_what_does_not_look_like_one_stays(text: str) -> None:
    assert REDACTOR.in_text(text, Known(REDACTOR, ())) == text


def test_users_say_what_is_secret_besides_and_what_is_not() -> None:
    policy = Policy(also=("phone", "$.user.birthday", "$.items[*].note"), never=("token",), emails=False)
    text = {
        "phone": "123", "token": "public", "birthday": "1999-01-01", "mail": "ada@example.org",
        "user": {"birthday": "2000-01-01"}, "items": [{"note": "x"}],
    }  # fmt: skip
    found = body_of(shown(leg(json.dumps(text).encode()), redactor=Redactor(b"key", policy)))
    assert isinstance(found, dict)
    assert (found["token"], found["birthday"], found["mail"]) == ("public", "1999-01-01", "ada@example.org")
    assert found["phone"].startswith("<secret:")
    assert found["user"]["birthday"].startswith("<secret:")
    assert found["items"][0]["note"].startswith("<secret:")


def test_forms_and_packed_bodies() -> None:
    form = b"Content-Type: application/x-www-form-urlencoded\r\n"
    packed = leg(gzip.compress(b'{"secret": "abcdefgh"}'), JSON + b"Content-Encoding: gzip\r\n")
    found = shown(packed, fields=form, body=b"user=ada&password=hunter22")
    assert found.asked.body.text.startswith("user=ada&password=<secret:")
    assert found.legacy.body.text.startswith('{"secret": "<secret:')


def test_a_file_leaves_its_length_and_a_hash_that_nobody_can_guess_at() -> None:
    found = shown(leg(b"\x89PNG\0\0secret", b"Content-Type: image/png\r\n"))
    body = found.legacy.body
    assert (body.kind, body.text, body.length) == (Kind.BINARY, "", 12)
    assert body.digest == found.new.body.digest != Redactor(b"another").digest(b"\x89PNG\0\0secret")


@pytest.mark.parametrize(("fields", "body", "trouble"), [
    (b"Content-Encoding: gzip\r\n", b"no gzip", "bad_gzip"),
    (b"Content-Encoding: gzip\r\n", gzip.compress(b"x" * 99)[:-9], "cut_gzip"),
    (b"Content-Encoding: gzip\r\n", gzip.compress(b"x" * 10_000_000), "too_long"),
    (b"Content-Encoding: rot13\r\n", b"x", "unknown_coding"),
    (b"Content-Encoding: br\r\n", b"no brotli", "bad_br"),
    (b"Content-Encoding: zstd\r\n", b"no zstd", "bad_zstd"),
])  # fmt: skip
def test_what_cannot_be_decoded_is_told_and_not_shown(fields: bytes, body: bytes, trouble: str) -> None:
    found = shown(leg(body, fields)).legacy.body
    assert (found.kind, found.trouble, found.text) == (Kind.UNREADABLE, trouble, "")


def test_card_numbers_have_a_check_digit() -> None:
    assert is_card_number("4111111111111111")
    assert not is_card_number("4111111111111112")
    assert not is_card_number("411111111111")


# The property.

SECRETS = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Z")), min_size=8, max_size=20
).map(lambda text: f"Zq{text}7x")
PLACES = st.sampled_from(
    ["header", "cookie", "query", "json", "deep", "form", "echo", "set-cookie", "list", "part"]
)


@given(SECRETS, st.lists(PLACES, min_size=1, max_size=4, unique=True), st.booleans())
def test_no_seeded_secret_is_in_any_byte_of_the_wire(secret: str, places: list[str], packed: bool) -> None:
    ascii_secret = quote(secret, safe="")
    fields, target, asked, answer, answer_fields = b"", b"/items", {}, {}, JSON
    if "header" in places:
        fields += b"X-Auth-Token: " + ascii_secret.encode() + b"\r\n"
    if "cookie" in places:
        fields += b"Cookie: a=b; sid=" + ascii_secret.encode() + b"\r\n"
    if "query" in places:
        target += b"?q=1&access_token=" + ascii_secret.encode()
    if "json" in places:
        asked["password"] = secret
    if "deep" in places:
        answer["x"] = [{"y": {"clientSecret": {"inner": [secret]}}}]
    if "list" in places:
        answer["tokens"] = [secret, secret]
    if "set-cookie" in places:
        answer_fields += b"Set-Cookie: sid=" + ascii_secret.encode() + b"; Path=/\r\n"
    answer["said"] = f"you sent {secret}!" if {"json", "echo"} <= set(places) else "fine"
    body = json.dumps(answer).encode()
    if packed:
        body, answer_fields = gzip.compress(body), answer_fields + b"Content-Encoding: gzip\r\n"
    asked_fields, asked_body = JSON, json.dumps(asked).encode()
    if "part" in places:
        asked_fields = b"Content-Type: multipart/form-data; boundary=b\r\n"
        asked_body = b"".join(
            b'--b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % (name, value)
            for name, value in ((b"password", secret.encode()), (b"user", b"ada"))
        ) + b"--b--\r\n"  # fmt: skip
        answer["said"] = f"no user has {secret}"
        body = json.dumps(answer).encode()
        body = gzip.compress(body) if packed else body
    found = shown(leg(body, answer_fields), target=target, fields=asked_fields + fields, body=asked_body)

    written = wire.to_bytes(found)

    said = json.dumps(json.loads(written), ensure_ascii=False)
    for spelled in (secret, ascii_secret, quote_plus(secret), json.dumps(secret)[1:-1]):
        assert spelled not in said
        assert spelled.encode() not in written
    assert wire.from_bytes(written) == found


@given(st.binary(max_size=200), st.binary(max_size=100), st.sampled_from([
    b"application/json", b"text/html", b"application/x-www-form-urlencoded", b"text/plain; charset=odd", b"",
    b"text/event-stream", b"multipart/form-data; boundary=x", b"application/xml",
]), st.sampled_from([b"", b"gzip", b"deflate", b"br", b"zstd", b"gzip, br"]))  # fmt: skip
def test_nothing_that_a_peer_sends_raises(body: bytes, target: bytes, media: bytes, coding: bytes) -> None:
    fields = b"Content-Type: " + media + b"\r\nContent-Encoding: " + coding + b"\r\n"
    found = shown(leg(body, fields), target=b"/" + target, fields=fields, body=body)
    assert wire.from_bytes(wire.to_bytes(found)) == found


def test_what_is_no_exhibit_is_refused_and_what_is_too_long_leaves_its_bodies() -> None:
    for odd in (b"", b"{}", b"[]", b'{"layout": 2}', b'{"layout": 1}', b"\xff"):
        with pytest.raises(wire.OtherLayoutError):
            wire.from_bytes(odd)
    long = exhibit(
        Mirrored("f", "/", "shadow", 1, "GET", b"/", b"", b"", (leg(b'"%b"' % (b"x" * 5_000_000)),
        leg(b'"y"', side="new"))), "id", REDACTOR, 10_000_000,
    )  # fmt: skip
    found = wire.from_bytes(wire.to_bytes(long))
    assert (found.legacy.body.kind, found.legacy.body.trouble) == (Kind.UNREADABLE, "too_long")
