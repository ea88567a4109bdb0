"""The contract kit finds what is wrong with an adapter, and the sample product's adapter holds it."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from typing import Any

import pytest

import crossfade
from crossfade import AdapterContractError, Answer, Example, Request, check_adapter
from examples.migration import attributes, project
from legacy_adapter.declared import Declaration, DeclaredAdapter, ErrorRules, FieldRules, SessionRules
from legacy_adapter.shape import ShapeRules

SESSION = project.adapters["session"]
TOKEN = "T0ken-of_a-session"
JSON = (("Content-Type", "application/json"),)


class Identity:
    def request(self, request: Request) -> Request:
        return request

    def answer(self, answer: Answer, request: Request) -> Answer:
        return answer


def test_what_changes_nothing_holds_everything() -> None:
    check_adapter(Identity(), [Example(Request("GET", "/a"), Request("GET", "/a"))])


def test_the_sample_adapter_keeps_people_logged_in() -> None:
    opened = Answer(201, headers=JSON, body=json.dumps({"token": TOKEN}).encode())
    login = Request("POST", "/api/session", headers=JSON, body=b'{"username":"bea"}')
    cookie = f"sid={TOKEN}; Path=/; HttpOnly; SameSite=Lax"
    check_adapter(
        SESSION,
        [
            Example(
                Request("GET", "/api/me", headers=(("Cookie", f"theme=dark; sid={TOKEN}; a=b"),)),
                Request(
                    "GET",
                    "/api/me",
                    headers=(("Cookie", "theme=dark; a=b"), ("Authorization", f"Bearer {TOKEN}")),
                ),
            ),
            Example(
                Request("GET", "/", headers=(("Cookie", f"sid={TOKEN}"), ("Authorization", "Bearer other"))),
                Request("GET", "/", headers=(("Authorization", "Bearer other"),)),
            ),
            Example(Request("GET", "/", headers=(("Cookie", "sid=a b"),)), Request("GET", "/")),
            Example(login, login, opened, opened.adding_header("Set-Cookie", cookie)),
            Example(
                Request("DELETE", "/api/session", headers=(("Cookie", f"sid={TOKEN}"),)),
                None,
                Answer(204),
                Answer(204, headers=(("Set-Cookie", "sid=; Path=/; HttpOnly; SameSite=Lax; Max-Age=0"),)),
            ),
            Example(
                login,
                login,
                opened.adding_header("Set-Cookie", "sid=its-own; Path=/"),
                opened.adding_header("Set-Cookie", "sid=its-own; Path=/"),
            ),
        ],
    )


def test_the_sample_says_who_is_known() -> None:
    assert attributes(Request("GET", "/")) == {"visitor": "unknown"}
    assert attributes(Request("GET", "/", headers=(("Cookie", "sid=x"),))) == {"visitor": "known"}


@pytest.mark.parametrize("rules", [
    Declaration(),
    Declaration(session=SessionRules("cookie", "sid", "token")),
    Declaration(session=SessionRules("bearer", "sid", "token", True)),
    Declaration(
        paths=(("/{a}/**", "/v2/**"),), query=FieldRules((("a", "b"),), ("c",), (("d", "é&"),)),
        request_headers=FieldRules((("Cookie", "X-Cookie"),), ("X-Odd",), (("X-A", "é"),)),
        answer_headers=FieldRules(remove=("Set-Cookie",)),
        request_json=ShapeRules((("a", "b"),), ("c",), (), (("d.e", None),)),
        answer_json=ShapeRules((("*.a", "*.b"),), ("c",), (("d", "text"),)),
        errors=ErrorRules(ShapeRules((("error", "error.code"),)), ((404, 410),)),
    ),
])  # fmt: skip
def test_whatever_is_declared_takes_whatever_comes(rules: Declaration) -> None:
    check_adapter(DeclaredAdapter(rules))


def by(request: Any = None, answer: Any = None) -> Any:
    adapter = Identity()
    if request is not None:
        adapter.request = request  # type: ignore[method-assign]
    if answer is not None:
        adapter.answer = answer  # type: ignore[method-assign]
    return adapter


NUMBERS = itertools.count()


@pytest.mark.parametrize(("adapter", "says"), [
    (by(lambda r: r.with_json({"a": r.json()})), "request() raises JSONDecodeError"),
    (by(answer=lambda a, r: a.with_json({"a": a.json()["b"]})), "answer() raises JSONDecodeError"),
    (by(lambda r: r.with_header("X-A", (r.header("cookie") or "\r\n")[:2])), "a line break in 'X-A'"),
    (by(lambda r: None), "expected a Request, not NoneType"),
    (by(answer=lambda a, r: r), "expected an Answer, not Request"),
    (by(lambda r: r.with_header("X-N", str(next(NUMBERS)))), "two things of the same request"),
    (by(answer=lambda a, r: a.with_header("X-N", str(next(NUMBERS)))), "two things of the same answer"),
    (by(answer=lambda a, r: replace(a, status=700)), "700 is no final status"),
    (by(lambda r: r.with_path(r.path + " ")), "cannot be sent: bad_request_line"),
    (by(lambda r: r.with_header("X-Name", "€")), "not Latin-1"),
])  # fmt: skip
def test_what_is_wrong_with_an_adapter_is_found(adapter: Any, says: str) -> None:
    with pytest.raises(AdapterContractError) as caught:
        check_adapter(adapter)
    assert says in str(caught.value)
    assert caught.value.problems


def test_an_example_that_is_not_met_is_shown() -> None:
    wanted = Example(
        Request("GET", "/a", headers=(("X-A", "b"),)), Request("POST", "/b"), Answer(200), Answer(201)
    )
    with pytest.raises(AdapterContractError) as caught:
        check_adapter(Identity(), [wanted])
    assert caught.value.problems == [
        "examples[0]: method: expected 'POST', found 'GET'",
        "examples[0]: target: expected '/b', found '/a'",
        "examples[0]: headers: expected [], found [('x-a', 'b')]",
        "examples[0]: status: expected 201, found 200",
    ]


def test_users_need_no_other_package() -> None:
    assert all(hasattr(crossfade, name) for name in crossfade.__all__)
    with pytest.raises(AttributeError):
        _ = crossfade.nothing_of_that_name
