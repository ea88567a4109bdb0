"""The public API, demanded of both backends alike."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import pytest

from tests.sample.backends import PASSWORD, Backend, error_of, person


def write_post(client: httpx.Client, **fields: Any) -> dict[str, Any]:
    response = client.post("/api/posts", json={"title": "A title", "body": "A body", **fields})
    assert response.status_code == 201, response.text
    post: dict[str, Any] = response.json()
    return post


def balance(client: httpx.Client) -> int:
    cents = client.get("/api/wallet").json()["balance_cents"]
    assert isinstance(cents, int)
    return cents


def walk(client: httpx.Client, path: str, **query: Any) -> list[dict[str, Any]]:
    """Every item of a list, page after page."""
    items: list[dict[str, Any]] = []
    cursor: dict[str, str] = {}
    while True:
        page = client.get(path, params=query | cursor).raise_for_status().json()
        assert list(page) == ["items", "next_cursor"]
        items += page["items"]
        if page["next_cursor"] is None:
            return items
        assert len(page["items"]) == query.get("limit", 20)
        cursor = {"cursor": page["next_cursor"]}


def a_tag() -> str:
    return f"t{uuid.uuid4().hex[:12]}"


# Accounts and sessions


def test_a_new_account_can_log_in_and_has_an_empty_wallet(backend: Backend) -> None:
    name = f"new_{uuid.uuid4().hex[:8]}"
    answer = backend.anybody().post(
        "/api/accounts",
        json={
            "username": name,
            "password": "långt lösenord",
            "display_name": "Ny",
            "email": "ny@example.org",
        },
    )
    account = answer.json()
    assert answer.status_code == 201
    assert answer.headers["Location"] == f"/api/accounts/{account['id']}"
    assert list(account) == ["id", "username", "display_name", "bio", "role", "created_at", "email"]
    assert (account["role"], account["bio"], account["email"]) == ("member", "", "ny@example.org")

    with httpx.Client(base_url=backend.url, trust_env=False) as client:
        opened = client.post("/api/session", json={"username": name, "password": "långt lösenord"})
        assert opened.status_code == 201
        assert opened.json()["account"] == account
        assert client.get("/api/me").json() == account
        assert client.get("/api/wallet").json() == {
            "account_id": account["id"], "balance_cents": 0, "currency": "EUR",
        }  # fmt: skip


def test_a_username_is_given_once(backend: Backend) -> None:
    again = {"username": "ada", "password": PASSWORD, "display_name": "Another Ada"}
    assert error_of(backend.anybody().post("/api/accounts", json=again)) == (409, "username_taken", {})


def test_others_do_not_see_an_email(backend: Backend) -> None:
    ada = person("ada")
    shown = backend.person("bea").get(f"/api/accounts/{ada['id']}").json()
    assert list(shown) == ["id", "username", "display_name", "bio", "role", "created_at"]
    assert (shown["username"], shown["role"], shown["created_at"]) == ("ada", "admin", ada["created_at"])


def test_only_admins_list_the_accounts(backend: Backend) -> None:
    assert error_of(backend.anybody().get("/api/accounts")) == (401, "not_authenticated", {})
    for name in ("bea", "moritz"):
        assert error_of(backend.person(name).get("/api/accounts")) == (403, "forbidden", {})
    listed = walk(backend.person("ada"), "/api/accounts", limit=4)
    ids = [account["id"] for account in listed]
    assert ids == sorted(set(ids))
    assert {"ada", "chen", "hana"} <= {account["username"] for account in listed}
    assert next(account["email"] for account in listed if account["username"] == "bea") == "bea@example.org"


def test_a_deleted_account_is_gone(backend: Backend) -> None:
    ghost = person("ghost")
    assert ghost["deleted"]
    assert error_of(backend.anybody().get(f"/api/accounts/{ghost['id']}")) == (404, "not_found", {})
    refused = backend.anybody().post("/api/session", json={"username": "ghost", "password": PASSWORD})
    assert error_of(refused) == (401, "wrong_credentials", {})


def test_a_changed_name_is_seen_wherever_it_is_shown(backend: Backend) -> None:
    gus = backend.person("gus")
    post = write_post(gus)
    comment = gus.post(f"/api/posts/{post['id']}/comments", json={"body": "mine"}).json()
    name = f"Gus {uuid.uuid4().hex[:6]}"
    before = gus.get("/api/me").json()
    changed = gus.patch("/api/me", json={"display_name": name})
    assert changed.status_code == 200
    assert changed.json() == before | {"display_name": name}
    assert gus.get(f"/api/posts/{post['id']}").json()["author"]["display_name"] == name
    assert gus.get(f"/api/posts/{post['id']}/comments").json()["items"] == [
        comment | {"author": comment["author"] | {"display_name": name}}
    ]


def test_only_the_fields_that_are_sent_are_changed(backend: Backend) -> None:
    fatou = backend.person("fatou")
    before = fatou.get("/api/me").json()
    assert fatou.patch("/api/me", json={}).json() == before
    assert fatou.patch("/api/me", json={"email": None}).json() == before | {"email": None}
    assert fatou.patch("/api/me", json={"bio": ""}).json() == before | {"email": None, "bio": ""}
    restored = {"email": before["email"], "bio": before["bio"]}
    assert fatou.patch("/api/me", json=restored).json() == before


def test_a_session_opens_by_cookie_or_by_token_and_ends(backend: Backend) -> None:
    with httpx.Client(base_url=backend.url, trust_env=False) as browser:
        opened = browser.post("/api/session", json={"username": "dara", "password": PASSWORD})
        token = opened.json()["token"]
        assert opened.headers["Set-Cookie"] == f"sid={token}; Max-Age=1209600; Path=/; HttpOnly; SameSite=Lax"
        assert browser.get("/api/me").json()["username"] == "dara"
        bearer = {"Authorization": f"Bearer {token}"}
        assert httpx.get(f"{backend.url}/api/me", headers=bearer).json()["username"] == "dara"

        closed = browser.delete("/api/session")
        assert (closed.status_code, closed.content) == (204, b"")
        assert "sid" not in browser.cookies
        assert error_of(httpx.get(f"{backend.url}/api/me", headers=bearer))[0] == 401


def test_behind_tls_the_cookie_is_secure(backend: Backend) -> None:
    opened = backend.anybody().post(
        "/api/session",
        json={"username": "dara", "password": PASSWORD},
        headers={"X-Forwarded-Proto": "https"},
    )
    assert opened.headers["Set-Cookie"].endswith("; Secure")


def test_a_refused_login_does_not_say_what_was_wrong(backend: Backend) -> None:
    for credentials in (
        {"username": "ada", "password": "not the password"},
        {"username": "nobody_has_this_name", "password": PASSWORD},
    ):
        refused = backend.anybody().post("/api/session", json=credentials)
        assert error_of(refused) == (401, "wrong_credentials", {})
        assert "Set-Cookie" not in refused.headers


@pytest.mark.parametrize("header", ["Bearer", "Bearer x", "Basic YWRhOng=", "", "Bearer \xff\xfe"])
def test_a_token_that_opens_nothing_is_refused(backend: Backend, header: str) -> None:
    refused = backend.anybody().get("/api/me", headers={"Authorization": header.encode("latin-1")})
    assert error_of(refused) == (401, "not_authenticated", {})
    assert refused.headers["WWW-Authenticate"] == "Bearer"


# Posts


def test_a_post_is_written_read_changed_and_removed(backend: Backend) -> None:
    bea = backend.person("bea")
    written = bea.post(
        "/api/posts",
        json={"title": "Grüße 👋", "body": "<b>&amp;\n", "tags": ["web", "c-plus-plus", "web"]},
    )
    post = written.json()
    here = f"/api/posts/{post['id']}"
    assert (written.status_code, written.headers["Location"]) == (201, here)
    assert post == {
        "id": post["id"],
        "title": "Grüße 👋",
        "body": "<b>&amp;\n",
        "tags": ["c-plus-plus", "web"],
        "author": {"id": person("bea")["id"], "username": "bea", "display_name": "Beatriz Souza"},
        "comment_count": 0,
        "created_at": post["created_at"],
        "updated_at": post["created_at"],
    }
    assert backend.anybody().get(here).json() == post

    assert bea.patch(here, json={}).json() == post
    changed = bea.patch(here, json={"tags": []}).json()
    assert changed == post | {"tags": [], "updated_at": changed["updated_at"]}
    assert changed["updated_at"] >= post["created_at"]
    assert bea.patch(here, json={"title": "New", "tags": ["linux"]}).json()["tags"] == ["linux"]
    assert bea.get(here).json()["body"] == post["body"]

    removed = bea.delete(here)
    assert (removed.status_code, removed.content) == (204, b"")
    for gone in (bea.get(here), bea.patch(here, json={}), bea.delete(here), bea.get(f"{here}/comments")):
        assert error_of(gone) == (404, "not_found", {})


def test_times_are_utc(backend: Backend) -> None:
    dated = httpx.get(f"{backend.url}/healthz").headers["Date"]
    post = write_post(backend.person("bea"))
    assert post["created_at"].endswith("Z")
    assert abs(_seconds_between(dated, post["created_at"])) < 60


def test_others_neither_edit_nor_remove_a_post_but_moderators_remove(backend: Backend) -> None:
    here = f"/api/posts/{write_post(backend.person('bea'))['id']}"
    for name in ("chen", "moritz", "ada"):
        assert error_of(backend.person(name).patch(here, json={"title": "Mine"})) == (403, "forbidden", {})
    assert error_of(backend.person("chen").delete(here)) == (403, "forbidden", {})
    assert error_of(backend.anybody().delete(here)) == (401, "not_authenticated", {})
    assert backend.person("moritz").delete(here).status_code == 204


def test_posts_are_found_by_tag_and_by_author(backend: Backend) -> None:
    tag = a_tag()
    mine = [write_post(backend.person("bea"), tags=[tag, "web"])["id"] for _ in range(3)]
    theirs = write_post(backend.person("chen"), tags=[tag])["id"]
    write_post(backend.person("chen"), tags=[f"{tag}x"])
    reader = backend.anybody()
    assert [post["id"] for post in walk(reader, "/api/posts", tag=tag)] == [theirs, *reversed(mine)]
    by_bea = walk(reader, "/api/posts", tag=tag, author=person("bea")["id"])
    assert [post["id"] for post in by_bea] == mine[::-1]
    assert reader.get("/api/posts", params={"tag": a_tag()}).json() == {"items": [], "next_cursor": None}
    assert reader.get("/api/posts", params={"author": 10**15}).json()["items"] == []


def test_a_walk_through_the_pages_sees_each_post_once_while_others_write(backend: Backend) -> None:
    tag = a_tag()
    chen, reader = backend.person("chen"), backend.anybody()
    written = [write_post(chen, tags=[tag])["id"] for _ in range(5)]
    first = reader.get("/api/posts", params={"tag": tag, "limit": 2}).json()
    write_post(chen, tags=[tag])
    chen.delete(f"/api/posts/{written[3]}")
    second = reader.get("/api/posts", params={"tag": tag, "limit": 2, "cursor": first["next_cursor"]}).json()
    third = reader.get("/api/posts", params={"tag": tag, "limit": 2, "cursor": second["next_cursor"]}).json()
    seen = [post["id"] for page in (first, second, third) for post in page["items"]]
    assert seen == written[::-1]
    assert third["next_cursor"] is None


def test_a_full_last_page_has_no_cursor(backend: Backend) -> None:
    tag = a_tag()
    for _ in range(2):
        write_post(backend.person("chen"), tags=[tag])
    page = backend.anybody().get("/api/posts", params={"tag": tag, "limit": 2}).json()
    assert (len(page["items"]), page["next_cursor"]) == (2, None)


# Comments


def test_comments_are_counted_listed_and_removed(backend: Backend) -> None:
    bea, chen = backend.person("bea"), backend.person("chen")
    post = write_post(bea)
    here = f"/api/posts/{post['id']}/comments"
    written = [who.post(here, json={"body": f"no. {n}"}).json() for n, who in enumerate((chen, bea, chen))]
    assert list(written[0]) == ["id", "post_id", "author", "body", "created_at"]
    assert (written[0]["post_id"], written[0]["author"]["username"]) == (post["id"], "chen")
    assert walk(bea, here, limit=2) == written
    assert bea.get(f"/api/posts/{post['id']}").json()["comment_count"] == 3

    first = f"{here}/{written[0]['id']}"
    elsewhere = f"/api/posts/{write_post(bea)['id']}/comments/{written[0]['id']}"
    assert error_of(chen.delete(elsewhere)) == (404, "not_found", {})
    assert error_of(bea.delete(first)) == (403, "forbidden", {})
    assert chen.delete(first).status_code == 204
    assert error_of(chen.delete(first)) == (404, "not_found", {})
    assert backend.person("moritz").delete(f"{here}/{written[1]['id']}").status_code == 204
    assert walk(bea, here) == written[2:]
    assert bea.get(f"/api/posts/{post['id']}").json()["comment_count"] == 1


def test_comments_written_at_once_are_all_counted(backend: Backend) -> None:
    post = write_post(backend.person("bea"))
    here = f"/api/posts/{post['id']}"
    chen = backend.person("chen")
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda n: chen.post(f"{here}/comments", json={"body": str(n)}), range(24)))
    assert [answer.status_code for answer in answers] == [201] * 24
    assert chen.get(here).json()["comment_count"] == 24
    assert len(walk(chen, f"{here}/comments")) == 24


def test_nobody_comments_on_what_is_not_there(backend: Backend) -> None:
    refused = backend.person("bea").post("/api/posts/999999999/comments", json={"body": "hello?"})
    assert error_of(refused) == (404, "not_found", {})


# Money


def test_money_moves_from_wallet_to_wallet(backend: Backend) -> None:
    hana, dara = backend.person("hana"), backend.person("dara")
    before = balance(hana), balance(dara)
    made = hana.post(
        "/api/transfers",
        json={"to_account_id": person("dara")["id"], "amount_cents": 1234, "note": "für Brot"},
    )
    transfer = made.json()
    assert made.status_code == 201
    assert transfer == {
        "id": transfer["id"],
        "from": {"id": person("hana")["id"], "username": "hana"},
        "to": {"id": person("dara")["id"], "username": "dara"},
        "amount_cents": 1234,
        "note": "für Brot",
        "created_at": transfer["created_at"],
    }
    assert (balance(hana), balance(dara)) == (before[0] - 1234, before[1] + 1234)
    for client in (hana, dara):
        assert client.get("/api/transfers", params={"limit": 1}).json()["items"] == [transfer]
    assert transfer["id"] not in {other["id"] for other in walk(backend.person("chen"), "/api/transfers")}


def test_everybody_sees_their_own_transfers_newest_first(backend: Backend) -> None:
    for name in ("hana", "bea", "moritz"):
        listed = walk(backend.person(name), "/api/transfers", limit=3)
        assert listed
        assert [transfer["id"] for transfer in listed] == sorted(
            {transfer["id"] for transfer in listed}, reverse=True
        )
        assert all(name in {each["from"]["username"], each["to"]["username"]} for each in listed)


def test_nobody_spends_more_than_they_have(backend: Backend) -> None:
    emil = backend.person("emil")
    had = balance(emil)
    too_much = {"to_account_id": person("bea")["id"], "amount_cents": had + 1}
    assert error_of(emil.post("/api/transfers", json=too_much)) == (409, "insufficient_funds", {})
    assert balance(emil) == had


def test_a_transfer_needs_two_accounts(backend: Backend) -> None:
    emil = backend.person("emil")
    for receiver, problem in (
        (person("emil")["id"], "invalid"),
        (person("ghost")["id"], "not_found"),
        (2**63 - 1, "not_found"),
    ):
        refused = emil.post("/api/transfers", json={"to_account_id": receiver, "amount_cents": 1})
        assert error_of(refused) == (422, "invalid_input", {"to_account_id": problem})


def test_a_repeated_transfer_with_the_same_key_is_made_once(backend: Backend) -> None:
    hana = backend.person("hana")
    order = {"to_account_id": person("bea")["id"], "amount_cents": 77, "note": "once"}
    key = {"Idempotency-Key": uuid.uuid4().hex}
    had = balance(hana)
    first = hana.post("/api/transfers", json=order, headers=key)
    again = hana.post("/api/transfers", json=order, headers=key)
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.json() == first.json()
    assert ("Idempotency-Replayed" in first.headers, again.headers["Idempotency-Replayed"]) == (False, "true")
    assert balance(hana) == had - 77

    other = hana.post("/api/transfers", json=order | {"amount_cents": 78}, headers=key)
    assert error_of(other) == (422, "idempotency_key_reused", {})
    theirs = backend.person("moritz").post("/api/transfers", json=order, headers=key)
    assert theirs.json()["id"] != first.json()["id"], "a key belongs to its sender"


@pytest.mark.parametrize("key", ["", "two words", "x" * 65, "schlüssel"])
def test_a_key_is_short_and_plain(backend: Backend, key: str) -> None:
    refused = backend.person("hana").post(
        "/api/transfers",
        json={"to_account_id": 1, "amount_cents": 1},
        headers={"Idempotency-Key": key.encode()},
    )
    assert error_of(refused) == (422, "invalid_input", {"Idempotency-Key": "invalid"})


def test_the_same_key_at_the_same_time_moves_money_once(backend: Backend) -> None:
    hana = backend.person("hana")
    had, key = balance(hana), {"Idempotency-Key": uuid.uuid4().hex}
    order = {"to_account_id": person("moritz")["id"], "amount_cents": 5}
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: hana.post("/api/transfers", json=order, headers=key), range(12)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert balance(hana) == had - 5


def test_transfers_in_all_directions_at_once_lose_and_invent_no_money(backend: Backend) -> None:
    rich = ("moritz", "bea", "chen", "hana")
    people = {name: backend.person(name) for name in (*rich, "emil")}
    before = {name: balance(client) for name, client in people.items()}
    circles = [(rich[n % 4], rich[(n + 1 + n // 4 % 3) % 4], 1 + n * 37 % 500) for n in range(72)]
    spree = [("emil", rich[n % 4], before["emil"] // 3 + 1) for n in range(12)]  # he can pay two of them
    plan = [step for n, treat in enumerate(spree) for step in (*circles[n * 6 : n * 6 + 6], treat)]

    def pay(step: tuple[str, str, int]) -> int:
        sender, receiver, cents = step
        order = {"to_account_id": person(receiver)["id"], "amount_cents": cents}
        return people[sender].post("/api/transfers", json=order).status_code

    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(pay, plan))
    done = list(zip(plan, statuses, strict=True))
    assert {status for (sender, *_), status in done if sender != "emil"} == {201}
    assert Counter(status for (sender, *_), status in done if sender == "emil") == {201: 2, 409: 10}
    after = dict(before)
    for (sender, receiver, cents), status in done:
        if status == 201:
            after[sender] -= cents
            after[receiver] += cents
    assert {name: balance(client) for name, client in people.items()} == after
    assert sum(after.values()) == sum(before.values())


# The protocol


def test_head_answers_like_get_without_the_body(backend: Backend) -> None:
    got, asked = (backend.anybody().request(method, "/api/posts/3") for method in ("GET", "HEAD"))
    assert (asked.status_code, asked.content) == (200, b"")
    assert asked.headers["Content-Length"] == got.headers["Content-Length"]
    assert asked.headers["Content-Type"] == got.headers["Content-Type"] == "application/json; charset=utf-8"


@pytest.mark.parametrize("method", ["PUT", "OPTIONS", "DELETE"])
def test_a_method_that_a_path_does_not_have(backend: Backend, method: str) -> None:
    refused = backend.anybody().request(method, "/api/posts")
    assert error_of(refused) == (405, "method_not_allowed", {})
    assert refused.headers["Allow"] == "GET,HEAD,POST"


@pytest.mark.parametrize(
    "path",
    [
        "/", "/api", "/api/posts/", "/api//posts", "/api/nothing", "/static/x", "/api/posts/0",
        "/api/posts/-1",
        "/api/posts/007", "/api/posts/1.0", "/api/posts/x", "/api/posts/9223372036854775808",
        "/api/posts/9223372036854775807", "/api/posts/%D9%A3", "/api/accounts/999999", "/API/posts",
    ],
)  # fmt: skip
def test_what_is_not_there(backend: Backend, path: str) -> None:
    assert error_of(backend.anybody().get(backend.url + path)) == (404, "not_found", {})


def test_the_body_must_be_json(backend: Backend) -> None:
    bea = backend.person("bea")
    for content, kind, refusal in (
        (b"title=x", "application/x-www-form-urlencoded", (415, "not_json")),
        (b"{}", "text/plain", (415, "not_json")),
        (b"", "application/json", (400, "malformed_json")),
        (b"{", "application/json", (400, "malformed_json")),
        (b'{"title": NaN}', "application/json", (400, "malformed_json")),
        (b'{"title": "\xff"}', "application/json", (400, "malformed_json")),
        ('{"title": "x"}'.encode("utf-16"), "application/json", (400, "malformed_json")),
        (b"\xef\xbb\xbf{}", "application/json", (400, "malformed_json")),
        (b"[" * 50_000, "application/json", (400, "malformed_json")),
        (b"9" * 5000, "application/json", (400, "malformed_json")),
    ):
        refused = bea.post("/api/posts", content=content, headers={"Content-Type": kind})
        assert error_of(refused)[:2] == refusal, content[:20]
    assert error_of(bea.post("/api/posts")) == (415, "not_json", {})
    fine = bea.post(
        "/api/posts",
        content=b'{"title": "old", "body": "x", "title": "new"}',
        headers={"Content-Type": "application/json; charset=utf-8"},
    )
    assert (fine.status_code, fine.json()["title"]) == (201, "new")


def test_a_body_has_a_limit_however_it_is_sent(backend: Backend) -> None:
    bea = backend.person("bea")
    large = b'{"title": "' + b"x" * 70_000 + b'"}'
    kind = {"Content-Type": "application/json"}
    assert error_of(bea.post("/api/posts", content=large, headers=kind)) == (413, "body_too_large", {})
    chunks = (large[start : start + 5000] for start in range(0, len(large), 5000))
    assert error_of(bea.post("/api/posts", content=chunks, headers=kind)) == (413, "body_too_large", {})
    assert bea.get("/api/me").status_code == 200


FINE_POST = {"title": "t", "body": "b"}


@pytest.mark.parametrize(
    ("path", "body", "problems"),
    [
        ("/api/posts", [], {"": "wrong_type"}),
        ("/api/posts", "text", {"": "wrong_type"}),
        ("/api/posts", {}, {"title": "missing", "body": "missing"}),
        ("/api/posts", {"title": "", "body": "x" * 20_001}, {"title": "too_short", "body": "too_long"}),
        ("/api/posts", {"title": "x" * 201, "body": 5}, {"title": "too_long", "body": "wrong_type"}),
        ("/api/posts", {"title": None, "body": True}, {"title": "wrong_type", "body": "wrong_type"}),
        ("/api/posts", FINE_POST | {"author": 1, "id": 5}, {"author": "unknown", "id": "unknown"}),
        ("/api/posts", FINE_POST | {"title": "nul\x00"}, {"title": "invalid"}),
        ("/api/posts", FINE_POST | {"title": "half \ud83d"}, {"title": "invalid"}),
        ("/api/posts", FINE_POST | {"tags": "web"}, {"tags": "wrong_type"}),
        ("/api/posts", FINE_POST | {"tags": None}, {"tags": "wrong_type"}),
        ("/api/posts", FINE_POST | {"tags": ["web", 5]}, {"tags": "wrong_type"}),
        ("/api/posts", FINE_POST | {"tags": ["Web"]}, {"tags": "invalid"}),
        ("/api/posts", FINE_POST | {"tags": ["a,b"]}, {"tags": "invalid"}),
        ("/api/posts", FINE_POST | {"tags": ["a\n"]}, {"tags": "invalid"}),
        ("/api/posts", FINE_POST | {"tags": ["\udfff"]}, {"tags": "invalid"}),
        ("/api/posts", FINE_POST | {"tags": ["%"]}, {"tags": "invalid"}),
        ("/api/posts", FINE_POST | {"tags": [f"t{n}" for n in range(9)]}, {"tags": "invalid"}),
        ("/api/transfers", {"to_account_id": 1, "amount_cents": 0}, {"amount_cents": "too_small"}),
        ("/api/transfers", {"to_account_id": 1, "amount_cents": -5}, {"amount_cents": "too_small"}),
        ("/api/transfers", {"to_account_id": 1, "amount_cents": 10**10}, {"amount_cents": "too_large"}),
        ("/api/transfers", {"to_account_id": 1, "amount_cents": 10**40}, {"amount_cents": "too_large"}),
        ("/api/transfers", {"to_account_id": 1, "amount_cents": 1.0}, {"amount_cents": "wrong_type"}),
        ("/api/transfers", {"to_account_id": True, "amount_cents": "1"},
         {"to_account_id": "wrong_type", "amount_cents": "wrong_type"}),
        ("/api/transfers", {"to_account_id": 0, "amount_cents": 1, "note": "x" * 201},
         {"to_account_id": "too_small", "note": "too_long"}),
        ("/api/accounts",
         {"username": "Ada!", "password": "short", "display_name": "x" * 81, "email": "nobody"},
         {"username": "invalid", "password": "too_short", "display_name": "too_long", "email": "invalid"}),
        ("/api/accounts", {"username": "new\n", "password": "x" * 8, "display_name": "x", "email": ""},
         {"username": "invalid", "email": "too_short"}),
        ("/api/accounts", {"username": "new", "password": "x" * 8, "display_name": "x", "role": "admin"},
         {"role": "unknown"}),
        ("/api/session", {"username": "ada"}, {"password": "missing"}),
        ("/api/session", {"username": 1, "password": None},
         {"username": "wrong_type", "password": "wrong_type"}),
    ],
)  # fmt: skip
def test_wrong_fields_are_named(backend: Backend, path: str, body: object, problems: dict[str, str]) -> None:
    kind = {"Content-Type": "application/json"}
    refused = backend.person("bea").post(path, content=json.dumps(body), headers=kind)
    assert error_of(refused) == (422, "invalid_input", problems)


@pytest.mark.parametrize(
    ("path", "body", "problems"),
    [
        ("/api/me", {"display_name": None}, {"display_name": "wrong_type"}),
        ("/api/me", {"bio": "x" * 2001, "username": "x"}, {"bio": "too_long", "username": "unknown"}),
        ("/api/me", {"email": 5}, {"email": "wrong_type"}),
        ("/api/posts/3", {"title": None, "body": ""}, {"title": "wrong_type", "body": "too_short"}),
    ],
)
def test_wrong_changes_are_named(backend: Backend, path: str, body: object, problems: dict[str, str]) -> None:
    assert error_of(backend.person("bea").patch(path, json=body)) == (422, "invalid_input", problems)


@pytest.mark.parametrize(
    ("query", "problems"),
    [
        ("limit=0", {"limit": "too_small"}),
        ("limit=101", {"limit": "too_large"}),
        ("limit=5.0", {"limit": "invalid"}),
        ("limit=%205", {"limit": "invalid"}),
        ("limit=&tag=", {"limit": "invalid", "tag": "invalid"}),
        ("limit=x&limit=5", {"limit": "invalid"}),
        ("cursor=x", {"cursor": "invalid"}),
        ("cursor=Mjk=", {"cursor": "invalid"}),
        ("cursor=%C3%A9", {"cursor": "invalid"}),
        ("cursor=", {"cursor": "invalid"}),
        ("tag=A&author=0", {"tag": "invalid", "author": "too_small"}),
        ("tag=%FF", {"tag": "invalid"}),
        ("author=bea", {"author": "invalid"}),
        ("author=99999999999999999999", {"author": "invalid"}),
    ],
)
def test_wrong_parameters_are_named(backend: Backend, query: str, problems: dict[str, str]) -> None:
    assert error_of(backend.anybody().get(f"/api/posts?{query}")) == (422, "invalid_input", problems)


def test_unknown_parameters_are_ignored(backend: Backend) -> None:
    answer = backend.anybody().get("/api/posts/7/comments?tag=%&utm_source=x&limit=1&limit=x")
    assert answer.status_code == 200
    assert len(answer.json()["items"]) == 1


def _seconds_between(http_date: str, moment: str) -> float:
    return (parsedate_to_datetime(http_date) - datetime.fromisoformat(moment)).total_seconds()
